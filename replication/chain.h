// Replicas that serve replicas: what such a node tells those below it of those above.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "storage/ids.h"

namespace sluice::replication {

/// Nodes from the primary (first) to one of its replicas.
using NodePath = std::vector<NodeId>;
inline constexpr std::size_t kMaxPath = 64;

inline bool leads_through(const NodePath& path, NodeId node) {
  return std::find(path.begin(), path.end(), node) != path.end();
}

/// What a replica knows of the nodes above it.
struct Upstream {
  std::string primary_hostname;        ///< of the primary itself; empty: never heard
  Epoch epoch;                         ///< the primary's
  NodePath path;                       ///< to the node that this one is connected to; empty: never connected
  std::optional<std::int64_t> lag_ms;  ///< nullopt: this node has never caught up, and has nothing to pass on yet
};

}  // namespace sluice::replication
