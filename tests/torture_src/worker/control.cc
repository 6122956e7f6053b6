#include "control.h"

#include <poll.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>

namespace sluice::torture {

namespace {
constexpr int kStatMs = 1000;
}

std::uint64_t now_ns() {
  timespec ts{};
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

Control::Control() {
  if (::pipe(wake_) != 0) std::abort();
  listener_ = std::thread([this] { listen(); });
}

Control::~Control() {
  handle("quit");
  if (::write(wake_[1], "q", 1) != 1) std::abort();
  listener_.join();
  ::close(wake_[0]);
  ::close(wake_[1]);
}

void Control::handle(const std::string& word) {
  const std::lock_guard lock(mutex_);
  if (word == "pause") {
    pause_ = true;
    if (waiting_) say("paused");  // a resume came just before, and the waiting thread has not seen it
  }
  if (word == "resume") pause_ = false;
  if (word == "quit") quit_ = true;
  changed_.notify_all();
}

void Control::listen() {
  std::string pending;
  std::uint64_t reported = 0;
  for (;;) {
    pollfd fds[2] = {{.fd = 0, .events = POLLIN, .revents = 0},
                     {.fd = wake_[0], .events = POLLIN, .revents = 0}};
    const int ready = ::poll(fds, 2, kStatMs);
    if (ready < 0 && errno != EINTR) std::abort();
    if (ready > 0 && fds[1].revents != 0) return;
    if (ready > 0 && fds[0].revents != 0) {
      char buffer[256];
      const ssize_t n = ::read(0, buffer, sizeof buffer);
      if (n <= 0) {
        handle("quit");
        return;
      }
      pending.append(buffer, static_cast<std::size_t>(n));
      for (std::size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1)) {
        handle(pending.substr(0, end));
      }
    }
    if (ready == 0 && done + busy != reported) {
      reported = done + busy;
      say("stat done=" + std::to_string(done) + " busy=" + std::to_string(busy) +
          " odd=" + std::to_string(odd));
    }
  }
}

bool Control::proceed() {
  if (!pause_ && !quit_) return true;
  std::unique_lock lock(mutex_);
  if (pause_ && !quit_) {
    say("paused");
    waiting_ = true;
    changed_.wait(lock, [this] { return !pause_ || quit_; });
    waiting_ = false;
    if (!quit_) say("resumed");
  }
  return !quit_;
}

bool Control::wait_ms(int ms) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::milliseconds(ms), [this] { return pause_ || quit_; });
  return !quit_;
}

void Control::say(const std::string& line) {
  const std::lock_guard lock(output_mutex_);
  const std::string out = line + "\n";
  // The orchestrator is gone when this fails; end of file on stdin ends us.
  if (::write(1, out.data(), out.size()) < 0) quit_ = true;
}

void Control::sql_error(const std::string& text) {
  say("sql " + std::to_string(now_ns()) + " " + text);
}

void Control::violation(const std::string& text) {
  say("violation " + std::to_string(now_ns()) + " " + text);
}

}  // namespace sluice::torture
