#include "fuse/capture/tailer.h"

#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

#include "base/log.h"

namespace sluice::fuse {

Tailer::Tailer(const CaptureOptions& options, Callback capture, TimerCallback due)
    : options_(options), capture_(std::move(capture)), due_(std::move(due)) {}

Tailer::~Tailer() { stop(); }

Result<void> Tailer::start() {
  wakeup_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wakeup_) return errno_error("eventfd", errno);
  inotify_ = UniqueFd(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!inotify_) return errno_error("inotify_init (raise fs.inotify.max_user_instances)", errno);
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "tail");
  return {};
}

void Tailer::stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  if (wakeup_) ::eventfd_write(wakeup_.get(), 1);
  if (thread_.joinable()) thread_.join();
}

void Tailer::wake(const std::shared_ptr<CapturedDatabase>& database, std::string wal_path) {
  {
    MutexLock lock(mutex_);
    requests_[database->name()] = {database, std::move(wal_path)};
  }
  if (wakeup_) ::eventfd_write(wakeup_.get(), 1);
}

void Tailer::schedule(const std::shared_ptr<CapturedDatabase>& database, Timer timer, Duration delay) {
  {
    MutexLock lock(mutex_);
    timers_[{database->name(), timer}] = {std::chrono::steady_clock::now() + delay, database};
  }
  if (wakeup_) ::eventfd_write(wakeup_.get(), 1);
}

void Tailer::forget(const std::string& name) {
  {
    MutexLock lock(mutex_);
    forgotten_.push_back(name);
    for (const Timer timer : {Timer::unjournaled, Timer::abandoned_journal}) timers_.erase({name, timer});
    requests_.erase(name);
  }
  if (wakeup_) ::eventfd_write(wakeup_.get(), 1);
}

void Tailer::run() {
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
    }
    std::array<pollfd, 2> fds{{{wakeup_.get(), POLLIN, 0}, {inotify_.get(), POLLIN, 0}}};
    const int wait_us = timeout_us(std::chrono::steady_clock::now());
    timespec ts{wait_us / 1'000'000, (wait_us % 1'000'000) * 1000L};
    const int n = ::ppoll(fds.data(), fds.size(), wait_us < 0 ? nullptr : &ts, nullptr);
    if (n < 0 && errno != EINTR) {
      LOG_ERROR("tail: poll failed (errno {}); captures happen at checkpoints only", errno);
      return;
    }
    if ((fds[0].revents & POLLIN) != 0) {
      eventfd_t value = 0;
      ::eventfd_read(wakeup_.get(), &value);
    }
    take_requests();
    if ((fds[1].revents & POLLIN) != 0) read_events();
    const MonotonicTime now = std::chrono::steady_clock::now();
    fire_timers(now);
    poll_busy(now);
  }
}

int Tailer::timeout_us(MonotonicTime now) {
  int wait = !busy_.empty() ? options_.poll_us : -1;
  MutexLock lock(mutex_);
  for (const auto& [key, timer] : timers_) {
    const auto left = std::chrono::duration_cast<std::chrono::microseconds>(timer.first - now).count();
    const int us = static_cast<int>(std::clamp<long>(left, 0, 1'000'000));
    wait = wait < 0 ? us : std::min(wait, us);
  }
  return wait;
}

void Tailer::take_requests() {
  decltype(requests_) requests;
  std::vector<std::string> forgotten;
  {
    MutexLock lock(mutex_);
    requests.swap(requests_);
    forgotten.swap(forgotten_);
  }
  for (const std::string& name : forgotten) {
    const auto it = entries_.find(name);
    if (it == entries_.end()) continue;
    if (it->second.watch >= 0) {
      ::inotify_rm_watch(inotify_.get(), it->second.watch);
      by_watch_.erase(it->second.watch);
    }
    std::erase(busy_, &it->second);
    entries_.erase(it);
  }
  const MonotonicTime now = std::chrono::steady_clock::now();
  for (auto& [name, request] : requests) {
    Entry& entry = entries_[name];
    entry.database = std::move(request.first);
    entry.wal_path = std::move(request.second);
    make_busy(entry, now);
  }
}

void Tailer::make_busy(Entry& entry, MonotonicTime now) {
  entry.last_change = now;
  if (!std::exchange(entry.busy, true)) busy_.push_back(&entry);
}

void Tailer::read_events() {
  alignas(inotify_event) std::array<char, 4096> buffer{};
  for (;;) {
    const ssize_t n = ::read(inotify_.get(), buffer.data(), buffer.size());
    if (n <= 0) return;
    for (const char* p = buffer.data(); p < buffer.data() + n;) {
      inotify_event event{};
      std::copy_n(p, sizeof event, reinterpret_cast<char*>(&event));
      p += sizeof event + event.len;
      const auto watch = by_watch_.find(event.wd);
      if (watch == by_watch_.end()) continue;
      const auto it = entries_.find(watch->second);
      by_watch_.erase(watch);
      if (it == entries_.end()) continue;
      it->second.watch = -1;
      make_busy(it->second, std::chrono::steady_clock::now());
    }
  }
}

void Tailer::poll_busy(MonotonicTime now) {
  const auto idle_after = std::chrono::milliseconds(options_.idle_after_ms);
  std::erase_if(busy_, [&](Entry* const busy) {
    Entry& entry = *busy;
    if (entry.database->poll()) {
      entry.last_change = now;
      capture_(entry.database);
      return false;
    }
    if (now - entry.last_change <= idle_after) return false;
    // No WAL to wait for: opened() wakes us when there is one again.
    if (!go_idle(entry)) entries_.erase(std::string(entry.database->name()));
    else if (entry.busy) return false;
    return true;
  });
}

// The watch is armed before the last look, so that a write between the two is not missed.
bool Tailer::go_idle(Entry& entry) {
  const int watch = ::inotify_add_watch(inotify_.get(), entry.wal_path.c_str(), IN_MODIFY | IN_ONESHOT);
  if (watch < 0) {
    if (errno == ENOENT) return false;
    LOG_WARN("{}: cannot watch its WAL (errno {}; fs.inotify.max_user_watches?): polling goes on", entry.database->name(), errno);
    return true;
  }
  entry.watch = watch;
  by_watch_[watch] = entry.database->name();
  if (entry.database->poll()) {
    capture_(entry.database);
    entry.last_change = std::chrono::steady_clock::now();
    return true;
  }
  entry.busy = false;
  return true;
}

void Tailer::fire_timers(MonotonicTime now) {
  std::vector<std::pair<std::shared_ptr<CapturedDatabase>, Timer>> due;
  {
    MutexLock lock(mutex_);
    for (auto it = timers_.begin(); it != timers_.end();) {
      if (it->second.first > now) {
        ++it;
        continue;
      }
      due.emplace_back(it->second.second, it->first.second);
      it = timers_.erase(it);
    }
  }
  for (const auto& [database, timer] : due) due_(database, timer);
}

}  // namespace sluice::fuse
