// Floors that a mistake in batching or wake-ups would fall through, far below what is usual. The numbers are printed.
#include <algorithm>
#include <cstdio>

#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

double seconds_since(MonotonicTime start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

TEST(StreamSpeed, ManySmallChangeSets) {
  TestPrimary primary;
  auto& db = primary.database("a.db", 512);
  db.commit(2, 0);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  constexpr int kCount = 20'000;
  replica.stop();
  for (int i = 0; i < kCount; ++i) db.commit(2, 1, false);
  db.sync();
  const auto start = std::chrono::steady_clock::now();
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  const double rate = kCount / seconds_since(start);
  std::printf("%.0f change sets a second, decoded and applied by the fake\n", rate);
  EXPECT_GT(rate, 2000);
}

TEST(StreamSpeed, VisibilityLatency) {
  TestPrimary primary;
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(10, 0)));
  const auto fake = replica.fake().find("a.db");
  std::vector<double> micros;
  for (int i = 0; i < 300; ++i) {
    db.commit(10, 1, false);
    ASSERT_TRUE(db.database().log().sync().has_value());
    const Pos pos = db.database().pos();
    const auto start = std::chrono::steady_clock::now();
    primary.publisher().on_durable(db.database());
    while (fake->pos() != pos && seconds_since(start) < 5) {
    }
    micros.push_back(seconds_since(start) * 1e6);
  }
  std::sort(micros.begin(), micros.end());
  std::printf("durable to applied: p50 %.0f us, p99 %.0f us\n", micros[150], micros[297]);
  EXPECT_LT(micros[150], 20'000);
}

TEST(StreamSpeed, Snapshot) {
  TestPrimary primary;
  auto& db = primary.database("a.db");
  db.commit(25'600, 0);  // 100 MiB
  db.rebase();
  TestReplica replica(primary.url());
  const auto start = std::chrono::steady_clock::now();
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos(), std::chrono::seconds(60)));
  const double rate = 100 / seconds_since(start);
  std::printf("snapshot: %.0f MiB/s\n", rate);
  EXPECT_GT(rate, 5);
}

}  // namespace
}  // namespace sluice::replication::testing
