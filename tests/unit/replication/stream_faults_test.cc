// What the network and the replica's disk can do to a stream: whatever happens, the replica's content is the primary's at
// the position it names, and it gets there.
#include <random>

#include "tests/unit/replication/stream_fixture.h"
#include "tests/unit/replication/test_proxy.h"

namespace sluice::replication::testing {
namespace {

TEST(StreamFaults, CutAnywhereItGoesOnWithoutAGap) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  replica.start();
  std::mt19937 random(3);
  for (int round = 0; round < 40; ++round) {
    proxy.cut_after(random() % 60'000 + 200);
    for (int i = 0; i < 5; ++i) db.commit(40, 6);
    wait_for([&] { return replica.pos("a.db") == db.database().pos(); }, std::chrono::milliseconds(20));
  }
  proxy.cut_after(0);
  proxy.cut();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_GT(proxy.connections(), 5u);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 0u) << "a cut connection is no reason for a snapshot";
  EXPECT_EQ(replica.fake().find("a.db")->change_sets(), db.database().pos().txid.value()) << "each exactly once";
}

TEST(StreamFaults, CutInsideSnapshots) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  auto& db = primary.database("a.db");
  db.commit(1000, 0);
  db.rebase();
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  std::mt19937 random(5);
  proxy.cut_after(100'000);
  replica.start();
  for (int round = 0; round < 20; ++round) {
    proxy.cut_after(random() % 1'500'000 + 1000);
    const auto before = proxy.connections();
    wait_for([&] { return proxy.connections() > before + 1; }, std::chrono::milliseconds(100));
    db.commit(1000, 3);
  }
  proxy.cut_after(0);
  proxy.cut();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
}

// Every byte of the stream at some time or other: nothing damaged is ever applied.
TEST(StreamFaults, AFlippedByteIsRefusedAndHealed) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestProxy proxy(primary.port());
  std::mt19937 random(11);
  int flips = 0;
  for (int round = 0; round < 30; ++round) {
    TestReplica replica(proxy.url());
    // Behind the HTTP answer (78 bytes): that is the dialer's.
    const std::uint64_t at = 80 + random() % 20'000;
    proxy.flip_at(at);
    db.commit(20, 8);
    replica.start();
    ASSERT_TRUE(replica.reaches("a.db", db.database().pos())) << "byte " << at << ": " << replica.status().last_error;
    expect_same(db, replica);
    flips += proxy.take_flipped() ? 1 : 0;
  }
  EXPECT_GT(flips, 10);
}

TEST(StreamFaults, AFlippedByteInAPayloadResynchronisesThatDatabaseOnly) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(200, 0);
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  proxy.flip_at(100'000);  // deep in the first change set's image
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_TRUE(proxy.flipped());
  EXPECT_EQ(proxy.connections(), 1u);
  EXPECT_EQ(replica.status().resyncs, 1u);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 0u) << "from the log again";
  expect_same(db, replica);
}

TEST(StreamFaults, AFrozenConnectionIsNoticedOnBothSides) {
  PublisherOptions options = quick();
  options.peer_timeout_ms = 300;
  TestPrimary primary(options);
  auto& db = primary.database("a.db");
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  replica.options().peer_timeout_ms = 300;
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(5, 0)));
  proxy.freeze(true);
  EXPECT_TRUE(wait_for([&] { return primary.publisher().replicas().empty(); })) << "the primary waits for ever";
  EXPECT_TRUE(wait_for([&] { return !replica.status().connected; })) << "the replica waits for ever";
  db.commit(5, 1);
  proxy.freeze(false);
  EXPECT_TRUE(replica.reaches("a.db", db.database().pos()));
}

TEST(StreamFaults, ContentThatDiffersIsReplacedByASnapshot) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  auto& other = primary.database("b.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(30, 0)));
  replica.fake().fake("a.db")->damage();
  db.commit(31, 0);
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 1u);
  EXPECT_TRUE(replica.reaches("b.db", other.commit(3, 0)));
  ASSERT_TRUE(replica.reaches("a.db", db.commit(31, 2)));
}

TEST(StreamFaults, ReplicaErrorsAreTriedAgain) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(30, 0)));
  for (const Errc code : {Errc::busy, Errc::no_space, Errc::io, Errc::internal}) {
    replica.fake().fake("a.db")->fail_next(2, code);
    ASSERT_TRUE(replica.reaches("a.db", db.commit(30, 2))) << errc_name(code);
  }
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 0u) << "nothing was wrong with its content";
  expect_same(db, replica);
}

TEST(StreamFaults, ADatabaseThatCannotBeAppliedShowsAsLag) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(30, 0)));
  ASSERT_TRUE(replica.synced());
  replica.fake().fake("a.db")->fail_next(1'000'000, Errc::busy);
  db.commit(30, 2);
  EXPECT_TRUE(wait_for([&] { return replica.status().lag_ms.value_or(0) > 300; }));
  replica.fake().fake("a.db")->fail_next(0, Errc::busy);
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_TRUE(wait_for([&] { return replica.status().lag_ms.value_or(1000) < 100; }));
}

TEST(StreamFaults, SnapshotsThatFailAreTriedAgain) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(100, 0);
  db.rebase();
  TestReplica replica(primary.url());
  replica.fake().fake("a.db")->fail_snapshots(2, Errc::no_space);
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_EQ(replica.status().resyncs, 2u);
  expect_same(db, replica);
}

TEST(StreamFaults, ReconnectWhileADatabaseIsStillBusy) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  auto& other = primary.database("b.db");
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(30, 0)));
  replica.fake().fake("a.db")->hold();
  for (int i = 0; i < 10; ++i) db.commit(30, 3);
  proxy.cut();
  // The new connection serves the other database while this one hangs.
  ASSERT_TRUE(replica.reaches("b.db", other.commit(3, 0)));
  EXPECT_FALSE(replica.status().synced);
  replica.fake().fake("a.db")->release();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_TRUE(replica.synced());
  expect_same(db, replica);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 0u);
}

TEST(StreamFaults, StopWhileConnectingToSomethingThatNeverAnswers) {
  Listener silent([](UniqueFd socket) {
    static std::vector<UniqueFd> kept;
    kept.push_back(std::move(socket));
  });
  TestReplica replica(silent.url());
  replica.start();
  wait_for([] { return false; }, std::chrono::milliseconds(50));
  const auto start = std::chrono::steady_clock::now();
  replica.stop();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
}

}  // namespace
}  // namespace sluice::replication::testing
