// The backing directory: every system call the mount makes on it, relative to one directory descriptor. Paths are
// relative to the mount, "" is the root. Errors are errno values (they are what the kernel is answered with).
#pragma once

#include <sys/stat.h>
#include <sys/statvfs.h>

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/fd.h"

namespace sluice::fuse {

struct DirectoryEntry {
  std::string name;
  ino_t ino = 0;
  unsigned char type = 0;    ///< DT_…
  std::int64_t next = 0;     ///< where the listing goes on after this entry
};

/// Thread-safe.
class BackingTree {
 public:
  static Result<BackingTree> open(const std::string& directory);

  int fd() const { return root_.get(); }
  const std::string& directory() const { return directory_; }

  int stat(const std::string& path, struct stat& st) const;
  /// openat with O_CLOEXEC and O_NOFOLLOW.
  int open_file(const std::string& path, int flags, mode_t mode, UniqueFd& out) const;
  int make_directory(const std::string& path, mode_t mode) const;
  int make_symlink(const std::string& target, const std::string& path) const;
  int read_symlink(const std::string& path, std::string& target) const;
  int unlink(const std::string& path) const;
  int remove_directory(const std::string& path) const;
  int rename(const std::string& path, const std::string& new_path, unsigned flags) const;
  int chmod(const std::string& path, mode_t mode) const;
  int chown(const std::string& path, uid_t uid, gid_t gid) const;
  int set_times(const std::string& path, const timespec times[2]) const;
  int sync_directory(const std::string& path) const;
  int statfs(struct statvfs& st) const;
  /// Entries of a directory from position `from` (0: the beginning; else an entry's `next`), as many as one system call
  /// gives; none at the end.
  int list(const std::string& path, std::int64_t from, std::vector<DirectoryEntry>& out) const;

 private:
  BackingTree(UniqueFd root, std::string directory) : root_(std::move(root)), directory_(std::move(directory)) {}

  UniqueFd root_;
  std::string directory_;
};

/// pread / pwrite of everything; `done` tells how far it came.
int read_all(int fd, std::uint64_t offset, ByteSpan out, std::size_t& done);
int write_all(int fd, std::uint64_t offset, ByteView data, std::size_t& done);
/// Does the file begin with SQLite's magic?
bool file_has_magic(int fd);

}  // namespace sluice::fuse
