// Who is the primary: a lease with a fencing epoch, behind an interface that every lease store implements (DESIGN §6).
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/errors.h"
#include "storage/ids.h"

namespace sluice::cluster {

/// What nodes tell each other about the primary through the lease store.
struct PrimaryInfo {
  std::string hostname;  ///< shown in .primary
  std::string url;       ///< http://host:port where its API and stream are
  Epoch epoch;
};

/// A held lease. I6: the holder acts as primary only while now < expires() on its own monotonic clock.
class Lease {
 public:
  virtual ~Lease() = default;
  virtual Epoch epoch() const = 0;
  /// End of validity: start of the last successful renewal + TTL - margin. MonotonicTime::max() for a static lease.
  virtual MonotonicTime expires() const = 0;
  /// How often to renew; zero: never.
  virtual Duration renew_interval() const = 0;
  /// Errc::stale_epoch: lost. Errc::unavailable, Errc::deadline: unknown, try again before expires(). Blocks at most until
  /// `deadline`.
  virtual Result<void> renew(MonotonicTime deadline) = 0;
  /// Gives the lease up so that others can take it at once.
  virtual Result<void> release(MonotonicTime deadline) = 0;
};

/// A lease store. Thread-safe; every call has a deadline.
class Leaser {
 public:
  virtual ~Leaser() = default;
  virtual std::string type() const = 0;  ///< "static", "etcd", …
  /// Takes the lease if it is free. Errc::busy: somebody else holds it.
  virtual Result<std::unique_ptr<Lease>> acquire(const PrimaryInfo& self, MonotonicTime deadline) = 0;
  /// The present primary, if any is known.
  virtual Result<std::optional<PrimaryInfo>> primary(MonotonicTime deadline) = 0;
};

/// This node is the primary for ever (epoch 1), or `primary` is.
struct StaticLeaseOptions {
  bool is_primary = false;
  PrimaryInfo primary;  ///< where the primary is (replicas), or how this node announces itself
};
std::unique_ptr<Leaser> make_static_leaser(StaticLeaseOptions options);

}  // namespace sluice::cluster
