// A running node: the only place that knows everything. Opens the data directory, takes the role the lease
// gives, puts mount, capture or apply, replication and HTTP together, and takes them apart again in the right
// order.
#pragma once

#include <memory>
#include <string>

#include "base/descriptor_store.h"
#include "base/errors.h"
#include "server/config.h"
#include "server/status.h"

namespace sluice::server {

/// Thread-safe but for stop().
class Node {
 public:
  /// Returns when the node serves: mounted, recovered, listening. `token`: content of the token file, or
  /// empty. On an error everything is taken apart again. `descriptors`: what outlives this process; if the process before left
  /// its mount there this node takes it over, clients and all. nullptr: nothing outlives it.
  static Result<std::unique_ptr<Node>> start(const Config& config, std::string token,
                                             DescriptorStore* descriptors = nullptr);
  virtual ~Node() = default;

  virtual NodeStatus status() const = 0;
  /// Without databases and what grows with them: cheap.
  virtual NodeStatus summary() const = 0;
  virtual std::uint16_t http_port() const = 0;
  /// Becomes readable when the mount ended by itself (somebody unmounted it): the node must stop.
  virtual int ended_fd() const = 0;
  /// See fuse::Mount::beat.
  virtual void beat() = 0;
  /// Has the mount's connection aborted should this process be killed and not end (server/connection_watch.h). `guardian`: who
  /// sees to it while it lives; 0: nobody. Done by start() already unless it takes over: then clients come first. Main thread.
  virtual void watch_connection(int guardian) = 0;
  /// Stops serving, unmounts, captures or applies what is pending, closes. Idempotent; the first error is
  /// returned, later steps are done all the same.
  virtual Result<void> stop() = 0;
};

}  // namespace sluice::server
