// One replicated database: its position, page checksums and change log; and how change sets are made on a primary.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/clock.h"
#include "base/function_ref.h"
#include "base/mutex.h"
#include "base/thread_pool.h"
#include "storage/packed_pages.h"
#include "storage/change_log.h"
#include "storage/ids.h"
#include "storage/ltx/encoder.h"
#include "storage/page_checksums.h"

namespace sluice::storage {

class Database;

/// Told about databases by the threads that change them. Must return quickly and call nothing back that blocks.
class DatabaseObserver {
 public:
  virtual ~DatabaseObserver() = default;
  /// A change set was appended to the log; it may not be durable yet.
  virtual void on_appended(Database& database) = 0;
  /// More may leave the node: everything up to database.log().durable() (I2). Time to ship.
  virtual void on_durable(Database& database) = 0;
};

/// Reads pages of a database as of its position. Set by whoever maintains the content: capture on a primary, apply on a
/// replica.
class PageSource {
 public:
  virtual ~PageSource() = default;
  /// Content of `pgno` (1…page_count, not the lock page) at database.pos(). Errc::busy: an open rollback transaction has
  /// overwritten the page and its old content is not at hand; ask again after it ended. Commit lock held.
  virtual Result<void> read_page(Pgno pgno, ByteSpan out) = 0;
};

/// What capture found committed.
struct CommitInput {
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;     ///< size in pages afterwards; 0: the database was deleted
  /// Pages that may have changed, ascending, without the lock page; those above `commit` are dropped, unchanged ones are
  /// left out of the change set. Pages in (old size, commit] that are missing here are added (LTX's hole rule).
  std::span<const Pgno> pages;
  /// Content after the commit. The span stays valid until the next call.
  FunctionRef<Result<ByteView>(Pgno)> read;
  /// Content before, for a page whose checksum is not known (side file lost); Errc::not_found if that is gone too.
  FunctionRef<Result<ByteView>(Pgno)> read_old;
  sqlite::WalPosition wal;      ///< where capture stands in the WAL afterwards
  PackedPages* packed = nullptr;  ///< pages that were compressed before
};

class Database {
 public:
  struct Options {
    ChangeLogOptions log;
    std::uint64_t checkpoint_bytes = 32u << 20;  ///< log bytes between syncs of the page checksums
    ThreadPool* helpers = nullptr;               ///< may compress pages; outlives the database
  };

  /// Opens log and checksums (creating them) and replays the log's newer records into the checksums. Reads no database
  /// page. `log_dir` and `checksums_path` are files of this database alone.
  static Result<std::shared_ptr<Database>> open(FileSystem& fs, std::string name, const std::string& log_dir,
                                                const std::string& checksums_path, Clock& clock,
                                                const Options& options);

  const std::string& name() const { return name_; }
  ChangeLog& log() { return *log_; }
  const ChangeLog& log() const { return *log_; }

  /// Position after the last change set in the log. Thread-safe without the commit lock.
  Pos pos() const EXCLUDES(state_mutex_);
  std::uint32_t page_size() const EXCLUDES(state_mutex_);
  std::uint32_t page_count() const EXCLUDES(state_mutex_);
  Epoch epoch() const EXCLUDES(state_mutex_);  ///< of the last change set
  std::int64_t timestamp_ms() const EXCLUDES(state_mutex_);
  /// Where capture stood when the last change set was made.
  sqlite::WalPosition wal_position() const EXCLUDES(state_mutex_);
  bool deleted() const { return page_count() == 0; }
  /// Why this node no longer accepts or applies changes of the database until it is restarted; empty: it does. For people;
  /// who sets it refuses the operations itself. Thread-safe.
  std::string fault() const EXCLUDES(state_mutex_);
  void set_fault(std::string why) EXCLUDES(state_mutex_);
  /// What keeps it behind for now and will be tried again (a full disk); empty: nothing. For people. Thread-safe.
  std::string waiting() const EXCLUDES(state_mutex_);
  /// Of an attempt to capture or apply: Errc::no_space makes it wait, success ends that; both are logged once.
  void note_attempt(const Result<void>& outcome) EXCLUDES(state_mutex_);

  /// Serialises everything that moves the position or needs it to stand still. Held over file I/O (reads of pages, appends
  /// to the log), never over network, FUSE requests or the answer to one.
  Mutex& commit_mutex() LOCK_RETURNED(commit_mutex_) { return commit_mutex_; }
  PageChecksums& checksums() REQUIRES(commit_mutex_) { return *checksums_; }

  /// Makes one change set of `input` in the change log (not durable: see sync) and moves the position. nullopt: nothing had
  /// changed. On an error the position and the log are as before.
  Result<std::optional<Pos>> commit(const CommitInput& input, Epoch epoch, NodeId node) REQUIRES(commit_mutex_);

  /// Replica: takes over a change set whose LTX image is being appended with log().begin_append/append_bytes. Decodes
  /// and verifies nothing: the caller has. `pages` are the image's pages with their checksums.
  struct PageSum {
    Pgno pgno;
    Checksum checksum;
  };
  Result<void> finish_received(const RecordInfo& info, std::span<const PageSum> pages) REQUIRES(commit_mutex_);

  /// Starts over at a position whose content is the database file (snapshot installed, or a big file copied in): base
  /// record, checksums from `sum_of` for pages 1…commit. Durable on return; what part of the content was read from a WAL
  /// (base.wal) leaves the node after the next sync().
  Result<void> rebase(const RecordInfo& base, FunctionRef<Checksum(Pgno)> sum_of) REQUIRES(commit_mutex_);

  /// Makes the log durable, releases it up to `content` (default: all of it) and tells the observer. I2: on a primary the
  /// caller has synced what these change sets were captured from. Blocks on the disk; without the commit lock.
  Result<void> sync(std::optional<Txid> content = std::nullopt) EXCLUDES(commit_mutex_, state_mutex_);
  /// Whether maintain() may move the checkpoint of the page checksums: never on a replica (apply does, after a backfill).
  enum class Checkpoint { none, if_due, now };
  /// Syncs log and page checksums (if_due: when checkpoint_bytes of log came since the last time), then applies
  /// retention to what the checkpoint no longer needs. Releases nothing: who knows of the primary's WAL does (I2). Blocks
  /// on the disk.
  Result<void> maintain(const RetentionPolicy& policy, Checkpoint checkpoint)
      EXCLUDES(commit_mutex_, state_mutex_);

  /// Checksum of the page at the current position, computed and kept if it was not known.
  Result<Checksum> page_checksum(Pgno pgno, ByteSpan scratch) REQUIRES(commit_mutex_);

  void set_observer(DatabaseObserver* observer) { observer_.store(observer); }
  /// The source outlives its use: reset it to nullptr under the commit lock before destroying it.
  void set_page_source(PageSource* source) REQUIRES(commit_mutex_) { page_source_ = source; }
  PageSource* page_source() const REQUIRES(commit_mutex_) { return page_source_; }

 private:
  struct State {
    Pos pos;
    std::uint32_t page_size = 0;
    std::uint32_t page_count = 0;
    Epoch epoch;
    std::int64_t timestamp_ms = 0;
    sqlite::WalPosition wal;
  };
  Database(FileSystem& fs, std::string name, Clock& clock, const Options& options);
  friend class ChangeSetWriter;
  State state() const EXCLUDES(state_mutex_);
  Result<void> replay_log() REQUIRES(commit_mutex_);
  Result<void> apply_sums(const RecordInfo& info, std::span<const PageSum> sums) REQUIRES(commit_mutex_);
  void publish(const RecordInfo& info) EXCLUDES(state_mutex_);

  FileSystem& fs_;
  const std::string name_;
  Clock& clock_;
  const Options options_;
  Mutex commit_mutex_;
  std::unique_ptr<ChangeLog> log_;
  std::unique_ptr<PageChecksums> checksums_ GUARDED_BY(commit_mutex_);
  PageSource* page_source_ GUARDED_BY(commit_mutex_) = nullptr;
  ltx::Encoder encoder_ GUARDED_BY(commit_mutex_);
  std::uint64_t log_bytes_at_checkpoint_ GUARDED_BY(commit_mutex_) = 0;

  mutable Mutex state_mutex_;
  State state_ GUARDED_BY(state_mutex_);
  std::string fault_ GUARDED_BY(state_mutex_);
  std::string waiting_ GUARDED_BY(state_mutex_);
  std::atomic<DatabaseObserver*> observer_{nullptr};
};

}  // namespace sluice::storage
