#include <utility>

#include "cluster/lease.h"

namespace sluice::cluster {
namespace {

// Configuration is the lease store: what the administrator wrote holds for ever.
constexpr Epoch kStaticEpoch{1};

class StaticLease final : public Lease {
 public:
  Epoch epoch() const override { return kStaticEpoch; }
  MonotonicTime expires() const override { return MonotonicTime::max(); }
  Duration renew_interval() const override { return Duration::zero(); }
  Result<void> renew(MonotonicTime) override { return {}; }
  Result<void> release(MonotonicTime) override { return {}; }
};

class StaticLeaser final : public Leaser {
 public:
  explicit StaticLeaser(StaticLeaseOptions options) : options_(std::move(options)) {
    options_.primary.epoch = kStaticEpoch;
  }

  std::string type() const override { return "static"; }

  Result<std::unique_ptr<Lease>> acquire(const PrimaryInfo& self, MonotonicTime) override {
    if (options_.is_primary) return std::unique_ptr<Lease>(std::make_unique<StaticLease>());
    std::string holder = options_.primary.url.empty() ? options_.primary.hostname : options_.primary.url;
    return make_error(Errc::busy, "the configuration makes " + holder + " the primary, not " + self.hostname);
  }

  Result<std::optional<PrimaryInfo>> primary(MonotonicTime) override {
    if (options_.primary.url.empty() && options_.primary.hostname.empty()) return std::optional<PrimaryInfo>();
    return std::optional<PrimaryInfo>(options_.primary);
  }

 private:
  StaticLeaseOptions options_;
};

}  // namespace

std::unique_ptr<Leaser> make_static_leaser(StaticLeaseOptions options) {
  return std::make_unique<StaticLeaser>(std::move(options));
}

}  // namespace sluice::cluster
