// Replica side of replication: connects to the primary, receives, hands over to storage::Replica, acknowledges. Reconnects
// with backoff and jitter for ever; every failure is logged once with its cause.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "replication/chain.h"
#include "replication/resync_progress.h"
#include "storage/replica.h"

namespace sluice::replication {

struct SubscriberOptions {
  std::string primary_url;        ///< http://host:port
  std::string hostname;           ///< this node, for the primary's status
  NodeId node_id;
  std::string token;              ///< sent as "Authorization: Bearer", if not empty
  int connect_timeout_ms = 3000;
  int heartbeat_ms = 1000;
  int peer_timeout_ms = 5000;
  int stall_timeout_ms = 30'000;  ///< a primary that reads nothing
  int backoff_min_ms = 50;
  int backoff_max_ms = 2000;
};

struct SubscriberStatus {
  bool connected = false;
  bool synced = false;             ///< connected and has been caught up with every database since connecting
  std::string primary_hostname;    ///< of the primary itself; empty: never heard
  std::string upstream_hostname;   ///< of the node that this one is connected to: the primary, or a replica of it
  NodePath path;                   ///< from the primary to that node
  Epoch epoch;                     ///< the primary's
  std::string last_error;          ///< of the last failed attempt, empty while connected
  /// Milliseconds between the primary's newest timestamp heard and what is applied; nullopt: never synchronised.
  std::optional<std::int64_t> lag_ms;
  std::uint64_t bytes_received = 0;
  std::uint64_t resyncs = 0;       ///< snapshots asked for because something did not fit
  std::map<std::string, ResyncProgress> resyncing;  ///< by database
};

/// Thread-safe.
class Subscriber {
 public:
  static std::unique_ptr<Subscriber> create(storage::Replica& replica, Clock& clock, ThreadPool& pool,
                                            SubscriberOptions options);
  virtual ~Subscriber() = default;
  virtual SubscriberStatus status() const = 0;
  /// For a publisher on the same node.
  virtual Upstream upstream() const = 0;
  /// Has the database compared with the primary's page by page, now or when connected next: for pages that were marked
  /// as damaged (storage::ReplicaDatabase).
  virtual void request_resync(const std::string& name, const std::string& reason) = 0;
  /// Disconnects and stops. Idempotent.
  virtual void stop() = 0;
};

}  // namespace sluice::replication
