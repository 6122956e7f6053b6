// Calls back for each database some time after its last change.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <thread>

#include "base/mutex.h"

namespace sluice::storage::apply {

/// Thread-safe. One thread of its own, asleep while nothing is due.
class IdleTimer {
 public:
  /// `callback` must not block for long.
  IdleTimer(int idle_ms, std::function<void(const std::string& name)> callback);
  ~IdleTimer();

  /// `name` changed: call back idle_ms after the last call. Cheap: no wakeup while one is pending.
  void touch(const std::string& name) EXCLUDES(mutex_);
  /// Call back once in `delay_ms`, unless it changes before.
  void again(const std::string& name, int delay_ms) EXCLUDES(mutex_);
  /// No callback runs after it returns. Idempotent; not from the callback.
  void stop() EXCLUDES(mutex_);

 private:
  using Time = std::chrono::steady_clock::time_point;
  void run() EXCLUDES(mutex_);

  const std::chrono::milliseconds idle_;
  const std::function<void(const std::string&)> callback_;
  Mutex mutex_;
  CondVar wake_;
  std::map<std::string, Time> due_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

}  // namespace sluice::storage::apply
