// Counts tasks in flight, so that an object can wait for those it posted before it goes away.
#pragma once

#include "base/mutex.h"

namespace sluice::replication {

/// Thread-safe.
class TaskGate {
 public:
  /// False once closed: do not start the task.
  bool enter() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (closed_) return false;
    ++running_;
    return true;
  }
  void leave() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (--running_ == 0) idle_.notify_all();
  }
  void close() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    closed_ = true;
  }
  bool closed() const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return closed_;
  }
  /// Returns when every task that entered has left. Call close() first; the tasks end by themselves.
  void wait() EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    while (running_ != 0) idle_.wait(mutex_);
  }

 private:
  mutable Mutex mutex_;
  CondVar idle_;
  bool closed_ GUARDED_BY(mutex_) = false;
  std::size_t running_ GUARDED_BY(mutex_) = 0;
};

}  // namespace sluice::replication
