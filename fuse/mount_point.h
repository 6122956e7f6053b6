// The mount point: checking it, mounting, unmounting, and finding out who keeps it busy.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/errors.h"
#include "base/fd.h"

namespace sluice::fuse {

/// Without symbolic links, as the kernel names it. Asks nothing of what is mounted there.
Result<std::string> resolve_mount_point(const std::string& path);

/// Checks what must hold before mounting and returns the absolute path. A mount of ours whose node is dead is detached.
/// Errc::invalid_argument: missing, no directory, not empty, a live mount of ours, or nested with `backing_dir` (absolute).
Result<std::string> check_mount_point(const std::string& path, const std::string& backing_dir);

/// Detaches the mount at `path` if it is ours and its node is dead: it can do nothing but keep files of the data directory
/// open. Errc::invalid_argument: a dead mount of somebody else.
Result<void> detach_if_dead(const std::string& path);

/// Opens /dev/fuse and mounts it at `path`; the returned descriptor is the connection. Users without CAP_SYS_ADMIN have
/// fusermount3 do it (fusermount.h). Errc::unsupported: no /dev/fuse, no rights, no fusermount3.
Result<UniqueFd> mount_fuse(const std::string& path, bool allow_other);

/// Device number of our mount at `path` (absolute). Asks the kernel, not the mount.
Result<dev_t> device_of(const std::string& path);

/// umount(2) if `device` is what is mounted at `path` (nothing to do otherwise). Errc::busy while files are open.
Result<void> unmount(const std::string& path, dev_t device, bool detach);

/// The kernel's switch for the connection (fusectl): a "1" written to it aborts, also later and from another process, and
/// never a connection that has the same number after ours is gone.
Result<UniqueFd> open_abort_file(dev_t device);
/// Cuts the connection: every request in the kernel fails, workers' reads end. False if the kernel gave no way to.
bool abort_connection(dev_t device);

/// "1234 (sqlite3), 1240 (bash)": processes with files, mappings, working or root directories in the mount; empty if none.
std::string mount_users(const std::string& path, dev_t device);

}  // namespace sluice::fuse
