#include <gtest/gtest.h>

#include "cluster/lease.h"

namespace sluice::cluster {
namespace {

const MonotonicTime kSoon = std::chrono::steady_clock::now() + std::chrono::seconds(1);

TEST(StaticLeaser, PrimaryHoldsTheLeaseForEver) {
  const auto leaser = make_static_leaser({.is_primary = true, .primary = {"a", "http://a:1", Epoch(7)}});
  EXPECT_EQ(leaser->type(), "static");
  auto lease = leaser->acquire({"a", "http://a:1", Epoch(0)}, kSoon);
  ASSERT_TRUE(lease.has_value());
  EXPECT_EQ((*lease)->epoch(), Epoch(1));
  EXPECT_EQ((*lease)->expires(), MonotonicTime::max());
  EXPECT_EQ((*lease)->renew_interval(), Duration::zero());
  EXPECT_TRUE((*lease)->renew(kSoon).has_value());
  EXPECT_TRUE((*lease)->release(kSoon).has_value());
}

TEST(StaticLeaser, PrimaryAnnouncesItself) {
  const auto leaser = make_static_leaser({.is_primary = true, .primary = {"a", "http://a:1", Epoch(7)}});
  const auto primary = leaser->primary(kSoon);
  ASSERT_TRUE(primary.has_value());
  ASSERT_TRUE(primary->has_value());
  EXPECT_EQ((*primary)->hostname, "a");
  EXPECT_EQ((*primary)->epoch, Epoch(1)) << "the epoch of a static primary is 1, whatever the caller filled in";
}

TEST(StaticLeaser, ReplicaNeverGetsTheLease) {
  const auto leaser = make_static_leaser({.is_primary = false, .primary = {"a", "http://a:1", Epoch(1)}});
  const auto lease = leaser->acquire({"b", "http://b:1", Epoch(0)}, kSoon);
  ASSERT_TRUE(lease.has_error());
  EXPECT_EQ(lease.error().code, Errc::busy);
  EXPECT_NE(lease.error().message.find("http://a:1"), std::string::npos) << lease.error().message;
  const auto primary = leaser->primary(kSoon);
  ASSERT_TRUE(primary.has_value() && primary->has_value());
  EXPECT_EQ((*primary)->url, "http://a:1");
}

TEST(StaticLeaser, NobodyKnown) {
  const auto leaser = make_static_leaser({});
  const auto primary = leaser->primary(kSoon);
  ASSERT_TRUE(primary.has_value());
  EXPECT_FALSE(primary->has_value());
}

}  // namespace
}  // namespace sluice::cluster
