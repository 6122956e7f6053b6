// CapturedDatabase: what must be on disk before a change set leaves the node (I2), and what happens when that fails.
#include <algorithm>

#include "base/log.h"
#include "fuse/capture/captured_database.h"

namespace sluice::fuse {

// Anything a gate refuses for a reason that will not go away by itself stops the database: applications get EIO, nothing is
// captured wrongly, status and log say why.
Result<void> CapturedDatabase::fail(Error error) {
  failed_ = true;
  failure_ = error.message;
  database_->set_fault(error.message);
  LOG_ERROR("{}: stopped: {}; restart the node after the cause is gone", name(), error.message);
  return error;
}

// After a failed sync the kernel counts what it could not write as clean: a second sync succeeds, and so would the next start,
// from the page cache. The file on disk tells that start to write everything again.
Result<void> CapturedDatabase::fail_sync(Error error) {
  if (failed_) return error;
  FileSystem& fs = context_.store.fs();
  auto noted = fs.open(sync_failed_path(), {.write = true, .create = true});
  Result<void> durable = noted.has_error() ? Result<void>(noted.error()) : fs.sync_directory(context_.store.tmp_dir());
  if (durable.has_error()) LOG_ERROR("{}: {}", name(), durable.error().message);
  error.message += "; the disk may lack what was written (see the kernel's log)";
  return fail(std::move(error));
}

std::string CapturedDatabase::sync_failed_path() const {
  return context_.store.tmp_dir() + "/" + std::string(storage::kSyncFailedInTmp) + storage::escape_name(name());
}

bool CapturedDatabase::wal_durable() const {
  return !wal_.holds_captured() || wal_.position() == durable_captured_ || wal_.position() == durable_end();
}

sqlite::WalPosition CapturedDatabase::durable_end() const {
  MutexLock lock(sync_mutex_);
  return durable_end_;
}

void CapturedDatabase::set_durable_end(const sqlite::WalPosition& end) {
  MutexLock lock(sync_mutex_);
  durable_end_ = end;
}

struct CapturedDatabase::Unsynced {
  std::shared_ptr<File> wal;
  std::shared_ptr<File> file;
  bool names = false;
  bool ancestors = false;
  bool journal = false;
  bool marker = false;
  sqlite::WalPosition position;
  std::uint64_t file_changes = 0;
  NameChanges changes;
  Txid captured;  ///< more may be captured, and appended to the log, while the files are being synced
};

CapturedDatabase::Unsynced CapturedDatabase::take_unsynced() NO_THREAD_SAFETY_ANALYSIS {
  Unsynced unsynced;
  unsynced.captured = database_->pos().txid;
  unsynced.position = wal_.position();
  unsynced.file_changes = file_changes_;
  if (!wal_durable()) unsynced.wal = wal_.wal_file();
  if (file_captured_ && file_changes_synced_ < file_changes_) unsynced.file = file_;
  unsynced.changes = changes_;
  unsynced.names = changes_synced_.names != changes_.names;
  unsynced.ancestors = changes_synced_.ancestors != changes_.ancestors;
  unsynced.journal = changes_synced_.journal_ends != changes_.journal_ends;
  unsynced.marker = marker_on_disk_ && !unjournaled_;
  return unsynced;
}

Result<void> CapturedDatabase::sync_files(const Unsynced& unsynced) {
  if (unsynced.wal != nullptr) TRY(unsynced.wal->sync_data());
  if (unsynced.file != nullptr) TRY(unsynced.file->sync_data());
  if (unsynced.journal) {
    TRY_ASSIGN(const std::shared_ptr<File> journal, open_backing("-journal"));
    if (journal != nullptr) TRY(journal->sync_data());
  }
  return unsynced.names || unsynced.ancestors ? sync_names(unsynced.ancestors) : Result<void>();
}

// SQLite syncs the directory after it has created a journal or a WAL and synced it, and after removing one only with
// synchronous=EXTRA: a loss of power can bring a journal back, and SQLite rolls back by it, or take a WAL away, whole.
Result<void> CapturedDatabase::sync_names(bool ancestors) {
  const std::string root = context_.store.fs_dir();
  for (std::string path = parent_directory(context_.store.backing_path(name()));; path = parent_directory(path)) {
    const Result<void> synced = context_.store.fs().sync_directory(path);
    // Removed or renamed meanwhile, with all that was in it.
    if (synced.has_error() && synced.error().code != Errc::not_found) return synced;
    if (!ancestors || path.size() <= root.size()) return {};
  }
}

// I2, durable before ship: first the files that hold what was captured, then the log, then the replicas are told.
Result<void> CapturedDatabase::make_durable() {
  Unsynced unsynced;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return make_error(Errc::io, failure_);
    unsynced = take_unsynced();
  }
  const Result<void> files = sync_files(unsynced);
  const Result<void> synced = files.has_error() ? files : database_->sync(unsynced.captured);
  MutexLock lock(database_->commit_mutex());
  if (files.has_error()) return fail_sync(files.error());
  if (synced.has_error()) return fail(synced.error());
  if (unsynced.wal != nullptr) durable_captured_ = unsynced.position;
  if (unsynced.file != nullptr) file_changes_synced_ = std::max(file_changes_synced_, unsynced.file_changes);
  changes_synced_.names = std::max(changes_synced_.names, unsynced.changes.names);
  changes_synced_.ancestors = std::max(changes_synced_.ancestors, unsynced.changes.ancestors);
  changes_synced_.journal_ends = std::max(changes_synced_.journal_ends, unsynced.changes.journal_ends);
  if (database_->pos().txid == unsynced.captured) file_captured_ = false;
  if (unsynced.marker && !unjournaled_) TRY(drop_marker());
  return {};
}

// Nobody is connected. What a failed sync lost is still in the page cache, unless the machine was restarted: writing it again makes
// the kernel try again, and this time the result counts.
Result<void> CapturedDatabase::rewrite_after_failed_sync() {
  constexpr std::size_t kPiece = std::size_t{1} << 20;
  Bytes piece(kPiece);
  for (const char* suffix : {"", "-wal", "-journal"}) {
    const std::string path = context_.store.backing_path(name()) + suffix;
    TRY_ASSIGN(const bool exists, context_.store.fs().exists(path));
    if (!exists) continue;
    TRY_ASSIGN(const auto file, context_.store.fs().open(path, {.write = true}));
    for (std::uint64_t at = 0;;) {
      TRY_ASSIGN(const std::size_t n, file->read_at(at, piece));
      if (n == 0) break;
      TRY(file->write_at(at, ByteView(piece).first(n)));
      at += n;
    }
    TRY(file->sync_data());
  }
  return sync_names(true);
}

}  // namespace sluice::fuse
