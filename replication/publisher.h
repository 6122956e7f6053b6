// Primary side of replication: serves streams to replicas. One TCP connection a replica; databases flow independently
// on it (chunked, with a window each). Protocol: docs/FORMATS.md, proto/stream.proto.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/thread_pool.h"
#include "replication/chain.h"
#include "replication/resync_progress.h"
#include "storage/store.h"

namespace sluice::replication {

struct PublisherOptions {
  std::string hostname;
  Epoch epoch{1};
  /// Set on a replica that serves replicas: what it knows of the nodes above it (`epoch` is then of no meaning). Called on the
  /// publisher's thread, until stop() returns.
  std::function<Upstream()> upstream;
  std::uint32_t chunk_bytes = 256 * 1024;      ///< largest piece of one database before others get their turn
  std::uint64_t window_bytes = 8u << 20;       ///< unacknowledged bytes a database may have in flight
  int heartbeat_ms = 1000;
  int peer_timeout_ms = 5000;                  ///< nothing heard: the connection is closed
  int stall_timeout_ms = 30'000;               ///< a peer that reads nothing; a snapshot of which nothing is acknowledged
  int stop_wait_ms = 3000;                     ///< stop() lets connected replicas confirm the last change sets so long
};

struct ReplicaDatabaseStatus {
  std::string name;
  Txid durable;
  Txid applied;
  ResyncProgress resync{};
};

struct ReplicaStatus {
  NodeId node_id;
  std::string hostname;
  std::string address;
  std::int64_t connected_ms = 0;      ///< since, wall clock
  std::vector<ReplicaDatabaseStatus> databases;
  std::uint64_t bytes_sent = 0;
};

/// Set as the store's observer. Own thread for sockets; file work on `pool`. Thread-safe.
class Publisher : public storage::DatabaseObserver {
 public:
  static std::unique_ptr<Publisher> create(storage::Store& store, Clock& clock, ThreadPool& pool,
                                           PublisherOptions options);
  /// Takes over a connection whose HTTP upgrade was answered with 101. `early`: bytes already read behind the request.
  virtual void accept(UniqueFd socket, Bytes early, std::string peer) = 0;
  virtual std::vector<ReplicaStatus> replicas() const = 0;
  /// A database appeared (or its position was rebased): tell the replicas.
  virtual void database_added(const std::string& name) = 0;
  /// Waits at most stop_wait_ms until all connected replicas have confirmed everything that is durable here, then closes
  /// all connections. Idempotent.
  virtual void stop() = 0;
};

}  // namespace sluice::replication
