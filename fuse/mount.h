// The mount: FUSE session, worker threads, inode table, passthrough, kernel invalidation, and the node's own way through
// it (MountAccess). DESIGN §2; facts on passthrough and locks stand in docs/ARCHITECTURE.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/errors.h"
#include "base/fd.h"
#include "base/thread_pool.h"
#include "fuse/io_path.h"
#include "fuse/observer.h"
#include "storage/mount_access.h"

namespace sluice::fuse {


struct MountOptions {
  std::string mountpoint;  ///< existing, empty directory
  std::string backing_dir;
  bool allow_other = false;
  IoPath io = IoPath::native;
  unsigned threads = 16;  ///< most FUSE workers
};

/// Thread-safe.
class Mount {
 public:
  /// Mounts and starts serving. Errc::unsupported: no /dev/fuse, no CAP_SYS_ADMIN, no passthrough for IoPath::native (the
  /// message says which and what to do); Errc::invalid_argument: mount point missing, not empty, inside the data directory, already a mount.
  /// `observer` and `virtual_files` must outlive the Mount. `pool` runs parked operations.
  static Result<std::unique_ptr<Mount>> start(const MountOptions& options, Observer& observer,
                                              VirtualFiles& virtual_files, ThreadPool& pool);
  virtual ~Mount() = default;

  /// Takes away what a node that died left mounted there, with the files it keeps open. Call it before looking for processes
  /// that still use the data directory; start() does it, too.
  static Result<void> clear_mount_point(const std::string& mountpoint);

  virtual storage::MountAccess& access() = 0;
  /// native or plain.
  virtual IoPath io_path() const = 0;

  /// Unmounts. While clients have files open the mount point is busy: waits up to `wait_ms` (logging who), then detaches it
  /// (MNT_DETACH) and answers what still comes with ENODEV after stopping. Idempotent.
  virtual Result<void> stop(int wait_ms) = 0;
  /// The switch that aborts the mount's connection from outside, see server/connection_watch.h.
  virtual Result<UniqueFd> open_abort_file() const = 0;
  /// Called once, on a thread of the mount, when the session ended without stop(): somebody unmounted us.
  virtual void on_session_end(std::function<void()> callback) = 0;

  /// Contents of .primary, .lag or X-pos changed: drop what the kernel has cached of it.
  virtual void invalidate_virtual(const std::string& path) = 0;

  /// FUSE requests served since start, by opcode name (for metrics, tests and the benchmark).
  virtual std::map<std::string, std::uint64_t> request_counts() const = 0;
};

}  // namespace sluice::fuse
