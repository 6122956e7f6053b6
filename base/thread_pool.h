// The disk pool: threads for file work, and per-key serial queues on top of it.
#pragma once

#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace sluice {

/// A fixed number of threads that run tasks in the order they were posted. Thread-safe. Tasks must not throw.
class ThreadPool {
 public:
  /// `name` becomes the threads' name (15 characters at most).
  ThreadPool(std::string name, std::size_t threads);
  /// Calls stop().
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  /// False after stop(): the task was dropped. The queue is bounded by its users (each object keeps at most a few tasks
  /// in flight), not here.
  bool post(std::function<void()> task) EXCLUDES(mutex_);
  /// Runs what is queued, then joins the threads. Idempotent. Not from a pool thread.
  void stop() EXCLUDES(mutex_);

 private:
  void run();

  const std::string name_;
  Mutex mutex_;
  CondVar wake_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mutex_);
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

/// Runs its tasks one after the other on a pool, whichever thread that is. Thread-safe. Must be held by shared_ptr:
/// tasks in flight keep it alive.
class SerialQueue : public std::enable_shared_from_this<SerialQueue> {
 public:
  static std::shared_ptr<SerialQueue> create(ThreadPool& pool);
  bool post(std::function<void()> task) EXCLUDES(mutex_);

 private:
  explicit SerialQueue(ThreadPool& pool) : pool_(pool) {}
  void run_one();

  ThreadPool& pool_;
  Mutex mutex_;
  std::deque<std::function<void()>> queue_ GUARDED_BY(mutex_);
  bool running_ GUARDED_BY(mutex_) = false;
};

}  // namespace sluice
