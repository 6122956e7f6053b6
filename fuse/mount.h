// The mount: FUSE session, worker threads, inode table, passthrough, kernel invalidation, and the node's own way through
// it (MountAccess). DESIGN §2; facts on passthrough and locks stand in docs/ARCHITECTURE.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/descriptor_store.h"
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
  /// Hot takeover: where the connection and what goes with it outlive this process, and where start() looks for those of the
  /// process before. nullptr: the mount ends with the process.
  DescriptorStore* descriptors = nullptr;
  /// With takeover, just before requests are served: they may come from clients that have been connected all the time.
  std::function<Result<void>(storage::MountAccess&)> before_serving;
  std::string hidden_dir;  ///< with takeover: keeps files that were removed while open, on the backing tree's file system
};

/// For who watches a process that serves a mount with takeover: the part of the state that concerns it.
class MountPulse {
 public:
  /// Of the state kept as kTakeoverStateName.
  static Result<MountPulse> open(int state_fd);
  /// Grows while the process serves.
  std::uint64_t beats() const;
  /// The process crashed, or is killed because it hangs: the next one must beware of the requests that were being served.
  void suspect();

 private:
  explicit MountPulse(Mapping memory) : memory_(std::move(memory)) {}
  Mapping memory_;
};

/// Names in MountOptions::descriptors: the connection, and what is known of it.
inline constexpr const char* kConnectionName = "fuse";
inline constexpr const char* kTakeoverStateName = "takeover-state";

/// Thread-safe.
class Mount {
 public:
  /// Mounts and starts serving. Errc::unsupported: no /dev/fuse, no CAP_SYS_ADMIN, no passthrough for IoPath::native (the
  /// message says which and what to do); Errc::invalid_argument: mount point missing, not empty, inside the data directory, already a mount.
  /// `observer` and `virtual_files` must outlive the Mount. `pool` runs parked operations.
  static Result<std::unique_ptr<Mount>> start(const MountOptions& options, Observer& observer,
                                              VirtualFiles& virtual_files, ThreadPool& pool);
  virtual ~Mount() = default;

  /// Will start() take over from a process before?
  static bool takes_over(const DescriptorStore* descriptors);
  /// Could this program take over a connection whose state is in `state_fd`? Errc::unsupported says why not.
  static Result<void> check_takeover(int state_fd);
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
  /// With takeover: tells who watches that this process serves, unless requests wait and nobody takes one. To be called about
  /// every second, from one thread.
  virtual void beat() = 0;
  /// Called once, on a thread of the mount, when the session ended without stop(): somebody unmounted us.
  virtual void on_session_end(std::function<void()> callback) = 0;

  /// Contents of .primary, .lag or X-pos changed: drop what the kernel has cached of it.
  virtual void invalidate_virtual(const std::string& path) = 0;

  /// FUSE requests served since start, by opcode name (for metrics, tests and the benchmark).
  virtual std::map<std::string, std::uint64_t> request_counts() const = 0;
};

}  // namespace sluice::fuse
