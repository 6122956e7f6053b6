// Who has a file of the backing tree open beside us. Processes of a mount that is gone hold -wal and -shm files through
// passthrough: they are in no one's descriptor table, but the kernel counts them.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/errors.h"

namespace sluice::fuse {

/// Anybody has it open, read-only and mappings included (a write lease is refused). A file that is not there, or on which
/// leases are not possible, counts as not held. Not while this process has it open.
bool is_held(const std::string& path);
/// Somebody has it open for writing in the backing tree itself (not through a mount).
bool is_written_directly(const std::string& path);

struct Holder {
  pid_t pid = 0;
  std::string command;
};
/// "1234 (sqlite3), 1240 (python3)"; "a process that cannot be seen from here" if empty.
std::string to_string(const std::vector<Holder>& holders);

/// A file as processes see it: the name that it had in the mount, and the inode number, which is the mount's and the
/// backing file's.
struct FileIdentity {
  std::string base_name;
  ino_t ino = 0;
};
/// For each of the files: the processes that have it open, in the order of their ids, from /proc.
std::vector<std::vector<Holder>> find_holders(const std::vector<FileIdentity>& files);

/// SQLite's locks on a -shm file of a mount that is gone: they are the kernel's, and live on.
struct ShmLocks {
  bool connected = false;  ///< DMS: somebody uses this wal-index
  bool writing = false;    ///< WRITE: somebody is in a write transaction
};
/// By the file's inode number, from /proc/locks. Processes in other pid namespaces are not seen.
ShmLocks shm_locks(ino_t ino);

/// Can a file be made immutable there, so that writes fail even on descriptors that are open? Errc::unsupported says why not.
Result<void> can_be_immutable(const std::string& directory);
Result<void> set_immutable(const std::string& path, bool immutable);

}  // namespace sluice::fuse
