// What a node says of itself: one snapshot that /v1/status, /metrics and `sluice status` are made of.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fuse/orphans/file_holders.h"
#include "replication/publisher.h"
#include "replication/subscriber.h"
#include "server/scrub.h"
#include "storage/database.h"
#include "storage/store.h"

namespace sluice::server {

struct DatabaseStatus {
  std::string name;
  Pos pos;                     ///< of the log; on a replica what was received
  std::optional<Pos> applied;  ///< replica: what readers see
  std::uint32_t page_size = 0;
  std::uint32_t pages = 0;
  std::string journal_mode;  ///< "wal", "rollback"; "unknown" when the file cannot be read
  Txid log_first;            ///< smallest TXID that can still be read
  Txid durable;
  std::uint64_t log_bytes = 0;
  std::int64_t timestamp_ms = 0;  ///< of the last change set
  std::string fault;              ///< storage::Database::fault
  std::string waiting;            ///< storage::Database::waiting
  std::string warning;            ///< storage::Database::warning
  std::vector<fuse::Holder> orphans;  ///< fenced off since this node started (fuse/orphans/orphan_fence.h)
  replication::ResyncProgress resync{};  ///< replica
  std::optional<ScrubStatus> scrub;    ///< of the last scrub since the node started
  std::uint64_t bytes() const { return std::uint64_t{page_size} * pages; }
};

struct NodeStatus {
  storage::Role role = storage::Role::primary;
  NodeId node_id;
  std::string hostname;
  std::string primary_hostname;  ///< replica: as far as known
  std::string primary_url;       ///< replica
  std::string advertise_url;
  Epoch epoch;
  std::int64_t process = 0;  ///< process id
  std::int64_t uptime_ms = 0;
  std::string mountpoint;
  std::string data_dir;
  std::string io;  ///< "native", "plain"; fuse/io_path.h
  std::vector<DatabaseStatus> databases;                    ///< sorted by name
  std::vector<replication::ReplicaStatus> replicas;         ///< primary
  std::optional<replication::SubscriberStatus> subscriber;  ///< replica
  std::map<std::string, std::uint64_t> fuse_requests;       ///< by opcode
  std::map<std::string, std::uint64_t> capture;             ///< primary: fuse/capture/counters.h, by name

  bool ready() const {
    return role == storage::Role::primary || (subscriber && subscriber->connected && subscriber->synced);
  }
  /// nullptr: none of that name.
  const DatabaseStatus* find(std::string_view name) const;
  DatabaseStatus* find(std::string_view name);
  /// Why not ready; empty if ready.
  std::string not_ready_reason() const;
};

/// Everything about one database but `applied`. `backing_path`: of the file, for the journal mode.
DatabaseStatus database_status(storage::Database& database, const std::string& backing_path);

std::string status_json(const NodeStatus& status);
/// The Prometheus text format.
std::string metrics_text(const NodeStatus& status);
/// The table of `sluice status` from the JSON of /v1/status. Errc::protocol: not such a JSON.
Result<std::string> status_table(const std::string& json);

}  // namespace sluice::server
