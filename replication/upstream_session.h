// One connection to the primary, seen from the replica: handshake, frames to the databases' feeds, acknowledgements,
// requests to resynchronise. Loop thread only.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <unordered_set>

#include "replication/connection.h"
#include "replication/database_feed.h"
#include "replication/subscriber.h"

namespace sluice::replication {

using Feeds = std::map<std::string, std::shared_ptr<DatabaseFeed>>;

class UpstreamSession : public Connection::Handler {
 public:
  /// What the session needs of the subscriber.
  class Owner {
   public:
    virtual ~Owner() = default;
    virtual const Feeds& feeds() const = 0;
    virtual std::shared_ptr<DatabaseFeed> feed(const std::string& name) = 0;
    /// The handshake is done.
    virtual void session_welcomed(const Welcome& welcome) = 0;
    /// Connected and caught up with every database since connecting.
    virtual void session_synced() = 0;
    virtual void session_heartbeat(const Heartbeat& heartbeat) = 0;
    virtual void session_resync() = 0;
    /// Why the database is to be compared with the primary's; taken back by asking. nullopt: it is not.
    virtual std::optional<std::string> wanted_resync(const std::string& name) = 0;
    /// The last call; the session must not be destroyed inside.
    virtual void session_ended(const Error& error) = 0;
  };

  UpstreamSession(EventLoop& loop, Clock& clock, Owner& owner, const SubscriberOptions& options);
  ~UpstreamSession() override;

  void start(UniqueFd socket, Bytes early);
  /// The status of `feed` changed.
  void news(DatabaseFeed& feed);
  /// Asks for it if the database's stream runs; else that is done when it starts.
  void resync_if_wanted(const std::string& name);
  /// Says goodbye and closes. The owner is not told.
  void close(const std::string& reason);
  /// Bytes received since the last call.
  std::uint64_t take_bytes_received();

 private:
  struct Link {
    std::shared_ptr<DatabaseFeed> feed;
    std::uint32_t id = 0;            // 0: the primary has not named it yet
    std::uint32_t attempt = 0;
    bool listening = false;          // DatabaseStart of `attempt` has come
    bool was_busy = false;           // at the handshake: its position is told later
    std::uint64_t generation = 0;
    std::optional<Txid> target;      // to be applied before this node counts as synced
    bool foreign = false;            // what is applied is of another history: a snapshot comes first
    Ack acknowledged;
    int failures = 0;                // in a row
    Txid applied_at_failure;
    std::unique_ptr<Timer> retry;
  };

  void on_frame(Frame& frame) override;
  void on_written() override {}
  void on_broken(const Error& error) override;
  void on_closed(const Error& error) override;
  void greet();
  void refuse_circle();
  void handle_welcome(const Welcome& welcome);
  void handle_streaming(Frame& frame);
  void handle_start(const DatabaseStart& start);
  void handle_unknown(const DatabaseUnknown& unknown);
  void handle_content(Frame& frame);
  Link& link(const std::string& name);
  void acknowledge(Link& link, const DatabaseFeed::Status& status);
  void handle_failure(Link& link, const DatabaseFeed::Failure& failure);
  void request_resync(const std::string& name, bool snapshot, const std::string& reason);
  void send_outgoing(Link& link);
  void check_synced(Link& link, const DatabaseFeed::Status& status);
  void sync_later(Link& link);
  void heartbeat();
  void refuse(WireError code, Error error);
  void end(const Error& error);
  void finish();

  EventLoop& loop_;
  Clock& clock_;
  Owner& owner_;
  const SubscriberOptions& options_;
  std::shared_ptr<Connection> connection_;
  bool ended_ = false;
  bool welcomed_ = false;
  bool ready_ = false;
  bool synced_ = false;
  std::uint64_t window_bytes_ = 0;
  std::uint64_t bytes_taken_ = 0;
  Epoch newest_epoch_;
  std::map<std::string, Link> links_;
  std::unordered_map<std::uint32_t, Link*> by_id_;
  std::unordered_set<std::uint32_t> retired_ids_;
  std::size_t unsynced_ = 0;  // links with a target
  std::unordered_set<DatabaseFeed*> sync_due_;
  Timer sync_timer_;
  Timer heartbeat_timer_;
};

}  // namespace sluice::replication
