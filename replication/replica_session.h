// One connected replica, seen from the primary: handshake, heartbeats, acknowledgements, status. What is sent and when is
// StreamSender's. Loop thread only, but for status().
#pragma once

#include <map>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "replication/stream_sender.h"

namespace sluice::replication {

class ReplicaSession : public Connection::Handler, public std::enable_shared_from_this<ReplicaSession> {
 public:
  /// What the session needs of the publisher.
  class Owner {
   public:
    virtual ~Owner() = default;
    /// All databases there are now.
    virtual std::vector<std::shared_ptr<Tracked>> all_databases() = 0;
    /// While draining: another acknowledgement came.
    virtual void session_progressed() = 0;
    /// The last call of a session; it must not be destroyed inside.
    virtual void session_ended(ReplicaSession& session) = 0;
  };

  ReplicaSession(PublisherContext& context, Owner& owner, std::string address);
  ~ReplicaSession() override;

  void start(UniqueFd socket, Bytes early);
  void wake(const std::shared_ptr<Tracked>& tracked);
  void offer(const TailBatch& batch);
  void database_removed(const std::string& name);
  /// From now on the owner hears of progress, and drained() is true once the replica has confirmed everything (or is gone).
  void begin_drain();
  bool drained();
  /// Says goodbye and closes. The owner is not told.
  void close(const std::string& reason);
  /// Thread-safe. nullopt before the handshake is done.
  std::optional<ReplicaStatus> status() const EXCLUDES(status_mutex_);

 private:
  enum class Phase {
    hello,
    positions,
    waiting,  // until this node, itself a replica, has caught up
    streaming,
    closed
  };

  void on_frame(Frame& frame) override;
  void on_written() override;
  void on_broken(const Error& error) override;
  void on_closed(const Error& error) override;
  void handle_hello(const Hello& hello);
  void handle_positions(Positions& positions);
  void begin_streams();
  void begin_if_caught_up();
  Epoch epoch() const;
  Result<void> check_circle(const Upstream& upstream, NodeId replica) const;
  void handle_ack(const Ack& ack);
  void heartbeat();
  bool send_heartbeat();
  /// Refuses: an Error frame, then the end. Logged.
  void refuse(WireError code, const std::string& text);
  void end();

  PublisherContext& context_;
  Owner& owner_;
  const std::string address_;
  std::string name_;  // for messages: host name and address
  Phase phase_ = Phase::hello;
  std::shared_ptr<Connection> connection_;
  std::shared_ptr<StreamSender> sender_;
  Timer heartbeat_timer_;
  MonotonicTime started_;
  bool draining_ = false;
  std::unordered_map<std::string, Positions::Entry> announced_;

  mutable Mutex status_mutex_;
  ReplicaStatus status_ GUARDED_BY(status_mutex_);
  bool greeted_ GUARDED_BY(status_mutex_) = false;
  std::map<std::string, ReplicaDatabaseStatus> databases_ GUARDED_BY(status_mutex_);
};

}  // namespace sluice::replication
