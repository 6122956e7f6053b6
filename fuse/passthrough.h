// FUSE passthrough by hand: libfuse 3.14 has no call for it (3.17 does). Three parts: asking for it in the INIT exchange,
// registering a backing file, and the answer to OPEN (fuse/request.h).
#pragma once

#include <sys/uio.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/errors.h"

namespace sluice::fuse {

/// Watches the INIT exchange in the session's read and write hooks and adds what libfuse leaves out. Thread-safe; only
/// the first INIT counts.
class InitPatch {
 public:
  /// `stack_depth`: 1, or 2 when the backing directory is itself on a stacked file system (overlayfs); 0: the plain path,
  /// passthrough is not asked for.
  explicit InitPatch(unsigned stack_depth) : stack_depth_(stack_depth) {}

  /// A message as the kernel sent it. Cheap for everything but INIT.
  void on_request(const void* message, std::size_t size);
  /// A reply about to be written: patched in place if it answers INIT. True for that one, once.
  bool on_reply(const iovec* parts, int count);
  /// After the INIT request: did the kernel offer passthrough?
  bool offered() const { return offered_.load(std::memory_order_acquire); }
  /// … and FUSE_NOTIFY_RESEND?
  bool can_resend() const { return can_resend_.load(std::memory_order_acquire); }

 private:
  const unsigned stack_depth_;
  std::atomic<std::uint64_t> init_unique_{0};
  std::atomic<bool> seen_{false};
  std::atomic<bool> offered_{false};
  std::atomic<bool> can_resend_{false};
};

/// Registers `backing_fd` with the connection `device_fd`: a positive id for the answer to OPEN.
/// Errc::unsupported: no CAP_SYS_ADMIN, or a file system that cannot be stacked on.
Result<int> open_backing_id(int device_fd, int backing_fd);
/// Forgets an id. The kernel keeps the file for the opens that use it.
void close_backing_id(int device_fd, int backing_id);

/// Needed stack depth for files in `directory_fd`: 1, or 2 on overlayfs.
unsigned required_stack_depth(int directory_fd);

}  // namespace sluice::fuse
