#include "fuse/capture/captured_database.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "storage/ltx/checksum.h"
#include "storage/sqlite/journal.h"

namespace sluice::fuse {
namespace {

constexpr auto kRetryPause = std::chrono::milliseconds(200);

}  // namespace

CapturedDatabase::CapturedDatabase(CaptureContext& context, std::shared_ptr<storage::Database> database)
    : context_(context),
      database_(std::move(database)),
      ahead_(context.ahead_bytes, context.options.ahead_bytes, context.counters.pages_ahead),
      wal_(*database_, context.store.node_id(), context.options, context.counters, ahead_) {
  MutexLock lock(database_->commit_mutex());
  database_->set_page_source(this);
}

CapturedDatabase::~CapturedDatabase() {
  MutexLock lock(database_->commit_mutex());
  database_->set_page_source(nullptr);
}

Result<std::shared_ptr<File>> CapturedDatabase::open_backing(const std::string& suffix) {
  auto file = context_.store.fs().open(context_.store.backing_path(name()) + suffix, {});
  if (file.has_error()) {
    if (file.error().code == Errc::not_found) return std::shared_ptr<File>();
    return file.error();
  }
  return std::shared_ptr<File>(std::move(*file));
}

Result<void> CapturedDatabase::open_files() {
  TRY_ASSIGN(const std::shared_ptr<File> file, open_backing(""));
  TRY_ASSIGN(const std::shared_ptr<File> wal, open_backing("-wal"));
  TRY_ASSIGN(const std::shared_ptr<File> shm, open_backing("-shm"));
  MutexLock lock(database_->commit_mutex());
  file_ = file;
  wal_.set_database_file(file);
  wal_.set_wal(wal);
  wal_.set_shm_present(shm != nullptr);
  ++shm_generation_;
  durable_captured_ = {};
  set_durable_end({});
  ++file_changes_;
  ++changes_.names;
  ++changes_.ancestors;
  return {};
}

int CapturedDatabase::to_errno(const Error& error) const {
  switch (error.code) {
    case Errc::no_space: return ENOSPC;
    case Errc::read_only: return EROFS;
    default: break;
  }
  LOG_WARN("{}: refused an operation: {}", name(), error.message);
  return EIO;
}

// A capture that failed is tried again by the poller, with a pause; what it says is logged when it is news.
void CapturedDatabase::note_outcome(const Result<void>& outcome) {
  if (outcome.has_error() && outcome.error().code == Errc::busy) return;
  database_->note_attempt(outcome);
  std::string said;
  if (outcome.has_error()) {
    const auto retry = std::chrono::steady_clock::now() + kRetryPause;
    retry_at_.store(retry.time_since_epoch().count(), std::memory_order_relaxed);
    if (outcome.error().code != Errc::no_space) said = outcome.error().message;
  }
  MutexLock lock(trouble_mutex_);
  if (said == trouble_) return;
  trouble_ = said;
  if (!said.empty()) LOG_WARN("{}: {}", name(), said);
}

// Plain path: appends to the WAL say nothing about what is committed, and the wal-index's pages come when the kernel likes. The
// thread that reads the index through the mount may be waiting for just this request: no lock.
bool CapturedDatabase::is_free(const Op& op) {
  if (op.file == FileKind::wal) return op.kind == OpKind::write;
  return op.file == FileKind::shm && (op.kind == OpKind::write || op.kind == OpKind::truncate);
}

bool CapturedDatabase::can_run_inline(const Op& op) {
  if (op.kind == OpKind::rename) return false;
  if (is_free(op)) return true;
  if (wal_.reads_mount()) return false;
  if (op.kind == OpKind::open || op.kind == OpKind::create) return true;
  if (op.file == FileKind::database && op.kind == OpKind::unlink) return false;
  if (!database_->commit_mutex().try_lock()) return false;
  const bool needs_view = wal_.needs_shm_view();
  database_->commit_mutex().unlock();
  return !needs_view;
}

int CapturedDatabase::run(const Op& op, FunctionRef<int()> perform) {
  if (op.kind == OpKind::open || op.kind == OpKind::create) return 0;
  if (is_free(op)) return perform();
  int rc = 0;
  // Only on the pool can this find anything to do: can_run_inline() sent the operation there for it.
  if (op.kind == OpKind::write || op.kind == OpKind::truncate || op.kind == OpKind::unlink) ensure_shm_view();
  switch (op.file) {
    case FileKind::database: rc = run_database(op, perform); break;
    case FileKind::journal: rc = run_journal(op, perform); break;
    case FileKind::wal: rc = run_wal(op, perform); break;
    case FileKind::shm: rc = run_shm(op, perform); break;
    default: return perform();
  }
  if (context_.stopping.load(std::memory_order_relaxed)) release_mount_files();
  return rc;
}

void CapturedDatabase::release_mount_files() {
  MutexLock lock(database_->commit_mutex());
  wal_.set_shm(nullptr);
}

int CapturedDatabase::run_database(const Op& op, FunctionRef<int()> perform) {
  switch (op.kind) {
    case OpKind::write:
    case OpKind::truncate: return write_database(op, perform);
    case OpKind::fsync: return sync_database(perform);
    case OpKind::unlink: return remove_database(perform);
    default: return perform();
  }
}

// Opens the probe on the current -shm through the mount. Not on a FUSE worker, not under the lock.
void CapturedDatabase::ensure_shm_view() {
  storage::MountAccess* access = context_.access.load();
  std::uint64_t generation = 0;
  {
    MutexLock lock(database_->commit_mutex());
    if (access == nullptr || !wal_.needs_shm_view()) return;
    generation = shm_generation_;
  }
  auto backing = open_backing("-shm");
  auto probe = access->open(name() + "-shm", O_RDWR);
  if (backing.has_error() || *backing == nullptr || probe.has_error()) {
    const bool expected = context_.stopping.load() || (probe.has_error() && probe.error().code == Errc::not_found);
    if (probe.has_error() && !expected) {
      LOG_WARN("{}: cannot open its -shm: {}", name(), probe.error().message);
    }
    return;
  }
  if (!access->passthrough()) *backing = nullptr;
  auto view = std::make_shared<const ShmView>(*backing, std::move(*probe));
  MutexLock lock(database_->commit_mutex());
  // Unlinked or replaced meanwhile: the probe is on an old inode, whose locks say nothing.
  if (generation != shm_generation_ || !wal_.needs_shm_view()) return;
  wal_.set_shm(std::move(view));
}

// I1, capture before backfill: nothing proceeds before every committed frame is in the durable log.
Result<void> CapturedDatabase::gate(Reason reason) NO_THREAD_SAFETY_ANALYSIS {
  if (!wal_.has_wal()) return {};
  TRY(wal_.capture(reason));
  return flush_log();
}

Result<void> CapturedDatabase::flush_log() NO_THREAD_SAFETY_ANALYSIS {
  if (database_->log().synced() < database_->pos().txid) {
    auto flushed = database_->log().flush();
    if (flushed.has_error()) return fail(std::move(flushed).error());
  }
  return {};
}

void CapturedDatabase::schedule_capture() {
  if (std::chrono::steady_clock::now().time_since_epoch().count() < retry_at_.load(std::memory_order_relaxed)) return;
  if (scheduled_.exchange(true)) return;
  const bool posted = context_.pool.post([self = shared_from_this()] {
    self->scheduled_.store(false);
    (void)self->capture_and_sync();
  });
  if (!posted) scheduled_.store(false);
}

int CapturedDatabase::write_database(const Op& op, FunctionRef<int()> perform) {
  bool notify = false;
  int rc = 0;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return EIO;
    if (file_ == nullptr) {
      auto file = open_backing("");
      if (file.has_error()) return to_errno(file.error());
      file_ = *file;
      wal_.set_database_file(file_);
      ++changes_.ancestors;
    }
    const Pos before = database_->pos();
    const Result<void> gated = gate(Reason::backfill);
    if (gated.has_error()) return to_errno(gated.error());
    notify = database_->pos() != before;
    const bool backfill = wal_.has_wal() && !journal_active_ && wal_.position().frame != 0;
    if (!backfill) {
      if (!journal_active_) {
        const Result<void> marked = mark_unjournaled();
        if (marked.has_error()) return to_errno(marked.error());
      }
      const std::uint64_t end = op.kind == OpKind::write ? op.offset + op.data.size() : UINT64_MAX;
      const Result<void> kept = remember_old(op.kind == OpKind::write ? op.offset : op.size, end);
      if (kept.has_error()) return to_errno(kept.error());
    }
    rc = perform();
    ++file_changes_;
    if (backfill && op.kind == OpKind::write) start_writeback(op.data.size());
  }
  if (notify) schedule_capture();
  return rc;
}

// A checkpoint ends with a sync of what it wrote: the disk works while it is still writing.
void CapturedDatabase::start_writeback(std::size_t bytes) {
  constexpr std::uint64_t kStep = 1u << 20;
  backfilled_ += bytes;
  if (backfilled_ < kStep) return;
  backfilled_ = 0;
  // On a slow disk this can block: one at a time, so that captures find a thread of the pool.
  if (context_.writing_back->exchange(true)) return;
  const bool posted = context_.pool.post([busy = context_.writing_back, file = file_] {
    file->start_writeback(0, 0);
    busy->store(false);
  });
  if (!posted) context_.writing_back->store(false);
}

int CapturedDatabase::sync_database(FunctionRef<int()> perform) {
  std::uint64_t covered = 0;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return EIO;
    covered = file_changes_;
  }
  const int rc = perform();
  MutexLock lock(database_->commit_mutex());
  if (rc != 0) (void)fail_sync(errno_error("fsync of its database file " + context_.store.backing_path(name()), rc));
  if (rc == 0) file_changes_synced_ = std::max(file_changes_synced_, covered);
  return rc;
}

// Marks the pages dirty, and computes checksums that are not known while the old content is still there.
Result<void> CapturedDatabase::remember_old(std::uint64_t first_byte, std::uint64_t end_byte) NO_THREAD_SAFETY_ANALYSIS {
  const std::uint32_t page_size = database_->page_size();
  const std::uint32_t known_pages = database_->page_count();
  if (page_size == 0 || known_pages == 0) {
    dirty_.add_all();
    return {};
  }
  TRY_ASSIGN(const std::uint64_t file_size, file_->size());
  if (end_byte == UINT64_MAX) end_byte = std::max(file_size, first_byte);
  if (end_byte <= first_byte) return {};
  const auto first = static_cast<std::uint32_t>(first_byte / page_size + 1);
  const auto last = static_cast<std::uint32_t>((end_byte - 1) / page_size + 1);
  scratch_.resize(page_size);
  for (std::uint32_t page = first; page <= std::min(last, known_pages); ++page) {
    const Pgno pgno(page);
    if (dirty_.contains(pgno) || pgno == lock_page(page_size)) continue;
    if (database_->checksums().get(pgno) != Checksum{}) continue;
    TRY_ASSIGN(const std::size_t n, file_->read_at(std::uint64_t{page - 1} * page_size, scratch_));
    std::fill(scratch_.begin() + static_cast<std::ptrdiff_t>(n), scratch_.end(), std::byte{0});
    TRY(database_->checksums().set(pgno, ltx::page_checksum(pgno, scratch_)));
  }
  dirty_.add(first, last);
  return {};
}

Result<void> CapturedDatabase::capture_rollback() NO_THREAD_SAFETY_ANALYSIS {
  if (!dirty_.any() || file_ == nullptr) return {};
  TRY_ASSIGN(const FileSummary file, summarise(file_.get()));
  if (!file.is_database && file.size != 0) {
    LOG_WARN("{}: the file has no valid SQLite header; replicas stay at {}", name(), database_->pos());
    file_unreadable_ = true;
    return {};
  }
  if (file.size == 0 && database_->page_count() == 0) return {};
  const bool other_size = database_->page_count() != 0 && database_->page_size() != file.page_size;
  if (other_size || file_unreadable_) dirty_.add_all();
  const std::vector<Pgno> pages = dirty_.list(file.pages);
  scratch_.resize(file.page_size);
  const auto read = [&](Pgno pgno) -> Result<ByteView> {
    TRY_ASSIGN(const std::size_t n, file_->read_at(std::uint64_t{pgno.value() - 1} * file.page_size, scratch_));
    std::fill(scratch_.begin() + static_cast<std::ptrdiff_t>(n), scratch_.end(), std::byte{0});
    return ByteView(scratch_);
  };
  const auto read_old = [](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "old content is gone"); };
  const storage::CommitInput input{file.page_size, file.pages, pages, read, read_old, {}};
  TRY_ASSIGN(const auto made, commit_or_rebase(*database_, input, context_.options, context_.store.node_id()));
  file_unreadable_ = false;
  if (!made) return {};
  file_captured_ = true;
  context_.counters.change_sets.fetch_add(1, std::memory_order_relaxed);
  return {};
}

// The commit of a rollback transaction. The change set is durable before the operation that commits is performed, and leaves
// the node after it: should the operation fail, or we die in between, SQLite rolls back, and the next event makes a change
// set that takes this one back.
int CapturedDatabase::commit_event(const Op& op, FunctionRef<int()> perform) {
  bool ship = false;
  int rc = 0;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return EIO;
    if (dirty_.any()) {
      database_->log().hold(database_->pos().txid.next());
      const Result<void> captured = capture_rollback();
      if (captured.has_error()) return to_errno(captured.error());
      const Result<void> flushed = flush_log();
      if (flushed.has_error()) return to_errno(flushed.error());
    }
    rc = perform();
    if (rc == 0) {
      ++(op.kind == OpKind::unlink ? changes_.names : changes_.journal_ends);
      ship = settle_journal();
    }
  }
  if (ship) schedule_capture();
  return rc;
}

// The journal is gone: what the database file holds is committed. True if a change set waited for that.
bool CapturedDatabase::settle_journal() {
  dirty_.clear();
  journal_active_ = false;
  hot_journal_ = false;
  unjournaled_ = false;
  if (!database_->log().release_hold()) return false;
  shippable_ = true;
  return true;
}

int CapturedDatabase::run_journal(const Op& op, FunctionRef<int()> perform) {
  switch (op.kind) {
    case OpKind::unlink: return commit_event(op, perform);
    case OpKind::truncate: return op.size == 0 ? commit_event(op, perform) : perform();
    case OpKind::write: break;
    default: return perform();
  }
  const bool zeroed_header = op.offset == 0 && op.data.size() == sqlite::kJournalHeaderSize && all_zero(op.data);
  if (zeroed_header) return commit_event(op, perform);  // journal_mode=PERSIST
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return EIO;
    journal_active_ = true;
  }
  return perform();
}

int CapturedDatabase::run_wal(const Op& op, FunctionRef<int()> perform) {
  switch (op.kind) {
    case OpKind::fsync: return sync_wal(perform);
    case OpKind::truncate:
    case OpKind::unlink: return remove_wal(op, perform);
    default: return perform();
  }
}

// synchronous=FULL syncs the WAL before it publishes a commit, a checkpoint syncs it before it begins: either way the
// application has done what I2 asks for.
int CapturedDatabase::sync_wal(FunctionRef<int()> perform) {
  if (failed_) return EIO;
  const auto end = wal_.end_of_chain(durable_end());
  const int rc = perform();
  if (rc == 0 && end) set_durable_end(*end);
  if (rc != 0) {
    MutexLock lock(database_->commit_mutex());
    (void)fail_sync(errno_error("fsync of its WAL " + context_.store.backing_path(name()) + "-wal", rc));
  }
  return rc;
}

int CapturedDatabase::remove_wal(const Op& op, FunctionRef<int()> perform) {
  bool made = false;
  int rc = 0;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return EIO;
    const Pos before = database_->pos();
    const Result<void> gated = gate(Reason::gate);
    if (gated.has_error()) return to_errno(gated.error());
    if (op.kind == OpKind::truncate && op.size == 0) wal_.note_backfilled();
    rc = perform();
    if (rc == 0 && op.kind == OpKind::unlink) {
      const auto pages = [this]() -> Result<std::uint32_t> {
        TRY_ASSIGN(const FileSummary file, summarise(file_.get()));
        return file.pages;
      };
      const Result<void> settled = wal_.after_wal_removal(pages);
      if (settled.has_error()) {
        needs_reconcile_ = true;
        LOG_WARN("{}: {}", name(), settled.error().message);
      }
    }
    made = database_->pos() != before || needs_reconcile_;
    if (made && op.kind == OpKind::unlink) file_captured_ = true;  // what came after the gate was read from the file
  }
  if (made) schedule_capture();
  return rc;
}

int CapturedDatabase::run_shm(const Op& op, FunctionRef<int()> perform) {
  if (op.kind != OpKind::unlink) return perform();
  bool made = false;
  int rc = 0;
  {
    MutexLock lock(database_->commit_mutex());
    if (failed_) return EIO;
    const Pos before = database_->pos();
    const Result<void> gated = gate(Reason::gate);
    if (gated.has_error()) return to_errno(gated.error());
    made = database_->pos() != before;
    wal_.note_backfilled();
    rc = perform();
    if (rc == 0) {
      ++shm_generation_;
      wal_.set_shm_present(false);
    }
  }
  if (made) schedule_capture();
  return rc;
}

}  // namespace sluice::fuse
