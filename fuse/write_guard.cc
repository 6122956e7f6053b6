#include "fuse/write_guard.h"

#include <cerrno>

namespace sluice::fuse {
namespace {

bool is_database_file(FileKind kind) {
  return kind == FileKind::database || kind == FileKind::journal || kind == FileKind::wal ||
         kind == FileKind::shm;
}

}  // namespace

int WriteGuard::run(const Op& op, FunctionRef<int()> perform) {
  if (!op.own) {
    if (const int err = refuse(op)) return err;
  }
  return perform();
}

int WriteGuard::refuse(const Op& op) const {
  switch (op.kind) {
    case OpKind::open:
    case OpKind::create:
      return refuse_open(op);
    case OpKind::rename:
      return refuse_rename(op);
    case OpKind::fsync:
      return 0;
    case OpKind::unlink:
      if (op.file == FileKind::database && !options_.is_replicated(op.path)) return 0;
      return is_database_file(op.file) && options_.is_replicated(op.database) ? EROFS : 0;
    case OpKind::write:
      // Journals and WALs could only have been opened before this node became a replica.
      if (op.file == FileKind::shm) return 0;
      return is_database_file(op.file) || op.file == FileKind::super_journal ? EROFS : 0;
    case OpKind::truncate:
      // SQLite sizes the wal-index by ftruncate; it is the readers' as much as ours.
      if (op.file == FileKind::shm) return 0;
      return is_database_file(op.file) || op.file == FileKind::super_journal ? EROFS : 0;
  }
  return EROFS;
}

int WriteGuard::refuse_open(const Op& op) const {
  if (is_database_file(op.file) && !serving_) return EAGAIN;
  switch (op.file) {
    case FileKind::database:
      // SQLite opens it read-only then, and says "attempt to write a readonly database" at the first write.
      return op.write_access && !options_.allow_write_opens ? EROFS : 0;
    case FileKind::wal:
      // A WAL is passthrough: a writer of it would not be seen. Existing ones SQLite then opens read-only
      // (EACCES, not EROFS: unixOpen's way to tell). With write opens the node's WRITE lock keeps SQLite from
      // writing.
      if (!op.write_access) return 0;
      return op.kind == OpKind::open && options_.allow_write_opens && !op.write_only ? 0 : EACCES;
    case FileKind::journal:
    case FileKind::super_journal:
      return op.write_access || op.kind == OpKind::create ? EACCES : 0;
    case FileKind::shm:
    case FileKind::plain:
    case FileKind::directory:
    case FileKind::virtual_file:
      return 0;
  }
  return 0;
}

int WriteGuard::refuse_rename(const Op& op) const {
  if (op.file == FileKind::directory) return options_.has_replicated_below(op.path) ? EROFS : 0;
  if (is_database_file(op.file) && options_.is_replicated(op.database)) return EROFS;
  if (op.replaces && is_database_file(op.replaced_kind) && options_.is_replicated(op.new_path)) return EROFS;
  // X-wal, X-shm, X-journal of a replicated database: no name to take over.
  if (op.replaces && op.replaced_kind != FileKind::database && is_database_file(op.replaced_kind))
    return EROFS;
  return 0;
}

}  // namespace sluice::fuse
