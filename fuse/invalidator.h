// Tells the kernel to forget what it has cached. Notifications can wait for requests that are being served, so they run
// on a thread of their own or on a caller's that is no FUSE worker, and never with a lock held that a handler takes.
#pragma once

#include <cstdint>
#include <string_view>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "fuse/inode_table.h"

struct fuse_session;

namespace sluice::fuse {

/// Thread-safe.
class Invalidator {
 public:
  /// Before the session exists, and after stop(), every call does nothing.
  Invalidator() = default;
  ~Invalidator() { stop(); }

  void start(fuse_session* session) EXCLUDES(mutex_);
  void stop() EXCLUDES(mutex_);

  /// Synchronous: cached pages [offset, offset + length) and attributes; length 0 is "to the end".
  void inode(NodeId node, std::uint64_t offset, std::uint64_t length) EXCLUDES(mutex_);
  /// Synchronous: the directory entry, and the parent's cached listing.
  void entry(NodeId parent, std::string_view name) EXCLUDES(mutex_);
  /// From anywhere, also a handler: drop all that is cached of `node` (for a directory: its listing), soon. A node is at
  /// most once in the queue.
  void post(NodeId node) EXCLUDES(mutex_);

 private:
  class Use;
  void run();

  Mutex mutex_;
  CondVar changed_;
  fuse_session* session_ GUARDED_BY(mutex_) = nullptr;
  unsigned users_ GUARDED_BY(mutex_) = 0;  // calls that are using session_
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::vector<NodeId> posted_ GUARDED_BY(mutex_);
  std::thread thread_;
};

}  // namespace sluice::fuse
