// A primary that stops cleanly lets the replicas that are connected have everything.
#include <future>

#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

using std::chrono::steady_clock;

PublisherOptions patient(int stop_wait_ms) {
  PublisherOptions options = quick();
  options.stop_wait_ms = stop_wait_ms;
  return options;
}

TEST(StreamStop, ConnectedReplicasGetTheLastChangeSets) {
  TestPrimary primary(patient(20'000));
  auto& db = primary.database("a.db");
  auto& other = primary.database("b.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(10, 0)));
  ASSERT_TRUE(replica.reaches("b.db", other.commit(10, 0)));
  // The replica is busy with the first of them when the primary stops.
  replica.fake().fake("a.db")->hold();
  for (int i = 0; i < 20; ++i) db.commit(200, 150);
  other.commit(10, 2);
  ASSERT_TRUE(wait_for([&] { return replica.fake().fake("a.db")->waiting(); }));
  auto stopped = std::async(std::launch::async, [&] { primary.publisher().stop(); });
  ASSERT_TRUE(replica.reaches("b.db", other.database().pos()));
  EXPECT_NE(stopped.wait_for(std::chrono::milliseconds(50)), std::future_status::ready) << "the replica lacks something";
  replica.fake().fake("a.db")->release();
  ASSERT_EQ(stopped.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  // At once: it was waited for.
  EXPECT_EQ(replica.pos("a.db"), db.database().pos());
  expect_same(db, replica);
}

TEST(StreamStop, AReplicaThatHangsIsNotWaitedForForEver) {
  TestPrimary primary(patient(300));
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(10, 0)));
  replica.fake().fake("a.db")->hold();
  db.commit(10, 2);
  const auto begin = steady_clock::now();
  primary.publisher().stop();
  const auto took = steady_clock::now() - begin;
  EXPECT_GE(took, std::chrono::milliseconds(290));
  EXPECT_LT(took, std::chrono::seconds(5));
  replica.fake().fake("a.db")->release();
}

TEST(StreamStop, NobodyIsWaitedForWhoHasEverything) {
  TestPrimary primary(patient(20'000));
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(10, 0)));
  TestReplica gone(primary.url(), NodeId(98));
  gone.start();
  ASSERT_TRUE(gone.reaches("a.db", db.database().pos()));
  gone.stop();
  const auto begin = steady_clock::now();
  primary.publisher().stop();
  EXPECT_LT(steady_clock::now() - begin, std::chrono::seconds(5));
}

}  // namespace
}  // namespace sluice::replication::testing
