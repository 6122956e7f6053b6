// The streams of all databases to one replica: what each still has to send, whose turn it is, snapshots. Loop thread
// only; file work goes to the pools.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "base/thread_pool.h"
#include "replication/connection.h"
#include "replication/log_reader.h"
#include "replication/publisher.h"
#include "replication/snapshot_sender.h"
#include "replication/task_gate.h"
#include "storage/store.h"

namespace sluice::replication {

/// A database as the publisher knows it. Its number is the same for all replicas, so that frames can be shared.
struct Tracked {
  std::uint32_t id = 0;
  std::shared_ptr<storage::Database> database;
};

/// The newest change sets of a database, read once for all replicas.
struct TailBatch {
  std::shared_ptr<Tracked> tracked;
  Pos from;
  Cursor to;
  Buffer frames;
  std::uint64_t cost = 0;
};

/// What all sessions of a publisher share.
struct PublisherContext {
  EventLoop& loop;
  ThreadPool& pool;
  ThreadPool& snapshots;
  Clock& clock;
  storage::Store& store;
  const PublisherOptions& options;
  TaskGate& gate;
};

class StreamSender : public std::enable_shared_from_this<StreamSender> {
 public:
  StreamSender(PublisherContext& context, Connection& connection, std::string replica);
  ~StreamSender();

  /// The protocol version spoken; before anything else.
  void set_version(std::uint32_t version) { version_ = version; }
  /// Begins the stream of a database that the replica has at `pos` (or, `busy`, will tell later).
  void add(std::shared_ptr<Tracked> tracked, const Pos& pos, bool busy, std::uint32_t attempt = 0);
  /// Everything there was at connect has been added: Ready follows when it has been sent.
  void all_added();
  /// Something became durable, or the database is new or another one of that name.
  void wake(const std::shared_ptr<Tracked>& tracked);
  void offer(const TailBatch& batch);
  /// This node does not have the database any more: the replica is told, too.
  void remove(const std::string& name);
  /// Errc::protocol when the acknowledgement cannot be.
  Result<void> acknowledge(const Ack& ack);
  void resync(const ResyncRequest& request);
  /// Of an attempt that is over, or not asked for: ignored.
  void offer_arrived(const Offer& offer, ByteView payload);
  void page_sums_arrived(const PageSums& sums, ByteView payload);
  void on_written();
  /// How long the oldest thing not yet sent has been waiting.
  std::uint64_t behind_ms() const;
  /// From now on drained() tells whether the replica has everything on disk that is durable here.
  void begin_drain();
  bool drained();
  /// No more frames; running snapshots end.
  void cancel();

  /// Of the databases that are being resynchronised, by name.
  std::map<std::string, ResyncProgress> resyncing() const;
  /// The database's name, if the number was ever given out here.
  const std::string* name_of(std::uint32_t id) const;

 private:
  enum class State {
    waiting,   // for the replica to say what it has
    idle,      // everything durable is sent
    queued,    // in runnable_
    reading,   // a pool task reads its next piece
    blocked,   // the replica has to acknowledge first
    offering,  // the replica was asked what it has, before a snapshot
    snapshot,  // a snapshot is queued or running
    delayed,   // after an error, until the retry timer
  };
  struct Stream {
    std::shared_ptr<Tracked> tracked;
    State state = State::idle;
    bool start = true;              // DatabaseStart goes first
    bool want_snapshot = false;     // the replica asked for one
    bool snapshot_again = false;    // the last one broke off; nothing else would do
    bool again = false;             // woken while reading
    bool counted = false;           // Ready waits for it
    std::uint32_t attempt = 0;
    Txid target;                    // for Ready
    Cursor cursor;
    std::uint64_t sent = 0;         // window counters of this attempt
    std::uint64_t acknowledged = 0;
    Txid durable;                   // on the replica's disk
    std::shared_ptr<SnapshotSender> snapshot;
    MonotonicTime busy_since;
  };
  struct ReadResult {
    LogPiece piece;
    bool started = false;  // DatabaseStart is in piece.frames
    std::optional<Error> error;
  };

  void drop(std::uint32_t id);
  Stream* find(const std::shared_ptr<Tracked>& tracked);
  void set_state(Stream& stream, State state);
  void enqueue(Stream& stream);
  void pump();
  std::uint64_t window_left(const Stream& stream) const;
  void begin_read(Stream& stream);
  static ReadResult read(const Stream& stream, std::uint64_t budget);
  static ReadResult read_start(const Stream& stream, std::uint64_t budget);
  void read_done(std::uint32_t id, std::uint32_t attempt, ReadResult result);
  void continue_after(Stream& stream, const LogPiece& piece);
  void begin_snapshot(Stream& stream);
  void run_snapshot(Stream& stream, std::optional<storage::PageOffer> offer);
  void snapshot_frame(std::uint32_t id, std::uint32_t attempt, Buffer frames, std::uint64_t cost);
  void snapshot_done(std::uint32_t id, std::uint32_t attempt, const Result<storage::SnapshotEnd>& result);
  void restart(Stream& stream);
  void delay(Stream& stream, const Error& error);
  void report_snapshot_progress(Stream& stream);
  static bool confirmed(const Stream& stream);
  void check_target(Stream& stream);
  void send_ready_if_due();

  PublisherContext& context_;
  Connection& connection_;
  const std::string replica_;
  std::uint32_t version_ = kMinVersion;
  bool cancelled_ = false;
  std::unordered_map<std::uint32_t, Stream> streams_;       // by number
  std::unordered_map<std::string, std::uint32_t> numbers_;  // by name
  std::unordered_map<std::string, std::uint32_t> removed_;  // name to attempt
  std::uint32_t highest_number_ = 0;
  std::deque<std::uint32_t> runnable_;
  std::unordered_set<std::uint32_t> busy_;
  std::unordered_set<std::uint32_t> snapshots_;
  std::vector<std::uint32_t> unconfirmed_;  // while draining
  std::size_t reads_ = 0;
  std::uint64_t outstanding_ = 0;  // sum of sent - acknowledged
  std::size_t unready_ = 0;
  bool all_added_ = false;
  bool ready_sent_ = false;
  std::string last_error_;
  Timer retry_timer_;
};

}  // namespace sluice::replication
