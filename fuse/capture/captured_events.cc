// CapturedDatabase: files coming and going, the tail, writes without a journal, start-up.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "fuse/capture/captured_database.h"
#include "storage/mount_access.h"
#include "storage/sqlite/freelist.h"
#include "storage/sqlite/journal.h"

namespace sluice::fuse {

void CapturedDatabase::opened(const Op& op) {
  MutexLock lock(database_->commit_mutex());
  if (op.file == FileKind::database && file_ == nullptr) {
    auto file = open_backing("");
    if (file.has_value()) file_ = *file;
    wal_.set_database_file(file_);
    ++changes_.ancestors;
  } else if (op.file == FileKind::wal && !wal_.has_wal()) {
    auto wal = open_backing("-wal");
    if (wal.has_value()) wal_.set_wal(*wal);
    ++changes_.names;
  } else if (op.file == FileKind::shm && !op.own) {
    if (!wal_.has_wal()) {
      auto wal = open_backing("-wal");
      if (wal.has_value()) wal_.set_wal(*wal);
      ++changes_.names;
    }
    if (!wal_.shm_present()) {
      ++shm_generation_;
      wal_.set_shm_present(true);
    }
  }
}

void CapturedDatabase::released(const Op& op) {
  if (op.file != FileKind::wal) return;
  // A process that died may leave a commit behind that was synced but never published and will be overwritten.
  set_durable_end({});
}

int CapturedDatabase::remove_database(FunctionRef<int()> perform) {
  const int rc = perform();
  if (rc == 0) content_removed();
  return rc;
}

Result<void> CapturedDatabase::record_deletion() NO_THREAD_SAFETY_ANALYSIS {
  if (database_->page_count() == 0) return {};
  const auto none = [](Pgno) -> Result<ByteView> { return make_error(Errc::internal, "a deletion has no pages"); };
  const storage::CommitInput input{database_->page_size(), 0, {}, none, none, {}};
  TRY(database_->commit(input, context_.options.epoch, context_.store.node_id()));
  return {};
}

void CapturedDatabase::content_removed() {
  {
    MutexLock lock(database_->commit_mutex());
    wal_.set_wal(nullptr);
    wal_.set_shm_present(false);
    ++shm_generation_;
    wal_.forget();
    file_ = nullptr;
    wal_.set_database_file(nullptr);
    ++changes_.names;
    settle_journal();
    const Result<void> recorded = record_deletion();
    if (recorded.has_error()) {
      needs_reconcile_ = true;
      LOG_ERROR("{}: deleted, but that could not be recorded yet: {}", name(), recorded.error().message);
      return;
    }
  }
  (void)make_durable();
}

void CapturedDatabase::content_replaced() {
  const Result<void> opened = open_files();
  {
    MutexLock lock(database_->commit_mutex());
    wal_.forget();
    settle_journal();
    needs_reconcile_ = true;
    if (opened.has_error()) LOG_WARN("{}: {}", name(), opened.error().message);
  }
  const Result<void> captured = capture_and_sync(false);  // the rename that did it is still under way
  if (captured.has_error()) LOG_WARN("{}: {}", name(), captured.error().message);
}

bool CapturedDatabase::poll() {
  if (!database_->commit_mutex().try_lock()) return true;
  const auto pending = wal_.pending();
  const bool behind = database_->log().synced() < database_->pos().txid;
  const bool found = needs_reconcile_ || behind || pending.has_error() || *pending;
  const bool failed = failed_;
  constexpr unsigned kLookAhead = 4;  // one poll in so many: two more reads of a file
  const bool ahead = !found && ++polls_ % kLookAhead == 0 && wal_.has_wal() && wal_.shm_view() != nullptr &&
                     !packing_ahead_.load(std::memory_order_relaxed) && ahead_.worth_it(*wal_.wal_file(), wal_.position());
  database_->commit_mutex().unlock();
  return (found || ahead) && !failed;
}

// A large transaction is being written: while its writer goes on, part of what its capture will need is done.
void CapturedDatabase::pack_ahead() {
  if (packing_ahead_.exchange(true)) return;
  std::shared_ptr<File> wal;
  std::shared_ptr<const ShmView> shm;
  sqlite::WalPosition captured;
  {
    MutexLock lock(database_->commit_mutex());
    wal = wal_.wal_file();
    shm = wal_.shm_view();
    captured = wal_.position();
  }
  const auto before = shm != nullptr ? shm->read() : Result<IndexState>(IndexState{});
  if (wal != nullptr && before.has_value() && before->state == sqlite::HeaderState::valid) {
    constexpr int kLookEvery = 8;
    int frames = 0;
    ahead_.prepare(*wal, captured, [&] {
      if (++frames % kLookEvery != 0) return true;
      if (context_.stopping.load(std::memory_order_relaxed)) return false;
      const auto now = shm->read();
      return now.has_value() && now->header.mx_frame == before->header.mx_frame && now->header.salts == before->header.salts;
    });
  }
  packing_ahead_.store(false);
}

Result<void> CapturedDatabase::capture_and_sync(bool may_open) {
  Result<void> outcome = capture_once(may_open);
  note_outcome(outcome);
  return outcome;
}

Result<void> CapturedDatabase::capture_once(bool may_open) {
  if (may_open) ensure_shm_view();
  bool behind = false;
  bool maintain = false;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return make_error(Errc::io, failure_);
    if (needs_reconcile_) {
      if (file_ == nullptr) {
        TRY(record_deletion());
      } else if (!journal_active_) {
        TRY(reconcile("its file was replaced"));
      }
      needs_reconcile_ = false;
    }
    TRY(wal_.capture(Reason::tail));
    if (context_.stopping.load(std::memory_order_relaxed)) wal_.set_shm(nullptr);
    behind = std::exchange(shippable_, false) || database_->log().synced() < database_->pos().txid;
    const std::uint64_t bytes = database_->log().size_bytes();
    const bool grown = bytes - maintained_at_ >= context_.store.options().database.checkpoint_bytes;
    maintain = behind && (++captures_ % 256 == 0 || grown);  // what is not checkpointed is read again at the next start
    if (maintain) maintained_at_ = bytes;
  }
  if (behind)
    TRY(make_durable());
  else
    pack_ahead();
  if (maintain) TRY(database_->maintain(context_.store.options().retention, storage::Database::Checkpoint::if_due));
  return {};
}

Result<void> CapturedDatabase::capture_at_stop() {
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return make_error(Errc::io, failure_);
    // An orphan that outlived the mount may still hold the -shm: the start-up check deals with it.
    wal_.set_shm_present(false);
    if (!journal_active_) TRY(wal_.capture(Reason::gate));
    if (unjournaled_ && !journal_active_) {
      TRY(capture_unannounced());
      dirty_.clear();
      unjournaled_ = false;
    }
    // The note of a clean stop vouches for the files, also after a loss of power.
    ++file_changes_;
    file_captured_ = true;
    durable_captured_ = {};
    set_durable_end({});
  }
  TRY(make_durable());
  return database_->maintain(context_.store.options().retention, storage::Database::Checkpoint::now);
}

Result<void> CapturedDatabase::read_page(Pgno pgno, ByteSpan out) NO_THREAD_SAFETY_ANALYSIS {
  if (dirty_.any() && dirty_.contains(pgno)) {
    return make_error(Errc::busy, fmt::format("{}: page {} belongs to an open transaction", name(), pgno.value()));
  }
  return wal_.read_page(pgno, out);
}

std::string CapturedDatabase::marker_path() const {
  return context_.store.tmp_dir() + "/unjournaled-" + storage::escape_name(name());
}

// Writes that no journal announces leave no trace on disk that they are not captured yet: the marker is that trace, on disk before
// they are.
Result<void> CapturedDatabase::mark_unjournaled() {
  if (!marker_on_disk_) {
    TRY(context_.store.fs().open(marker_path(), {.write = true, .create = true}));
    TRY(context_.store.fs().sync_directory(context_.store.tmp_dir()));
    marker_on_disk_ = true;
  }
  unjournaled_ = true;
  warn_unprotected();
  return {};
}

// Once a database, and not for a file that is just being copied in.
void CapturedDatabase::warn_unprotected() {
  if (database_->page_count() == 0) return;
  const bool news = database_->set_warning(
      "written without a journal that protects it (journal_mode MEMORY or OFF, or a program that is not SQLite): a crash in the "
      "middle of such a write can damage it");
  if (news) LOG_WARN("{}: {}", name(), database_->warning());
}

// Only when what it stood for is in the durable log.
Result<void> CapturedDatabase::drop_marker() {
  const Result<void> removed = context_.store.fs().unlink(marker_path());
  if (removed.has_error() && removed.error().code != Errc::not_found) return removed;
  marker_on_disk_ = false;
  return {};
}

bool CapturedDatabase::unjournaled_pending() {
  MutexLock lock(database_->commit_mutex());
  return unjournaled_ && !failed_;
}

// With a WAL beside it the file is not what the database is.
Result<void> CapturedDatabase::capture_unannounced() NO_THREAD_SAFETY_ANALYSIS {
  if (!wal_.has_wal()) return capture_rollback();
  return reconcile("its file was written without a journal, beside a WAL");
}

// A file that is no database is left alone: SQLite says so to whoever opens it, and once it is one again all of it is compared.
Result<void> CapturedDatabase::reconcile(std::string_view why) NO_THREAD_SAFETY_ANALYSIS {
  Result<void> compared = wal_.reconcile(why);
  file_unreadable_ = compared.has_error() && compared.error().code == Errc::unsupported;
  if (file_unreadable_) {
    LOG_WARN("{}; replicas stay at {}", compared.error().message, database_->pos());
    return {};
  }
  file_captured_ = true;
  return compared;
}

void CapturedDatabase::refuse(const Error& error) {
  MutexLock lock(database_->commit_mutex());
  refused_ = true;
  (void)fail(error);
}

// A SHARED lock keeps SQLite's writers out while the pages are read (journal_mode MEMORY and OFF have no commit event).
bool CapturedDatabase::capture_unjournaled() {
  storage::MountAccess* access = context_.access.load();
  if (access == nullptr) return false;
  auto fd = access->open(name(), O_RDONLY);
  if (fd.has_error()) return fd.error().code == Errc::not_found;
  if (storage::ofd_lock(fd->get(), F_RDLCK, sqlite::kPendingByte, 1).has_error()) return false;
  if (storage::ofd_lock(fd->get(), F_RDLCK, sqlite::kSharedFirst, sqlite::kSharedSize).has_error()) return false;
  {
    MutexLock lock(database_->commit_mutex());
    if (!unjournaled_ || failed_) return true;
    if (journal_active_) return false;
    const Result<void> captured = capture_unannounced();
    note_outcome(captured);
    if (captured.has_error()) return false;
    context_.counters.unjournaled.fetch_add(1, std::memory_order_relaxed);
    dirty_.clear();
    unjournaled_ = false;
  }
  return !make_durable().has_error();
}

bool CapturedDatabase::journal_names(const std::string& super_journal) {
  {
    MutexLock lock(database_->commit_mutex());
    if (!journal_active_ || !dirty_.any()) return false;
  }
  const auto journal = open_backing("-journal");
  if (journal.has_error() || *journal == nullptr) return false;
  const auto named = sqlite::read_super_journal_name(**journal);
  if (named.has_error() || !named->has_value()) return false;
  // The journal has the path as the application's mount shows it; the base name is unique enough (it has random digits).
  const std::string& path = **named;
  return path.substr(path.rfind('/') + 1) == super_journal.substr(super_journal.rfind('/') + 1);
}

// Held until the journal's own removal: the transaction commits with the super-journal's.
int CapturedDatabase::capture_for_super_journal() {
  MutexLock lock(database_->commit_mutex());
  if (failed_) return EIO;
  database_->log().hold(database_->pos().txid.next());
  const Result<void> captured = capture_rollback();
  if (captured.has_error()) return to_errno(captured.error());
  const Result<void> flushed = flush_log();
  return flushed.has_error() ? to_errno(flushed.error()) : 0;
}

bool CapturedDatabase::journal_open() {
  MutexLock lock(database_->commit_mutex());
  return journal_active_ && dirty_.any();
}

bool CapturedDatabase::abandoned_journal() {
  storage::MountAccess* access = context_.access.load();
  if (access == nullptr || !journal_open()) return false;
  const auto fd = access->open(name(), O_RDWR);
  if (fd.has_error()) return false;
  const auto reserved = storage::ofd_is_locked(fd->get(), sqlite::kReservedByte, 1);
  return reserved.has_value() && !*reserved && journal_open();
}

// The transaction may be half written, or committed by a super-journal that is gone: its pages are compared at the next event.
Result<void> CapturedDatabase::look_at_journal(const File& journal) NO_THREAD_SAFETY_ANALYSIS {
  TRY_ASSIGN(const bool content, sqlite::journal_has_content(journal));
  if (!content) return {};
  const auto mark = [this](Pgno pgno) { dirty_.add(pgno.value(), pgno.value()); };
  const auto summary = sqlite::scan_journal(journal, mark);
  if (summary.has_error() && summary.error().code == Errc::not_found) return {};
  journal_active_ = true;
  hot_journal_ = true;
  if (summary.has_error()) {
    LOG_WARN("{}; the whole database is compared when the journal is gone", summary.error().message);
    dirty_.add_all();
    return {};
  }
  TRY_ASSIGN(const std::uint64_t size, file_->size());
  const std::uint32_t page_size = database_->page_size() != 0 ? database_->page_size() : summary->first.page_size;
  const auto pages = static_cast<std::uint32_t>(size / page_size);
  dirty_.add(1, 1);
  if (pages > summary->first.original_pages) dirty_.add(summary->first.original_pages + 1, pages);
  const auto free = sqlite::visit_free_leaves_before(*file_, journal, mark);
  if (free.has_error()) {
    LOG_WARN("{}; the whole database is compared when its journal is gone", free.error().message);
    dirty_.add_all();
  }
  return {};
}

// Nothing is captured before the tail runs: only the live wal-index tells which frames are committed, and it can be asked once the
// mount serves. Until opened() says that somebody has the -shm open it is not there (docs/ARCHITECTURE.md, "Start and stop").
void CapturedDatabase::recover_connected(bool marked) NO_THREAD_SAFETY_ANALYSIS {
  wal_.set_shm_present(false);
  if (marked) {
    unjournaled_ = true;
    dirty_.add_all();
  } else if (database_->page_count() == 0) {
    needs_reconcile_ = true;
  }
}

Result<void> CapturedDatabase::recover(std::string_view doubt) {
  const bool connected = context_.options.clients_connected;
  TRY_ASSIGN(const bool sync_failed, context_.store.fs().exists(sync_failed_path()));
  if (sync_failed && connected) return make_error(Errc::io, "a sync of its files failed; stop the node and start it again");
  if (sync_failed) {
    LOG_WARN("{}: a sync of its files failed in an earlier run; writing and comparing all of them", name());
    const Result<void> rewritten = rewrite_after_failed_sync();
    if (rewritten.has_error()) return with_context("its files cannot be written after a failed sync", rewritten.error());
    doubt = "a sync of its files failed in an earlier run";
  }
  TRY(open_files());
  TRY_ASSIGN(const std::shared_ptr<File> journal, open_backing("-journal"));
  TRY_ASSIGN(const bool marked, context_.store.fs().exists(marker_path()));
  {
    MutexLock lock(database_->commit_mutex());
    marker_on_disk_ = marked;
    if (file_ == nullptr) {
      TRY(record_deletion());
    } else {
      if (journal != nullptr) TRY(look_at_journal(*journal));
      wal_.resume(database_->wal_position());
      if (journal_active_) {
        // The last change set may be of this very transaction, which is about to be rolled back.
        database_->log().hold(database_->pos().txid);
        if (doubt.empty() && !marked) return {};
        dirty_.add_all();
        return mark_unjournaled();  // until that comparison has been made
      }
      if (connected) {
        recover_connected(marked);
        return {};
      }
      TRY(compare_or_capture(marked ? "it was being written without a journal when the node died" : doubt));
    }
  }
  TRY(open_files());
  {
    // Until somebody opens the -shm through this mount nobody is connected: OrphanFence has seen to the mounts before.
    MutexLock lock(database_->commit_mutex());
    wal_.set_shm_present(false);
  }
  if (!sync_failed) return {};  // recovered() does it, for all databases together
  TRY(make_durable());
  TRY(context_.store.fs().unlink(sync_failed_path()));
  return context_.store.fs().sync_directory(context_.store.tmp_dir());
}

Result<void> CapturedDatabase::compare_or_capture(std::string_view doubt) NO_THREAD_SAFETY_ANALYSIS {
  if (database_->page_count() == 0) doubt = "it is new here";
  if (!doubt.empty()) return reconcile(doubt);
  // Whatever the last run left of the -shm: nobody is connected now.
  wal_.set_shm_present(false);
  TRY(wal_.capture(Reason::gate));
  TRY_ASSIGN(const FileSummary file, summarise(file_.get()));
  if (!file.is_database && file.size != 0) {
    file_unreadable_ = true;
    LOG_WARN("{}: the file is no SQLite database any more; replicas stay at {}", name(), database_->pos());
  }
  return {};
}

bool CapturedDatabase::has_wal() {
  MutexLock lock(database_->commit_mutex());
  return wal_.has_wal();
}

bool CapturedDatabase::is_durable() {
  MutexLock lock(database_->commit_mutex());
  if (failed_ || hot_journal_) return true;
  const bool names = changes_synced_.names == changes_.names && changes_synced_.ancestors == changes_.ancestors &&
                     changes_synced_.journal_ends == changes_.journal_ends;
  return wal_durable() && !file_captured_ && names && !(marker_on_disk_ && !unjournaled_) &&
         database_->log().synced() >= database_->pos().txid;
}

Result<void> CapturedDatabase::recovered(bool everything_synced) {
  if (!everything_synced) return make_durable();
  MutexLock lock(database_->commit_mutex());
  durable_captured_ = wal_.position();
  file_changes_synced_ = file_changes_;
  file_captured_ = false;
  changes_synced_ = changes_;
  database_->log().note_durable(database_->pos().txid);
  return marker_on_disk_ && !unjournaled_ ? drop_marker() : Result<void>();
}

}  // namespace sluice::fuse
