#include "storage/apply/idle_timer.h"

#include <algorithm>
#include <vector>

namespace sluice::storage::apply {
namespace {

// Woken at least this often, to keep every wait bounded.
constexpr auto kLongestSleep = std::chrono::seconds(60);

}  // namespace

IdleTimer::IdleTimer(int idle_ms, std::function<void(const std::string&)> callback)
    : idle_(idle_ms), callback_(std::move(callback)), thread_([this] { run(); }) {}

IdleTimer::~IdleTimer() { stop(); }

void IdleTimer::touch(const std::string& name) { again(name, static_cast<int>(idle_.count())); }

void IdleTimer::again(const std::string& name, int delay_ms) {
  const Time due = std::chrono::steady_clock::now() + std::chrono::milliseconds(delay_ms);
  MutexLock lock(mutex_);
  const bool asleep_for_good = due_.empty();
  due_[name] = due;
  if (asleep_for_good) wake_.notify_one();
}

void IdleTimer::stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void IdleTimer::run() {
  std::vector<std::string> ready;
  for (;;) {
    {
      MutexLock lock(mutex_);
      if (stopping_) return;
      const Time now = std::chrono::steady_clock::now();
      // An entry set while we sleep is never due before the sleep's end by more than the idle time: no wakeup for it.
      Time next = due_.empty() ? now + kLongestSleep : now + idle_;
      for (auto it = due_.begin(); it != due_.end();) {
        if (it->second <= now) {
          ready.push_back(it->first);
          it = due_.erase(it);
        } else {
          next = std::min(next, it->second);
          ++it;
        }
      }
      if (ready.empty()) wake_.wait_until(mutex_, next);
    }
    for (const std::string& name : ready) callback_(name);
    ready.clear();
  }
}

}  // namespace sluice::storage::apply
