// One database of a primary: what each file operation means for it, in order (DESIGN §3).
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "fuse/capture/dirty_pages.h"
#include "fuse/capture/wal_capture.h"
#include "storage/store.h"

namespace sluice::fuse {

/// What all captured databases share; outlives them.
struct CaptureContext {
  storage::Store& store;
  ThreadPool& pool;
  const CaptureOptions& options;
  CaptureCounters& counters;
  std::atomic<storage::MountAccess*> access{nullptr};
  /// Unmounting: files opened through the mount are closed again after each use, they would keep it busy.
  std::atomic<bool> stopping{false};
  std::atomic<std::uint64_t> ahead_bytes{0};  ///< of all databases' PagesAhead
  /// A pool thread is in start_writeback(); its own, it may outlive the rest.
  std::shared_ptr<std::atomic<bool>> writing_back = std::make_shared<std::atomic<bool>>(false);
};

/// Thread-safe: everything below takes the database's commit lock itself unless it says otherwise.
class CapturedDatabase : public storage::PageSource, public std::enable_shared_from_this<CapturedDatabase> {
 public:
  CapturedDatabase(CaptureContext& context, std::shared_ptr<storage::Database> database);
  ~CapturedDatabase() override;

  storage::Database& database() { return *database_; }
  const std::string& name() const { return database_->name(); }

  /// Files as they are in the backing tree; at start-up and after a rename.
  Result<void> open_files();
  /// Start-up, nobody connected: what was committed while nobody captured. `doubt` is empty if the files are those that the
  /// last run left, all of them; else `doubt` says why not, and the whole database is compared with what was captured.
  Result<void> recover(std::string_view doubt);
  /// After recover(): is everything that it found on disk?
  bool is_durable();
  /// What is not becomes so, unless somebody has synced the whole file system since recover() (I2).
  Result<void> recovered(bool everything_synced);
  /// Start-up failed for this database: its operations fail, too, until the next start. The others are served.
  void refuse(const Error& error);
  bool refused() const { return refused_; }
  bool has_hot_journal() const { return hot_journal_; }
  bool has_wal();
  /// A rollback transaction is open and nobody holds its RESERVED lock: its process died. Pool threads only.
  bool abandoned_journal();
  bool journal_open();
  /// See WalCapture::reads_mount().
  bool reads_mount() const { return wal_.reads_mount(); }

  /// See Observer::can_run_inline.
  bool can_run_inline(const Op& op);
  int run(const Op& op, FunctionRef<int()> perform);
  void release_mount_files();
  void opened(const Op& op);
  void released(const Op& op);

  /// The name has another file now (renamed over, or renamed to here).
  void content_replaced();
  /// The name has no file any more.
  void content_removed();

  /// For the poller's thread: would a capture find anything?
  bool poll();
  /// Captures what is committed and makes it durable. Pool threads only (may open files through the mount). `may_open`: false
  /// for who has a request of the kernel in hand that holds a directory's lock, which opening a file may need.
  Result<void> capture_and_sync(bool may_open = true);
  /// The mount is gone and nobody is connected: captures the rest and syncs the page checksums.
  Result<void> capture_at_stop();
  /// Writes without a journal: captures them if nobody is in the middle of writing. False: try again later.
  bool capture_unjournaled();
  bool unjournaled_pending();
  bool journal_names(const std::string& super_journal);
  /// Captures the rollback transaction that is about to be committed by a super-journal.
  int capture_for_super_journal();

  /// Commit lock held (PageSource).
  Result<void> read_page(Pgno pgno, ByteSpan out) override;

  /// capture_and_sync() on the pool; at once, and once for all who ask before it begins.
  void schedule_capture();

 private:
  static bool is_free(const Op& op);
  int run_database(const Op& op, FunctionRef<int()> perform);
  int run_journal(const Op& op, FunctionRef<int()> perform);
  int run_wal(const Op& op, FunctionRef<int()> perform);
  int run_shm(const Op& op, FunctionRef<int()> perform);
  int write_database(const Op& op, FunctionRef<int()> perform);
  int commit_event(const Op& op, FunctionRef<int()> perform);
  bool settle_journal();
  int sync_wal(FunctionRef<int()> perform);
  int sync_database(FunctionRef<int()> perform);
  int remove_wal(const Op& op, FunctionRef<int()> perform);
  int remove_database(FunctionRef<int()> perform);

  Result<void> capture_once(bool may_open);
  void note_outcome(const Result<void>& outcome) EXCLUDES(trouble_mutex_);
  void ensure_shm_view();
  void pack_ahead();
  void start_writeback(std::size_t bytes);
  Result<void> gate(Reason reason);
  Result<void> flush_log();
  Result<void> capture_rollback();
  Result<void> capture_unannounced();
  Result<void> reconcile(std::string_view why);
  void recover_connected(bool marked);
  Result<void> look_at_journal(const File& journal);
  Result<void> remember_old(std::uint64_t first_byte, std::uint64_t end_byte);
  Result<void> make_durable();
  struct Unsynced;
  Unsynced take_unsynced();
  Result<void> sync_files(const Unsynced& unsynced);
  Result<void> sync_names(bool ancestors);
  Result<void> rewrite_after_failed_sync();
  Result<void> compare_or_capture(std::string_view doubt);
  bool wal_durable() const EXCLUDES(sync_mutex_);
  sqlite::WalPosition durable_end() const EXCLUDES(sync_mutex_);
  void set_durable_end(const sqlite::WalPosition& end) EXCLUDES(sync_mutex_);
  Result<void> record_deletion();
  Result<void> mark_unjournaled();
  void warn_unprotected();
  Result<void> drop_marker();
  Result<void> fail(Error error);
  Result<void> fail_sync(Error error);
  int to_errno(const Error& error) const;
  std::string marker_path() const;
  std::string sync_failed_path() const;
  Result<std::shared_ptr<File>> open_backing(const std::string& suffix);

  CaptureContext& context_;
  const std::shared_ptr<storage::Database> database_;
  PagesAhead ahead_;
  std::atomic<bool> packing_ahead_{false};
  // All below: commit lock.
  WalCapture wal_;
  std::shared_ptr<File> file_;
  DirtyPages dirty_;
  bool journal_active_ = false;
  bool hot_journal_ = false;
  bool unjournaled_ = false;
  bool marker_on_disk_ = false;  ///< marker_path() exists, or may
  bool needs_reconcile_ = false;
  std::atomic<bool> failed_{false};  ///< may be read without the lock
  std::atomic<bool> refused_{false};  ///< the same
  std::string failure_;
  std::uint64_t shm_generation_ = 0;
  /// The WAL is on disk up to these: where capture stood, and the last commit that was in the file, when it was last synced.
  /// Positions, not a number of bytes: behind them the file has frames of the generation before, or of a transaction that
  /// was rolled back, and what takes their place is not synced.
  sqlite::WalPosition durable_captured_;
  mutable Mutex sync_mutex_;  ///< after the commit lock; an application's FSYNC need not wait for a capture
  sqlite::WalPosition durable_end_ GUARDED_BY(sync_mutex_);
  /// Operations that changed the database file, how many of them a sync of it covers, and whether a change set was read from
  /// it that has not left the node yet.
  std::uint64_t file_changes_ = 1;
  std::uint64_t file_changes_synced_ = 0;
  bool file_captured_ = false;
  /// What else may not be on disk yet: the names of the database, its -wal (new) and its -journal (gone); those of the directories
  /// above it; the end of a journal that was truncated or overwritten. Counted, for several threads may be syncing.
  struct NameChanges {
    std::uint64_t names = 0;
    std::uint64_t ancestors = 0;
    std::uint64_t journal_ends = 0;
  };
  NameChanges changes_{1, 1, 0};
  NameChanges changes_synced_;
  bool shippable_ = false;        ///< a change set was held back until now
  unsigned polls_ = 0;
  std::uint64_t backfilled_ = 0;  ///< bytes since the last start_writeback()
  bool file_unreadable_ = false;  ///< writes were missed because the file was no database in between
  std::uint64_t captures_ = 0;
  std::uint64_t maintained_at_ = 0;  ///< bytes of log
  Bytes scratch_;
  std::atomic<bool> scheduled_{false};
  /// After a capture that failed; before this moment none is scheduled.
  std::atomic<MonotonicTime::rep> retry_at_{0};
  Mutex trouble_mutex_;
  std::string trouble_ GUARDED_BY(trouble_mutex_);  ///< said last, not to be repeated
};

}  // namespace sluice::fuse
