#include "base/resource_pool.h"

#include <algorithm>

namespace sluice {

Result<void> PooledResource::acquire() {
  users_.fetch_add(1);
  used_lately_.store(true, std::memory_order_relaxed);
  if (open_.load()) return {};
  {
    MutexLock lock(mutex_);
    if (open_.load()) return {};
    Result<void> opened = open_resource();
    if (opened.has_error()) {
      release();
      return opened;
    }
    open_.store(true);
  }
  pool_.add(*this);
  return {};
}

void PooledResource::join_pool() {
  users_.fetch_add(1);
  open_.store(true);
  used_lately_.store(true, std::memory_order_relaxed);
  pool_.add(*this);
  release();
}

void PooledResource::leave_pool() { pool_.remove(*this); }

std::size_t ResourcePool::open_count() const {
  MutexLock lock(mutex_);
  return open_.size();
}

std::uint64_t ResourcePool::closed_count() const {
  MutexLock lock(mutex_);
  return closed_;
}

void ResourcePool::add(PooledResource& member) {
  bool short_of = false;
  {
    MutexLock lock(mutex_);
    if (!member.counted_) {
      member.counted_ = true;
      member.place_ = open_.size();
      open_.push_back(&member);
    }
    while (open_.size() > limit_.load()) {
      if (close_one()) continue;
      short_of = true;
      break;
    }
  }
  if (!short_of || !make_closable()) return;
  MutexLock lock(mutex_);
  while (open_.size() > limit_.load() && close_one()) {
  }
}

void ResourcePool::remove(PooledResource& member) {
  MutexLock lock(mutex_);
  if (member.counted_) forget(member);
}

void ResourcePool::forget(PooledResource& member) {
  open_[member.place_] = open_.back();
  open_[member.place_]->place_ = member.place_;
  open_.pop_back();
  member.counted_ = false;
}

// Second chance: what was used since the hand came by is passed once.
bool ResourcePool::close_one() {
  for (std::size_t left = 2 * open_.size(); left > 0; --left) {
    if (hand_ >= open_.size()) hand_ = 0;
    PooledResource& member = *open_[hand_];
    if (member.users_.load() == 0 && !member.used_lately_.exchange(false) && close(member)) {
      forget(member);
      ++closed_;
      return true;
    }
    ++hand_;
  }
  return false;
}

bool ResourcePool::close(PooledResource& member) {
  // Only tried: it is held over file I/O, and nothing waits for that here.
  if (!member.mutex_.try_lock()) return false;
  member.open_.store(false);
  const bool closed = member.users_.load() == 0 && member.close_resource();
  if (!closed) member.open_.store(true);
  member.mutex_.unlock();
  return closed;
}

}  // namespace sluice
