// Which threads of this process are inside a call through our own mount. The kernel stamps every request with the
// calling thread's id, so a handler can tell the node's own accesses from its clients'.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "base/mutex.h"

namespace sluice::fuse {

/// Thread-safe.
class OwnThreads {
 public:
  bool contains(pid_t thread_id) const EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return std::find(ids_.begin(), ids_.end(), thread_id) != ids_.end();
  }

  /// Marks the calling thread while it lives. Not nested.
  class Scope {
   public:
    explicit Scope(OwnThreads& threads) : threads_(threads), id_(::gettid()) {
      MutexLock lock(threads_.mutex_);
      threads_.ids_.push_back(id_);
    }
    ~Scope() {
      MutexLock lock(threads_.mutex_);
      threads_.ids_.erase(std::find(threads_.ids_.begin(), threads_.ids_.end(), id_));
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    OwnThreads& threads_;
    const pid_t id_;
  };

 private:
  mutable Mutex mutex_;
  std::vector<pid_t> ids_ GUARDED_BY(mutex_);
};

}  // namespace sluice::fuse
