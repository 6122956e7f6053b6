// One database on a replica: takes change sets and snapshots into the log and, through the live files, to the readers.
//
// Who holds what, outermost first:
//   apply_mutex_       whoever receives, installs, removes or stops (one at a time)
//   checkpoint_mutex_  a backfill, or whoever replaces, opens or closes the live files
//   commit mutex       position, log, checksums; and the moment a change set becomes visible, so that page reads at the
//                      position are right. No FUSE request under it.
//   state_mutex_       leaf
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_set>
#include <vector>

#include "base/mutex.h"
#include "base/thread_pool.h"
#include "storage/apply/awake.h"
#include "storage/apply/backfill.h"
#include "storage/apply/incoming.h"
#include "storage/apply/index_helper.h"
#include "storage/apply/placement.h"
#include "storage/apply/snapshot_files.h"
#include "storage/apply/wal_writer.h"
#include "storage/replica.h"

namespace sluice::storage::apply {

/// What the databases of one replica share. Outlives them.
struct ReplicaContext {
  Store& store;
  MountAccess& access;
  ThreadPool& pool;
  ReplicaOptions options;
  IndexHelper* index_helper;  ///< nullptr with passthrough
  std::shared_ptr<AwakeDatabases> awake;
  /// Called after a change set was applied: the idle checkpoint is due later.
  std::function<void(const std::string& name)> changed;
};

/// What is being offered for a resynchronisation. (Not nested: clang 14 cannot default-construct a nested one in std::optional.)
struct Offering {
  PageOffer offer;
  std::uint64_t next = 1;  ///< page to go on with
  BlockSum block;
  bool local = false;      ///< the live content counts, not only what was collected
  bool complete = false;
};

/// Thread-safe.
class LiveReplicaDatabase final : public ReplicaDatabase,
                                  private PageSource,
                                  public std::enable_shared_from_this<LiveReplicaDatabase> {
 public:
  LiveReplicaDatabase(ReplicaContext& context, std::shared_ptr<Database> database);
  ~LiveReplicaDatabase() override;

  /// Recovers what is on disk, if that was not done yet, and opens it.
  Result<void> open() EXCLUDES(apply_mutex_);

  const std::string& name() const override { return name_; }
  Pos logged() const override EXCLUDES(state_mutex_);
  Pos applied() const override EXCLUDES(state_mutex_);
  Epoch epoch() const override { return database_->epoch(); }

  Result<void> begin_change_set(const IncomingChangeSet& head) override EXCLUDES(apply_mutex_);
  Result<void> change_set_bytes(ByteView bytes) override EXCLUDES(apply_mutex_);
  Result<void> finish_change_set() override EXCLUDES(apply_mutex_);
  void abort_change_set() override EXCLUDES(apply_mutex_);

  Result<bool> prepare_offer(PageOffer& offer) override EXCLUDES(apply_mutex_);
  Result<void> offered_sums(Pgno first, std::span<std::uint64_t> out) override EXCLUDES(apply_mutex_);
  Result<void> begin_snapshot(std::uint32_t page_size, std::uint32_t pages) override EXCLUDES(apply_mutex_);
  Result<void> snapshot_page(Pgno pgno, ByteView content) override EXCLUDES(apply_mutex_);
  Result<void> finish_snapshot(const SnapshotEnd& end) override EXCLUDES(apply_mutex_);
  void abort_snapshot() override EXCLUDES(apply_mutex_);

  void mark_damaged(std::span<const Pgno> pages) override EXCLUDES(apply_mutex_);
  std::size_t damaged() override EXCLUDES(apply_mutex_);
  Result<Txid> sync() override;

  /// Backfills what readers allow and records how far the database file is durable. True when nothing is left to do.
  bool idle_checkpoint() EXCLUDES(checkpoint_mutex_);
  /// Closes its files, if nobody else uses the database and nothing is left to do. Waits for nobody.
  bool try_sleep() EXCLUDES(apply_mutex_);
  /// Last checkpoint; the live files are closed.
  void stop() EXCLUDES(apply_mutex_);
  /// Moves the files to DATA/lost+found. The database must not be used again.
  Result<void> set_aside() EXCLUDES(apply_mutex_);

 private:
  /// The files readers see.
  struct Live {
    explicit Live(std::unique_ptr<LiveFiles> opened) : files(std::move(opened)) {}
    std::unique_ptr<LiveFiles> files;
    std::unique_ptr<LiveIndex> index;
    std::unique_ptr<WalWriter> writer;  ///< goes first: it gives back its lock
    bool blocked = false;  ///< a replacement failed half-way: all locks of the wal-index are kept, readers are told BUSY
  };

  // replica_database.cc: opening, receiving, change sets
  Result<void> recover_live() REQUIRES(apply_mutex_);
  Result<void> attach(std::unique_ptr<LiveFiles> files) REQUIRES(apply_mutex_);
  // replica_resume.cc
  Result<bool> resume() REQUIRES(apply_mutex_);
  Result<bool> resume_live(std::unique_ptr<LiveFiles> files) REQUIRES(apply_mutex_);
  Result<void> publish_last() REQUIRES(apply_mutex_);
  Result<bool> is_published(const ChangeLog::Handle& record) REQUIRES(apply_mutex_);
  void detach() REQUIRES(apply_mutex_);

  // replica_sleep.cc
  bool may_sleep() const;
  void make_room() REQUIRES(apply_mutex_);
  Result<void> wake() REQUIRES(apply_mutex_);
  void start_asleep() REQUIRES(apply_mutex_);
  bool fall_asleep() REQUIRES(apply_mutex_);
  bool fall_asleep_locked() REQUIRES(apply_mutex_, checkpoint_mutex_);
  Result<void> read_asleep(Pgno pgno, ByteSpan out);  // commit lock held
  Result<void> finish_by_kind() REQUIRES(apply_mutex_);
  Result<void> apply_to_wal() REQUIRES(apply_mutex_);
  Result<void> add_page_one() REQUIRES(apply_mutex_);
  Result<void> decode_incoming(ltx::PageVisitor visit) REQUIRES(apply_mutex_);
  Result<void> check_post() REQUIRES(apply_mutex_, database_->commit_mutex());
  Result<void> log_incoming() REQUIRES(apply_mutex_, database_->commit_mutex());
  Result<void> restart_wal_if_due() REQUIRES(apply_mutex_);
  void after_apply() REQUIRES(apply_mutex_);
  void fail(const std::string& why) EXCLUDES(state_mutex_);
  std::uint64_t failures() const EXCLUDES(state_mutex_);
  void heal(std::uint64_t failures_before) EXCLUDES(state_mutex_);
  bool failed() const EXCLUDES(state_mutex_);
  void set_applied(const Pos& pos) EXCLUDES(state_mutex_);
  Result<void> read_page(Pgno pgno, ByteSpan out) override;

  // replica_offer.cc: what is here, for a primary that sends only what differs
  Result<void> begin_offer() REQUIRES(apply_mutex_);
  bool local_usable(std::uint32_t page_size) REQUIRES(apply_mutex_);
  PageChecksums& page_checksums() REQUIRES(apply_mutex_);
  Checksum local_sum(Pgno pgno) REQUIRES(apply_mutex_);
  Checksum compute_local_sum(Pgno pgno) REQUIRES(apply_mutex_);
  void forget_offer() REQUIRES(apply_mutex_) { offering_.reset(); }

  // replica_install.cc: databases that come, go or are replaced
  Result<void> create_from_incoming() REQUIRES(apply_mutex_);
  Result<void> replace_by_incoming() REQUIRES(apply_mutex_);
  Result<void> remove_by_incoming() REQUIRES(apply_mutex_);
  Result<void> install_incoming_as_snapshot() REQUIRES(apply_mutex_);
  Result<void> install_snapshot(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> complete_snapshot(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> carry_over(const SnapshotEnd& end) REQUIRES(apply_mutex_, checkpoint_mutex_);
  Result<void> mark_snapshot(const SnapshotEnd& end) REQUIRES(apply_mutex_, checkpoint_mutex_);
  Result<void> install_as_new(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> install_by_append(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> add_differing_pages(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> install_by_replacement(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> install_deletion(const SnapshotEnd& end) REQUIRES(apply_mutex_);
  Result<void> rebase(const SnapshotEnd& end) REQUIRES(apply_mutex_, database_->commit_mutex());
  Result<void> put_in_place(const std::string& image, std::uint32_t page_size) REQUIRES(apply_mutex_);
  Result<void> take_away() REQUIRES(apply_mutex_);
  Result<void> record_position() REQUIRES(apply_mutex_);
  template <class Prepare>
  Result<void> replace_content(ImageFile& image, std::uint32_t commit, Prepare prepare) REQUIRES(apply_mutex_);

  // replica_checkpoint.cc
  enum class Record { if_due, now };
  Result<BackfillResult> checkpoint(Record record) EXCLUDES(checkpoint_mutex_);
  Result<BackfillResult> checkpoint_locked(Record record) REQUIRES(checkpoint_mutex_);
  Result<void> record_backfilled(const AppliedMark& mark) REQUIRES(checkpoint_mutex_);
  bool recording_due(const AppliedMark& mark) REQUIRES(checkpoint_mutex_);
  void report_pinned(const BackfillResult& result) REQUIRES(checkpoint_mutex_);
  void post_checkpoint();

  ReplicaContext& context_;
  const std::shared_ptr<Database> database_;
  const std::string name_;
  const std::shared_ptr<AwakeDatabases> awake_;
  const Placement placement_;

  Mutex apply_mutex_ ACQUIRED_BEFORE(checkpoint_mutex_);
  Incoming incoming_ GUARDED_BY(apply_mutex_);
  std::vector<Database::PageSum> sums_ GUARDED_BY(apply_mutex_);  ///< of the incoming image
  Bytes scratch_ GUARDED_BY(apply_mutex_);
  std::unique_ptr<SnapshotFiles> snapshot_ GUARDED_BY(apply_mutex_);  ///< being collected, or broken off
  bool collecting_ GUARDED_BY(apply_mutex_) = false;
  std::optional<Offering> offering_ GUARDED_BY(apply_mutex_);
  int mismatches_ GUARDED_BY(apply_mutex_) = 0;  ///< snapshots in a row that did not add up with what is here
  std::unordered_set<std::uint32_t> damaged_ GUARDED_BY(apply_mutex_);  ///< pages that are not what their checksum says
  bool stopped_ GUARDED_BY(apply_mutex_) = false;
  // Lengths of the WAL, in frames, at which to backfill: on the pool, and (behind a writer that never pauses a backfill on
  // the pool never gets to the end of the WAL) what little is left right here.
  std::uint32_t checkpoint_at_ GUARDED_BY(apply_mutex_) = 0;
  std::uint32_t full_checkpoint_at_ GUARDED_BY(apply_mutex_) = 0;

  Mutex checkpoint_mutex_;
  BackfillBuffers buffers_ GUARDED_BY(checkpoint_mutex_);
  std::unique_ptr<SnapshotFiles> installed_ GUARDED_BY(checkpoint_mutex_);  ///< not yet all in the database file
  std::uint64_t log_bytes_recorded_ GUARDED_BY(checkpoint_mutex_) = 0;
  MonotonicTime pin_reported_ GUARDED_BY(checkpoint_mutex_){};
  std::atomic<bool> checkpoint_posted_{false};

  /// Changed with all of apply_mutex_, checkpoint_mutex_ and the commit mutex held; any one of them is enough to use it.
  std::unique_ptr<Live> live_;
  bool asleep_ = false;  ///< likewise: the files are whole and closed, wake() opens them
  std::unique_ptr<File> resting_file_;  ///< commit mutex: the database file, for page reads while asleep
  bool content_moving_ = false;  ///< commit mutex: the database file is being rewritten, no page can be read

  mutable Mutex state_mutex_;
  std::optional<std::string> failure_ GUARDED_BY(state_mutex_);
  std::uint64_t failures_ GUARDED_BY(state_mutex_) = 0;
  Pos applied_ GUARDED_BY(state_mutex_);
};

}  // namespace sluice::storage::apply
