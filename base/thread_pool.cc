#include "base/thread_pool.h"

#include <pthread.h>

#include <utility>

namespace sluice {

ThreadPool::ThreadPool(std::string name, std::size_t threads) : name_(std::move(name)) {
  for (std::size_t i = 0; i < threads; ++i) {
    threads_.emplace_back([this] { run(); });
    pthread_setname_np(threads_.back().native_handle(), name_.substr(0, 15).c_str());
  }
}

ThreadPool::~ThreadPool() { stop(); }

bool ThreadPool::post(std::function<void()> task) {
  {
    MutexLock lock(mutex_);
    if (stopping_) return false;
    queue_.push_back(std::move(task));
  }
  wake_.notify_one();
  return true;
}

void ThreadPool::stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  for (auto& thread : threads_)
    if (thread.joinable()) thread.join();
}

void ThreadPool::run() {
  for (;;) {
    std::function<void()> task;
    {
      MutexLock lock(mutex_);
      while (queue_.empty() && !stopping_) wake_.wait(mutex_);
      if (queue_.empty()) return;
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
  }
}

std::shared_ptr<SerialQueue> SerialQueue::create(ThreadPool& pool) {
  return std::shared_ptr<SerialQueue>(new SerialQueue(pool));
}

bool SerialQueue::post(std::function<void()> task) {
  {
    MutexLock lock(mutex_);
    queue_.push_back(std::move(task));
    if (running_) return true;
    running_ = true;
  }
  if (pool_.post([self = shared_from_this()] { self->run_one(); })) return true;
  MutexLock lock(mutex_);
  running_ = false;
  queue_.clear();
  return false;
}

void SerialQueue::run_one() {
  for (;;) {
    std::function<void()> task;
    {
      MutexLock lock(mutex_);
      task = std::move(queue_.front());
      queue_.pop_front();
    }
    task();
    task = nullptr;
    {
      MutexLock lock(mutex_);
      if (queue_.empty()) {
        running_ = false;
        return;
      }
    }
    // Back of the pool's queue, so that one busy database does not starve the others. A pool that is stopping runs what was
    // accepted: then right here.
    if (pool_.post([self = shared_from_this()] { self->run_one(); })) return;
  }
}

}  // namespace sluice
