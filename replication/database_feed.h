// What arrives for one database on a replica: a bounded queue between the network and storage::ReplicaDatabase, worked
// off on the disk pool, one item at a time. Lives as long as the subscriber; connections come and go.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/thread_pool.h"
#include "replication/frames.h"
#include "replication/resync_progress.h"
#include "replication/task_gate.h"
#include "storage/replica.h"

namespace sluice::replication {

class DatabaseFeed;

/// What all feeds of a subscriber share.
struct FeedContext {
  storage::Replica& replica;
  ThreadPool& pool;
  Clock& clock;
  TaskGate& gate;
  /// Something in status() changed. Called on pool threads, at most once until status() was asked.
  std::function<void(std::shared_ptr<DatabaseFeed>)> news;
};

/// Thread-safe.
class DatabaseFeed : public std::enable_shared_from_this<DatabaseFeed> {
 public:
  struct Failure {
    Error error;
    bool snapshot = false;  ///< going on from the log would not help
  };
  struct Status {
    Pos logged;
    Txid applied;
    Txid durable;
    Epoch epoch;
    std::uint64_t generation = 1;  ///< that the following belong to
    std::uint64_t consumed = 0;    ///< window bytes processed
    std::uint64_t installed = 0;   ///< change sets and snapshots that became the content
    bool busy = false;             ///< work is queued or running
    bool unsynced = false;         ///< something applied is not durable
    std::optional<Failure> failure;  ///< the rest of this generation is ignored
  };

  /// `database`: nullptr when the replica does not have it yet.
  DatabaseFeed(FeedContext& context, std::string name, std::shared_ptr<storage::ReplicaDatabase> database);

  const std::string& name() const { return name_; }

  /// Forgets what is queued, aborts what was begun, and starts counting anew. Returns the new generation.
  std::uint64_t restart() EXCLUDES(mutex_);
  /// Queues a frame about this database (DatabaseStart, ChangeSet…, Snapshot…, DatabaseUnknown), with a copy of its payload.
  /// Returns the window bytes now queued.
  std::uint64_t push(Message message, ByteView payload, bool payload_intact) EXCLUDES(mutex_);
  /// Makes what is applied now durable, beside the work on the queue.
  void request_sync() EXCLUDES(mutex_);
  /// Also allows the next call of news().
  Status status() EXCLUDES(mutex_);
  /// Of the resynchronisation under way; Phase::none: none is.
  ResyncProgress progress() const EXCLUDES(mutex_);
  /// What is to be sent to the primary on behalf of `generation`: Offer and PageSums, whose number and attempt the caller
  /// fills in. What belongs to another generation is dropped.
  struct Outgoing {
    Message message;
    Bytes payload;
    std::uint64_t generation = 0;
  };
  std::vector<Outgoing> take_outgoing(std::uint64_t generation) EXCLUDES(mutex_);
  /// Since when this copy is known to be behind: arrival of the oldest item not processed, or a failure not healed.
  std::optional<MonotonicTime> pending_since() const EXCLUDES(mutex_);

 private:
  struct Item {
    Message message;
    Bytes payload;
    bool payload_intact = true;
    std::uint64_t cost = 0;
    std::uint64_t generation = 0;
    MonotonicTime arrived;
  };
  enum class Open { nothing, change_set, offer, snapshot };

  void schedule() REQUIRES(mutex_);
  enum class Step { idle, abort, offer, item };
  void drain() EXCLUDES(mutex_);
  Step next(Item& item) EXCLUDES(mutex_);
  bool drain_one() EXCLUDES(mutex_);
  void work_off(Item item) EXCLUDES(mutex_);
  void sync(storage::ReplicaDatabase& database, std::uint64_t lineage) EXCLUDES(mutex_);
  void go_on_offering() EXCLUDES(mutex_);
  void fail(const Error& error, std::uint64_t generation, MonotonicTime arrived) REQUIRES(mutex_);
  void abort_open();
  void tell() EXCLUDES(mutex_);

  Result<void> handle(const Item& item);
  Result<void> open_database();
  Result<void> discard();
  Result<void> change_set(const ChangeSet& head, ByteView image);
  Result<void> begin_change_set(const ChangeSet& head);
  Result<void> change_set_data(std::uint64_t offset, ByteView bytes);
  Result<void> end_change_set(Txid txid);
  Result<void> offer(const Item& item);
  Result<void> page_sums(const PageSumsRequest& request, std::uint64_t generation) EXCLUDES(mutex_);
  void set_phase(ResyncProgress::Phase phase, std::uint64_t expected) EXCLUDES(mutex_);
  void count_pages(std::uint64_t pages, std::uint64_t bytes) EXCLUDES(mutex_);
  void post(Message message, Bytes payload, std::uint64_t generation) EXCLUDES(mutex_);
  Result<void> snapshot_begin(const SnapshotBegin& begin);
  Result<void> snapshot_pages(const SnapshotPages& pages, ByteView payload);
  Result<void> snapshot_end(const SnapshotDone& end);

  FeedContext& context_;
  const std::string name_;

  // Of the drain task, which runs once at a time.
  std::shared_ptr<storage::ReplicaDatabase> database_;
  Open open_ = Open::nothing;
  ChangeSet head_;
  std::uint64_t received_ = 0;     // of the open change set's image
  std::uint32_t page_size_ = 0;    // of the open snapshot
  Bytes scratch_;
  storage::PageOffer offer_;              // while open_ is offer
  std::uint64_t offer_generation_ = 0;
  MonotonicTime offer_arrived_{};

  mutable Mutex mutex_;
  std::vector<Outgoing> outgoing_ GUARDED_BY(mutex_);
  ResyncProgress progress_ GUARDED_BY(mutex_);
  MonotonicTime phase_began_ GUARDED_BY(mutex_){};
  std::deque<Item> queue_ GUARDED_BY(mutex_);
  std::uint64_t queued_cost_ GUARDED_BY(mutex_) = 0;
  bool running_ GUARDED_BY(mutex_) = false;
  bool abort_ GUARDED_BY(mutex_) = false;
  bool touched_ GUARDED_BY(mutex_) = false;  // something was queued since the last restart
  bool syncing_ GUARDED_BY(mutex_) = false;
  std::uint64_t lineage_ GUARDED_BY(mutex_) = 0;  // counts snapshots: what was durable before one says nothing after it
  std::shared_ptr<storage::ReplicaDatabase> shared_ GUARDED_BY(mutex_);  // database_, for sync
  bool told_ GUARDED_BY(mutex_) = false;
  bool progressed_ GUARDED_BY(mutex_) = true;  // something was applied since the last failure
  std::optional<MonotonicTime> working_on_ GUARDED_BY(mutex_);
  std::optional<MonotonicTime> failing_since_ GUARDED_BY(mutex_);
  Status status_ GUARDED_BY(mutex_);
};

/// The part of a frame's window cost that counts: only frames about content do.
std::uint64_t content_cost(const Message& message, std::size_t payload);

}  // namespace sluice::replication
