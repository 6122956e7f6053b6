// Bounds how many resources of a kind (file descriptors, mappings) are open at a time: who opens one more than the limit closes
// one that was not used lately. What was closed opens again when it is used next.
//
//   user                                   whoever opens one too many (pool mutex, the member's mutex by try)
//   users_++                               open_ = false
//   open_?  yes: use it                    users_ != 0?  yes: open_ = true, another one
//           no: wait for the mutex, open   close()
//
// One of the two sees the other: both sides are sequentially consistent.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/errors.h"
#include "base/mutex.h"

namespace sluice {

class ResourcePool;

/// One resource. Thread-safe. Lock order: a member's mutex, then the pool's.
class PooledResource {
 public:
  explicit PooledResource(ResourcePool& pool) : pool_(pool) {}
  PooledResource(const PooledResource&) = delete;
  PooledResource& operator=(const PooledResource&) = delete;

 protected:
  /// The deriving class calls leave_pool() in its own destructor.
  virtual ~PooledResource() = default;
  /// Opens the resource if it is closed and keeps it open until release(). An error needs no release().
  Result<void> acquire() EXCLUDES(mutex_);
  void release() { users_.fetch_sub(1, std::memory_order_release); }
  /// It is open already: counts it, and closes others if that is one too many.
  void join_pool() EXCLUDES(mutex_);
  void leave_pool();

  virtual Result<void> open_resource() = 0;
  /// Called while nobody uses it. False: it must stay open; nothing was done.
  virtual bool close_resource() = 0;

 private:
  friend class ResourcePool;
  ResourcePool& pool_;
  Mutex mutex_;  ///< opening; held over file I/O
  std::atomic<bool> open_{false};
  std::atomic<std::uint32_t> users_{0};
  std::atomic<bool> used_lately_{false};
  bool counted_ = false;  ///< this and the place: the pool's mutex
  std::size_t place_ = 0;
};

/// Thread-safe. Outlives its members.
class ResourcePool {
 public:
  explicit ResourcePool(std::size_t limit) : limit_(limit) {}
  virtual ~ResourcePool() = default;
  ResourcePool(const ResourcePool&) = delete;
  ResourcePool& operator=(const ResourcePool&) = delete;
  std::size_t limit() const { return limit_.load(); }
  /// Takes effect when the next one opens.
  void set_limit(std::size_t limit) { limit_.store(limit); }
  std::size_t open_count() const EXCLUDES(mutex_);
  /// Resources that were closed to make room, ever.
  std::uint64_t closed_count() const EXCLUDES(mutex_);

 protected:
  /// There are more than the limit and none of them can be closed. Without locks; true: try again.
  virtual bool make_closable() { return false; }
  /// Calls `visit` for every open member, under the pool's mutex.
  template <class Visit>
  void for_each_open(Visit visit) EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    for (PooledResource* const member : open_) visit(*member);
  }

 private:
  friend class PooledResource;
  void add(PooledResource& member) EXCLUDES(mutex_);
  void remove(PooledResource& member) EXCLUDES(mutex_);
  void forget(PooledResource& member) REQUIRES(mutex_);
  bool close_one() REQUIRES(mutex_);
  static bool close(PooledResource& member);

  std::atomic<std::size_t> limit_;
  mutable Mutex mutex_;
  std::vector<PooledResource*> open_ GUARDED_BY(mutex_);  ///< a ring; the hand goes round
  std::size_t hand_ GUARDED_BY(mutex_) = 0;
  std::uint64_t closed_ GUARDED_BY(mutex_) = 0;
};

}  // namespace sluice
