#include "fuse/write_run.h"

#include <poll.h>

#include <chrono>

namespace sluice::fuse {
namespace {

constexpr int kWritesToBegin = 16;
constexpr std::int64_t kGap_ns = 100'000;       // writes further apart are no run
constexpr std::int64_t kPatience_ns = 100'000;  // of the runner, for the next write
constexpr std::int64_t kHeldUp_ns = 1'000'000;
constexpr auto kLookAgain = std::chrono::milliseconds(1);

std::int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

}  // namespace

// A thread serves one session for all of its life.
WriteRun::Worker& WriteRun::worker() {
  thread_local Worker worker;
  return worker;
}

bool WriteRun::is_held_up() const {
  const std::int64_t since = busy_since_.load(std::memory_order_relaxed);
  return since != 0 && now_ns() - since > kHeldUp_ns;
}

void WriteRun::before_read(int device) {
  Worker& self = worker();
  if (self.runs) {
    const std::int64_t deadline = now_ns() + kPatience_ns;
    pollfd ready{device, POLLIN, 0};
    while (::poll(&ready, 1, 0) == 0) {
      if (now_ns() < deadline) continue;
      end();
      break;
    }
  } else if (state_.load(std::memory_order_relaxed) != State::none) {
    MutexLock lock(mutex_);
    // Somebody must read: the last of those who gather becomes the runner.
    while (state_ != State::none && !is_held_up() && (state_ == State::running || readers_ != 0))
      changed_.wait_until(mutex_, std::chrono::steady_clock::now() + kLookAgain);
    if (state_ == State::gathering) {
      state_ = State::running;
      self.runs = true;
    }
  }
  if (!self.runs) {
    readers_.fetch_add(1);
    self.reads = true;
  }
}

void WriteRun::received(bool is_write) {
  Worker& self = worker();
  self.wrote = is_write;
  if (self.reads) {
    self.reads = false;
    readers_.fetch_sub(1);
  }
  if (!self.runs) return;
  if (is_write && readers_.load(std::memory_order_relaxed) == 0)
    busy_since_.store(now_ns(), std::memory_order_relaxed);
  else
    end();  // it is not from who writes pages, or others came to help: back to normal
}

void WriteRun::processed() {
  Worker& self = worker();
  if (self.runs) {
    busy_since_.store(0, std::memory_order_relaxed);
    return;
  }
  if (!self.wrote) return;
  const std::int64_t now = now_ns();
  const std::int64_t before = last_write_.exchange(now, std::memory_order_relaxed);
  if (now - before > kGap_ns) {
    consecutive_.store(0, std::memory_order_relaxed);
    return;
  }
  if (consecutive_.fetch_add(1, std::memory_order_relaxed) < kWritesToBegin) return;
  State none = State::none;
  state_.compare_exchange_strong(none, State::gathering);
}

void WriteRun::end() {
  worker().runs = false;
  busy_since_.store(0, std::memory_order_relaxed);
  consecutive_.store(0, std::memory_order_relaxed);
  {
    MutexLock lock(mutex_);
    state_ = State::none;
  }
  changed_.notify_all();
}

void WriteRun::leave() {
  Worker& self = worker();
  if (self.runs) end();
  if (self.reads) readers_.fetch_sub(1);
}

}  // namespace sluice::fuse
