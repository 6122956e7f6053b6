// What the mount's file operations mean to replication. The file system core (fuse/operations*) asks an Observer around
// every operation that can move a database's content; capture (primary) and the replica's write guard implement it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/function_ref.h"

namespace sluice::fuse {

/// Kind of a file, by name and content (DESIGN §2).
enum class FileKind {
  directory,
  plain,          ///< kept locally, not replicated
  database,       ///< begins with SQLite's magic, or is empty and SQLite has created X-journal / X-wal beside it
  journal,        ///< X-journal beside a regular file X
  wal,            ///< X-wal beside a regular file X: passthrough
  shm,            ///< X-shm beside a regular file X: passthrough
  super_journal,  ///< X-mjHHHHHHHHH (SQLite's name for the journal of a multi-database transaction)
  virtual_file,   ///< .primary, .lag, X-pos
};

enum class OpKind {
  write,     ///< offset, data
  truncate,  ///< size (also growing)
  fsync,
  unlink,
  rename,    ///< path -> new_path (files and directories; kinds of source; what is replaced is in replaced_kind)
  create,    ///< a new file, or one that the opener may create
  open,      ///< write_access says how
};

/// One operation. Paths are relative to the mount. `database` is the path of the database the file belongs to (itself
/// for a database; X for X-journal, X-wal, X-shm), empty for other kinds.
struct Op {
  OpKind kind{};
  FileKind file{};
  std::string_view path;
  std::string_view database;
  std::uint64_t offset = 0;
  ByteView data;
  std::uint64_t size = 0;
  std::string_view new_path;
  FileKind replaced_kind = FileKind::plain;
  bool replaces = false;      ///< rename: new_path existed
  bool write_access = false;  ///< open, create: O_WRONLY or O_RDWR
  bool write_only = false;    ///< open, create: O_WRONLY (cp, dd: never SQLite)
  bool unlinked = false;      ///< the file has no name any more; path is its last one
  bool own = false;           ///< issued by this process through its own mount (MountAccess)
};

/// Thread-safe; called on FUSE worker threads and on disk-pool threads, never with a lock of the core held.
class Observer {
 public:
  virtual ~Observer() = default;

  /// May run() be called on a FUSE worker now? False: run() would have to wait for another FUSE request; the core then calls it on the disk pool and answers from there.
  virtual bool can_run_inline(const Op& op) = 0;

  /// Runs the operation: does what must come before, calls `perform` (the system call on the backing file; returns 0 or an
  /// errno) at most once, does what must come after. Returns 0 or the errno to answer. Called for kinds: write,
  /// truncate, unlink of database/journal/wal/shm/super_journal; fsync of database/wal; rename where source or
  /// replaced file is one of these or a directory; create and open of all of these and of plain files (perform there is
  /// empty: the answer decides whether the open is allowed).
  virtual int run(const Op& op, FunctionRef<int()> perform) = 0;

  /// An open was answered / the last reference of an open file went away (asynchronous, after close() returned).
  /// `file` is the kind at that time; a plain file may have become a database while open.
  virtual void opened(const Op& op) = 0;
  virtual void released(const Op& op) = 0;

  /// May clients write to this node's databases (primary)? Decides the mode bits that getattr shows.
  virtual bool writable() const = 0;
  /// Does this node change the size of -wal or -shm files beside the mount (a replica's apply)? If not, the kernel may keep
  /// their attributes: it knows of every write through the mount, passthrough or not.
  virtual bool changes_side_files() const { return true; }
};

/// Contents of the virtual files; thread-safe, cheap unless said otherwise.
class VirtualFiles {
 public:
  virtual ~VirtualFiles() = default;
  /// ".primary": "host\n"; empty string: the file does not exist (this node is the primary, or none is known).
  virtual std::string primary() = 0;
  /// ".lag": 11 bytes, "%+010d\n" milliseconds; 0 on the primary, 2147483647 if never synchronised.
  virtual std::string lag() = 0;
  /// "X-pos": 34 bytes "TXID/checksum\n"; captures what is committed first (may block: called on the disk pool).
  /// Empty string: no such database.
  virtual std::string position(std::string_view database) = 0;
};

}  // namespace sluice::fuse
