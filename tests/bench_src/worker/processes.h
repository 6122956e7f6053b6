// Helper processes of a worker: forked, kept in step by barriers in shared memory, ended with the worker.
#pragma once

#include <pthread.h>
#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <vector>

namespace sluice::bench {

/// In a helper: ends the worker too, so that nobody waits for it. Else nothing.
void end_parent_of_helper();

/// Zeroed memory that forked processes share; unmapped at the end.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t size);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  template <typename T>
  T* as() const { return static_cast<T*>(address_); }

 private:
  void* address_;
  std::size_t size_;
};

/// All processes of a worker meet here. Copy-free: lives in SharedMemory.
class Barrier {
 public:
  explicit Barrier(unsigned processes);
  void wait();

 private:
  SharedMemory memory_;
};

/// Forked processes that each ran one function; waits for them at the end and fails if one failed.
class Helpers {
 public:
  Helpers() = default;
  ~Helpers();
  Helpers(const Helpers&) = delete;
  Helpers& operator=(const Helpers&) = delete;
  /// Call before any SQLite handle is open: they must not cross a fork.
  void start(const std::function<void()>& body);

 private:
  std::vector<pid_t> pids_;
};

}  // namespace sluice::bench
