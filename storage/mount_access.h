// How storage reaches database files: through the node's own mount (where SQLite's locks live) and directly in the
// backing tree. The implementation is fuse/client_locks; tests use a plain directory, where both are the same file.
#pragma once

#include <cstdint>
#include <string>

#include "base/descriptor_store.h"
#include "base/errors.h"
#include "base/fd.h"

namespace sluice::storage {

/// Paths are relative to the mount ("tenants/42.db"). Thread-safe. Every call but open_backing may issue FUSE requests:
/// never from a FUSE handler thread, never with a database's commit lock held.
class MountAccess {
 public:
  virtual ~MountAccess() = default;
  /// open(2) through the mount, with rights that clients do not have (a replica's files are read-only for them).
  /// O_CLOEXEC is added.
  virtual Result<UniqueFd> open(const std::string& path, int flags, unsigned mode = 0644) = 0;
  /// open(2) in the backing tree.
  virtual Result<UniqueFd> open_backing(const std::string& path, int flags, unsigned mode = 0644) = 0;
  /// ftruncate(2) of a descriptor from open(): the only way to change the size of a file that clients have open.
  virtual Result<void> truncate(int mount_fd, std::uint64_t size) = 0;
  /// Drops the kernel's cached pages [offset, offset + length) and attributes of a plain (not passthrough) file, and
  /// returns when that is done. length 0: to the end. A file nobody has looked up is no error.
  virtual void invalidate(const std::string& path, std::uint64_t offset, std::uint64_t length) = 0;
  /// Forgets the cached directory entry (also a negative one), after the backing tree was changed beside the mount.
  virtual void invalidate_entry(const std::string& path) = 0;
  /// Where descriptors from open() can outlive this process, with the locks on them; nullptr: they cannot.
  virtual DescriptorStore* descriptors() { return nullptr; }
  /// Absolute path of `path` in the backing tree.
  virtual std::string backing_path(const std::string& path) const = 0;
  /// -wal and -shm are passthrough: what clients have mapped is the page cache of the backing files. False: it is the page
  /// cache of the mount, and only what is read and written through the mount agrees with it (descriptors from open(); a
  /// mapping never, a process cannot be killed while it maps a mount that it serves itself).
  virtual bool passthrough() const = 0;
};

/// Open-file-description lock (F_OFD_SETLK / F_OFD_SETLKW polled until `deadline_ms`); conflicts with SQLite's POSIX
/// locks on the same inode. `type`: F_RDLCK, F_WRLCK, F_UNLCK. Errc::busy when held by somebody else.
Result<void> ofd_lock(int fd, short type, std::uint64_t start, std::uint64_t length);
Result<void> ofd_lock_wait(int fd, short type, std::uint64_t start, std::uint64_t length, int deadline_ms);
/// Does anyone else hold a lock on the range that conflicts with a write lock? (F_OFD_GETLK; no FUSE request.)
Result<bool> ofd_is_locked(int fd, std::uint64_t start, std::uint64_t length);
/// Process ids that hold conflicting locks on the file's range (from /proc/locks), for messages.
std::string lock_holders(int fd, std::uint64_t start, std::uint64_t length);

}  // namespace sluice::storage
