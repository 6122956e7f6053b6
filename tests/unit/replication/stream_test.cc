// Publisher and subscriber when nothing goes wrong on the way.
#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

std::int64_t since_ms(MonotonicTime start) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start).count();
}

TEST(Stream, EmptyReplicaGetsEverythingThenFollows) {
  TestPrimary primary(quick());
  auto& db = primary.database("tenants/42.db");
  for (int i = 0; i < 20; ++i) db.commit(30, 3);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  EXPECT_EQ(replica.status().primary_hostname, "the-primary");
  for (int i = 0; i < 50; ++i) db.commit(30 + static_cast<std::uint32_t>(i), 2);
  ASSERT_TRUE(replica.reaches("tenants/42.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_EQ(replica.fake().find("tenants/42.db")->snapshots(), 0u) << "the log had it all";
  EXPECT_EQ(replica.status().resyncs, 0u);
}

TEST(Stream, PrimaryKnowsThePositionsOfItsReplicas) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  const Pos pos = db.commit(5, 1);
  ASSERT_TRUE(wait_for([&] {
    const auto all = primary.publisher().replicas();
    return all.size() == 1 && all[0].databases.size() == 1 && all[0].databases[0].durable == pos.txid;
  })) << "the durable acknowledgement did not arrive";
  const auto status = primary.publisher().replicas().at(0);
  EXPECT_EQ(status.hostname, "the-replica");
  EXPECT_EQ(status.node_id, NodeId(99));
  EXPECT_EQ(status.databases[0].name, "a.db");
  EXPECT_EQ(status.databases[0].applied, pos.txid);
  replica.stop();
  EXPECT_TRUE(wait_for([&] { return primary.publisher().replicas().empty(); }));
}

// I2: what is not on disk here does not leave.
TEST(Stream, OnlyDurableChangeSetsAreShipped) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  const Pos durable = db.commit(5, 1);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", durable));
  auto& other = primary.database("b.db");
  db.commit(5, 1, false);
  ASSERT_EQ(db.database().log().durable(), durable.txid);
  // The other database's change set was made later and arrives: this one had every chance.
  ASSERT_TRUE(replica.reaches("b.db", other.commit(3, 1)));
  EXPECT_EQ(replica.pos("a.db"), durable);
  db.sync();
  EXPECT_TRUE(replica.reaches("a.db", db.database().pos()));
}

TEST(Stream, LargeChangeSetsGoInPiecesThroughASmallWindow) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  options.chunk_bytes = 64 * 1024;
  TestPrimary primary(options);
  auto& db = primary.database("big.db");
  db.commit(4000, 0);  // 16 MB of pages, half of it noise
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("big.db", db.database().pos()));
  db.commit(4000, 3000);
  ASSERT_TRUE(replica.reaches("big.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_EQ(replica.status().resyncs, 0u);
}

TEST(Stream, SnapshotWhenTheLogDoesNotReachBack) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(500, 0);
  db.rebase();
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  for (int i = 0; i < 10; ++i) db.commit(500, 5);
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 1u);
}

// What a database once was is not sent to a replica that never had it: not that of one that was rewritten, and not of one that is gone.
TEST(Stream, AnEmptyReplicaIsSentTheSnapshotIfTheLogIsLonger) {
  TestPrimary primary(quick());
  auto& small = primary.database("small.db");
  auto& gone = primary.database("gone.db");
  for (int i = 0; i < 40; ++i) {
    small.commit(100, 100);
    gone.commit(100, 100);
  }
  gone.commit_deletion();
  ASSERT_GT(gone.database().log().size_bytes(), 4u << 20);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("small.db", small.database().pos()));
  ASSERT_TRUE(replica.reaches("gone.db", gone.database().pos()));
  EXPECT_EQ(replica.fake().find("small.db")->snapshots(), 1u);
  EXPECT_EQ(replica.fake().find("gone.db")->snapshots(), 1u);
  expect_same(small, replica);
  ASSERT_TRUE(replica.reaches("gone.db", gone.commit(10, 0)));
  expect_same(gone, replica);
}

TEST(Stream, SnapshotThroughASmallWindowAndOfEveryPageSize) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  for (std::uint32_t page_size = 512; page_size <= 65536; page_size *= 2) {
    auto& db = primary.database(std::to_string(page_size) + ".db", page_size);
    db.commit(3u * 1024 * 1024 / page_size, 0);
    db.rebase();
  }
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  for (std::uint32_t page_size = 512; page_size <= 65536; page_size *= 2) {
    auto& db = primary.database(std::to_string(page_size) + ".db", page_size);
    expect_same(db, replica);
  }
}

TEST(Stream, WritersGoOnWhileASnapshotIsSent) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(5000, 0);
  db.rebase();
  TestReplica replica(primary.url());
  replica.start();
  for (int i = 0; i < 300; ++i) db.commit(5000, 20);
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
}

TEST(Stream, RebaseWhileConnectedIsASnapshot) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(50, 0)));
  db.rebase();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  ASSERT_TRUE(replica.reaches("a.db", db.commit(60, 4)));
  expect_same(db, replica);
  EXPECT_GE(replica.fake().find("a.db")->snapshots(), 1u);
}

TEST(Stream, DatabasesThatAppearAreDeletedAndComeBack) {
  TestPrimary primary(quick());
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced()) << "nothing to catch up with";
  auto& db = primary.database("new.db");
  ASSERT_TRUE(replica.reaches("new.db", db.commit(10, 0)));
  ASSERT_TRUE(replica.reaches("new.db", db.commit_deletion()));
  EXPECT_TRUE(replica.fake().find("new.db")->pages().empty());
  ASSERT_TRUE(replica.reaches("new.db", db.commit(7, 0)));
  EXPECT_EQ(db.database().pos().txid, Txid(3));
  expect_same(db, replica);
}

TEST(Stream, WhatThePrimaryDoesNotHaveIsPutAway) {
  TestPrimary primary(quick());
  primary.database("kept.db").commit(3, 0);
  primary.store().open_database("empty.db").value();
  TestReplica replica(primary.url());
  {
    // Give it two databases of another life.
    TestPrimary other(quick());
    other.database("gone.db").commit(4, 0);
    other.database("empty.db").commit(4, 0);
    replica.options().primary_url = other.url();
    replica.start();
    ASSERT_TRUE(replica.synced());
    replica.stop();
  }
  replica.options().primary_url = primary.url();
  replica.start();
  ASSERT_TRUE(replica.synced());
  EXPECT_TRUE(wait_for([&] { return replica.fake().discarded().size() == 2; }));
  EXPECT_EQ(replica.fake().find("gone.db"), nullptr);
  EXPECT_TRUE(replica.reaches("kept.db", primary.database("kept.db").database().pos()));
}

TEST(Stream, ReplicaWithAnotherHistoryGetsASnapshot) {
  TestPrimary primary(quick());
  primary.database("a.db").commit(3, 0);
  TestPrimary other(quick());
  other.database("a.db").commit(9, 0);
  other.database("a.db").commit(9, 2);
  TestReplica replica(other.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  replica.stop();
  replica.options().primary_url = primary.url();
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", primary.database("a.db").database().pos()));
  expect_same(primary.database("a.db"), replica);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 1u);
}

TEST(Stream, ASlowDatabaseDoesNotStallTheOthers) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  auto& slow = primary.database("slow.db");
  auto& quick_one = primary.database("quick.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("slow.db", slow.commit(100, 0)));
  ASSERT_TRUE(replica.reaches("quick.db", quick_one.commit(100, 0)));
  replica.fake().fake("slow.db")->hold();
  for (int i = 0; i < 20; ++i) slow.commit(100, 90);  // several windows
  for (int i = 0; i < 200; ++i) quick_one.commit(100, 5);
  EXPECT_TRUE(replica.reaches("quick.db", quick_one.database().pos()));
  EXPECT_LT(replica.pos("slow.db").txid, slow.database().pos().txid);
  ASSERT_TRUE(wait_for([&] { return replica.status().lag_ms.value_or(0) > 100; })) << "the lag must show";
  replica.fake().fake("slow.db")->release();
  EXPECT_TRUE(replica.reaches("slow.db", slow.database().pos()));
  EXPECT_EQ(replica.status().resyncs, 0u);
  EXPECT_TRUE(wait_for([&] { return replica.status().lag_ms.value_or(1000) < 50; }));
}

TEST(Stream, AThousandDatabases) {
  TestPrimary primary(quick());
  for (int i = 0; i < 1000; ++i) primary.database("t/" + std::to_string(i) + ".db", 512).commit(2, 0, true);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  for (int i = 0; i < 1000; i += 10) primary.database("t/" + std::to_string(i) + ".db").commit(3, 1);
  for (int i = 0; i < 1000; ++i) {
    auto& db = primary.database("t/" + std::to_string(i) + ".db");
    ASSERT_TRUE(replica.reaches(db.database().name(), db.database().pos()));
  }
  // Connecting again with a thousand positions to announce, nothing to send.
  replica.stop();
  replica.start();
  ASSERT_TRUE(replica.synced());
  EXPECT_LT(primary.publisher().replicas().at(0).bytes_sent, 500'000u);
}

TEST(Stream, SeveralReplicas) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  std::vector<std::unique_ptr<TestReplica>> replicas;
  for (std::uint64_t i = 0; i < 4; ++i) {
    replicas.push_back(std::make_unique<TestReplica>(primary.url(), NodeId(100 + i)));
    replicas.back()->start();
    for (int n = 0; n < 25; ++n) db.commit(20, 2);
  }
  for (auto& replica : replicas) {
    ASSERT_TRUE(replica->reaches("a.db", db.database().pos()));
    expect_same(db, *replica);
  }
  EXPECT_EQ(primary.publisher().replicas().size(), 4u);
}

TEST(Stream, StopIsPromptAndCanBeRepeated) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(4000, 0);
  db.rebase();
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(wait_for([&] { return replica.status().bytes_received > 0 || replica.status().connected; }));
  auto start = std::chrono::steady_clock::now();
  replica.subscriber().stop();
  replica.subscriber().stop();
  EXPECT_LT(since_ms(start), 1000);
  EXPECT_FALSE(replica.status().connected);

  replica.start();
  start = std::chrono::steady_clock::now();
  primary.publisher().stop();
  primary.publisher().stop();
  EXPECT_LT(since_ms(start), 1000);
  db.commit(4000, 1);  // an observer that was stopped is still called
}

TEST(Stream, LagGrowsWithoutAPrimaryAndIsUnknownBeforeTheFirstSync) {
  auto primary = std::make_unique<TestPrimary>(quick());
  primary->database("a.db").commit(3, 0);
  TestReplica replica("http://127.0.0.1:1");
  replica.start();
  ASSERT_TRUE(wait_for([&] { return !replica.status().last_error.empty(); }));
  EXPECT_FALSE(replica.status().lag_ms.has_value());
  EXPECT_FALSE(replica.status().connected);
  replica.stop();
  replica.options().primary_url = primary->url();
  replica.start();
  ASSERT_TRUE(replica.synced());
  EXPECT_LT(replica.status().lag_ms.value_or(1000), 500);
  primary = nullptr;
  ASSERT_TRUE(wait_for([&] { return replica.status().lag_ms.value_or(0) > 300; }));
  EXPECT_FALSE(replica.status().synced);
  EXPECT_EQ(replica.status().primary_hostname, "the-primary");
}

TEST(Stream, PublisherRestart) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  for (int i = 0; i < 5; ++i) {
    ASSERT_TRUE(replica.reaches("a.db", db.commit(10, 2)));
    primary.restart();
    db.commit(10, 2);
  }
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_EQ(replica.fake().find("a.db")->snapshots(), 0u) << "it had only to go on";
}

}  // namespace
}  // namespace sluice::replication::testing
