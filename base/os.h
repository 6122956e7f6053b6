// File operations behind an interface, so that tests can fail, record and replay them. Everything Sluice itself keeps
// on disk (change log, page checksums, recovery) goes through here.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/fd.h"

namespace sluice {

/// An open file. Reads and writes at explicit offsets are thread-safe, as the system calls are.
class File {
 public:
  virtual ~File() = default;
  /// Fills as much of `out` as the file has; the number of bytes read is short only at the end of the file.
  virtual Result<std::size_t> read_at(std::uint64_t offset, ByteSpan out) const = 0;
  /// Writes all of `data`, or fails (part of it may then be there).
  virtual Result<void> write_at(std::uint64_t offset, ByteView data) = 0;
  /// fdatasync. After a failure the file's dirty pages are in an unknown state: never retry it into success.
  virtual Result<void> sync_data() = 0;
  /// Hints, which may do nothing: begin to write these bytes to the disk, without waiting (length 0: to the end); they will not be
  /// read soon, the page cache need not keep what is on the disk already.
  virtual void start_writeback(std::uint64_t /*offset*/, std::uint64_t /*length*/) {}
  virtual void forget_cached(std::uint64_t /*offset*/, std::uint64_t /*length*/) {}
  virtual Result<void> truncate(std::uint64_t size) = 0;
  virtual Result<std::uint64_t> size() const = 0;
  /// Shared mapping of [0, length), read-write if the file is open for writing.
  virtual Result<Mapping> map_shared(std::size_t length) = 0;
  /// Stores through a mapping changed the file; what is not synced yet must not be forgotten (see real_file_system()).
  virtual void changed_through_mapping() {}
  /// The descriptor, for locks and fstat only; from then on it stays open.
  virtual int fd() const = 0;
  virtual const std::string& path() const = 0;
};

struct OpenMode {
  bool write = false;
  bool create = false;     ///< create if missing (0644)
  bool exclusive = false;  ///< with create: fail if it exists
};

struct DirEntry {
  std::string name;
  bool is_directory = false;
};

/// Thread-safe.
class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) = 0;
  virtual Result<void> rename(const std::string& from, const std::string& to) = 0;
  virtual Result<void> unlink(const std::string& path) = 0;
  virtual Result<void> remove_directory(const std::string& path) = 0;
  virtual Result<bool> exists(const std::string& path) = 0;
  /// mkdir -p
  virtual Result<void> make_directories(const std::string& path) = 0;
  /// Entries without "." and "..", in no order.
  virtual Result<std::vector<DirEntry>> list(const std::string& path) = 0;
  /// fsync of the directory: makes creations, renames and removals in it durable.
  virtual Result<void> sync_directory(const std::string& path) = 0;
  /// syncfs: makes everything in the file system that `path` is in durable. Errc::unsupported: not known to this one; sync file
  /// by file.
  virtual Result<void> sync_everything(const std::string& path) {
    return make_error(Errc::unsupported, "sync of the whole file system of " + path);
  }
};

/// The machine's file system. Lives for the whole process. Its files share a bounded number of descriptors: one that was not used
/// lately is closed and opened again by its name when it is next used, which fails with Errc::not_found if the name has gone or leads
/// to another file by then. Never closed: what has changes that were not synced (a failed write to the disk would be forgotten
/// with the descriptor), what has lost its name already, what fd() was asked for.
FileSystem& real_file_system();
/// That number. At the start a quarter of RLIMIT_NOFILE, at most 1024.
void set_open_file_limit(std::size_t limit);
std::size_t open_file_count();

/// The whole file; Errc::too_large over `limit_bytes`.
Result<Bytes> read_file(FileSystem& fs, const std::string& path, std::uint64_t limit_bytes);
/// Replaces `path` so that after a crash it has the old or the new content: temporary file, fdatasync, rename, directory
/// sync.
Result<void> write_file_atomically(FileSystem& fs, const std::string& path, ByteView data);
/// Part of `path` before its last '/', or "." / "/".
std::string parent_directory(const std::string& path);

}  // namespace sluice
