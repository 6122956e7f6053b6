// A replica that is off the log says what it has and is sent what differs (decision 0005).
#include <gtest/gtest.h>

#include "tests/unit/replication/raw_peer.h"
#include "tests/unit/replication/stream_fixture.h"
#include "tests/unit/replication/test_proxy.h"

namespace sluice::replication::testing {
namespace {

// Both have the same 3000 pages; then the primary's log starts over, `changed` pages later.
void part(TestDatabase& db, TestReplica& replica, std::uint32_t changed) {
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(3000, 0)));
  replica.stop();
  db.commit(3000, changed);
  db.rebase();
}

TEST(StreamResync, OnlyWhatDiffersTravels) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  part(db, replica, 30);
  const std::size_t before = replica.fake().find("a.db")->pages_received();
  replica.fake().find("a.db")->slow_offer(3);
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
  EXPECT_LE(replica.fake().find("a.db")->pages_received() - before, 30u);
  EXPECT_LT(replica.status().bytes_received, 2u * 30 * 4096 + 3000 * 8);
  ASSERT_TRUE(replica.reaches("a.db", db.commit(3000, 5)));
  expect_same(db, replica);
}

TEST(StreamResync, NothingTravelsWhenNothingDiffers) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(3000, 0)));
  replica.stop();
  db.rebase();  // as an import of the same content: the position is another one
  const std::size_t before = replica.fake().find("a.db")->pages_received();
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_EQ(replica.fake().find("a.db")->pages_received(), before);
}

TEST(StreamResync, WritersGoOnMeanwhile) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  part(db, replica, 300);
  replica.fake().find("a.db")->slow_offer(20);
  replica.start();
  for (int i = 0; i < 200; ++i) db.commit(i % 50 == 0 ? 2900 : 3000, 10);
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
}

TEST(StreamResync, CutAnywhereWhatCameIsNotSentAgain) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  auto& db = primary.database("a.db");
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  part(db, replica, 1500);
  const auto fake = replica.fake().find("a.db");
  const std::size_t before = fake->pages_received();
  replica.start();
  for (int round = 1; round <= 12; ++round) {
    proxy.cut_after(static_cast<std::uint64_t>(round) * 100'000);
    const auto connections = proxy.connections();
    wait_for([&] { return proxy.connections() > connections + 1 || replica.pos("a.db") == db.database().pos(); },
             std::chrono::milliseconds(300));
  }
  proxy.cut_after(0);
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  expect_same(db, replica);
  // What was on its way at each cut, at most a window, may come twice.
  EXPECT_LE(fake->pages_received() - before, 1500u + proxy.connections() * (256 * 1024 / 4096));
}

TEST(StreamResync, AFlippedByteInTheComparisonIsHealed) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestProxy proxy(primary.port());
  TestReplica replica(proxy.url());
  part(db, replica, 100);
  for (const std::uint64_t at : {150u, 220u, 260u, 300u, 400u, 700u, 5000u, 50'000u}) {
    proxy.flip_at(at);
    replica.start();
    ASSERT_TRUE(replica.reaches("a.db", db.database().pos())) << at;
    expect_same(db, replica);
    replica.stop();
    db.commit(3000, 50);
    db.rebase();
  }
}

TEST(StreamResync, DeletedWhileItIsCompared) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  part(db, replica, 100);
  replica.fake().find("a.db")->slow_offer(50);
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit_deletion()));
  EXPECT_TRUE(replica.fake().find("a.db")->pages().empty());
  ASSERT_TRUE(replica.reaches("a.db", db.commit(20, 0)));
  expect_same(db, replica);
}

// Nothing is wrong with the position: only the pages that are marked come.
TEST(StreamResync, DamagedPagesAreSentAnew) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", db.commit(3000, 0)));
  const auto fake = replica.fake().find("a.db");
  const std::vector<Pgno> damaged = {Pgno(1), Pgno(700)};
  for (const bool connected : {true, false}) {
    const std::size_t before = fake->pages_received();
    if (!connected) replica.stop();
    fake->damage();
    fake->mark_damaged(damaged);
    if (!connected) replica.start();
    replica.subscriber().request_resync("a.db", "a test");
    ASSERT_TRUE(wait_for([&] { return fake->damaged() == 0; }));
    EXPECT_EQ(fake->pages_received() - before, 2u);
    expect_same(db, replica);
  }
  ASSERT_TRUE(replica.reaches("a.db", db.commit(3000, 4)));
  replica.subscriber().request_resync("no.db", "a test");
  expect_same(db, replica);
}

TEST(StreamResync, ProgressIsToldOnBothSides) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  auto& db = primary.database("a.db");
  TestReplica replica(primary.url());
  part(db, replica, 2000);
  const auto fake = replica.fake().find("a.db");
  fake->hold();
  replica.start();
  const auto told = [&]() -> std::optional<ResyncProgress> {
    for (const auto& [name, progress] : replica.status().resyncing) return progress;
    return std::nullopt;
  };
  ASSERT_TRUE(wait_for([&] { return fake->waiting(); }));  // all of it is there, and being installed
  const auto here = told();
  ASSERT_TRUE(here.has_value());
  EXPECT_EQ(here->phase, ResyncProgress::Phase::copying);
  EXPECT_EQ(here->pages, here->expected);
  EXPECT_GT(here->pages, 1000u);
  EXPECT_GT(here->bytes, here->pages * 2000);
  EXPECT_EQ(here->eta_ms(), 0);
  fake->release();
  ASSERT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_TRUE(wait_for([&] { return !told().has_value(); }));
}

TEST(ResyncProgress, EtaAndRate) {
  ResyncProgress progress;
  EXPECT_FALSE(progress.eta_ms().has_value());
  progress = {ResyncProgress::Phase::copying, 250, 1000, 1'000'000, 500};
  EXPECT_EQ(progress.eta_ms(), 1500);
  EXPECT_EQ(progress.rate(), 2e6);
  progress.expected = 0;
  EXPECT_FALSE(progress.eta_ms().has_value());
}

TEST(StreamResync, AReplicaOfVersion1IsSentEverything) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(20, 0);
  db.rebase();
  RawPeer peer = RawPeer::to_primary(primary.port());
  Hello hello;
  hello.max_version = 1;
  hello.node_id = NodeId(5);
  peer.send(hello);
  Positions none;
  none.last = true;
  peer.send(none);
  const auto welcome = peer.read_until<Welcome>();
  ASSERT_TRUE(welcome.has_value());
  EXPECT_EQ(welcome->version, 1u);
  ASSERT_TRUE(peer.read_until<DatabaseStart>().has_value());
  const auto next = peer.read();
  ASSERT_TRUE(next.has_value());
  EXPECT_TRUE(std::holds_alternative<SnapshotBegin>(*next)) << kind_name(*next);
  ASSERT_TRUE(peer.read_until<SnapshotDone>().has_value());
}

class HostileOffer : public ::testing::Test {
 protected:
  HostileOffer() : primary_(options()), db_(primary_.database("a.db")) {
    db_.commit(3000, 0);
    db_.rebase();
    peer_.greet();
  }
  static PublisherOptions options() {
    PublisherOptions options = quick();
    options.peer_timeout_ms = 5000;  // not what is tested: a raw peer sends no heartbeats
    options.stall_timeout_ms = 300;
    return options;
  }
  void expect_alive() {
    TestReplica replica(primary_.url());
    replica.start();
    EXPECT_TRUE(replica.reaches("a.db", db_.commit(3000, 1)));
    expect_same(db_, replica);
  }
  TestPrimary primary_;
  TestDatabase& db_;
  RawPeer peer_ = RawPeer::to_primary(primary_.port());
};

TEST_F(HostileOffer, SumsOfNothingGetEverything) {
  ASSERT_TRUE(peer_.read_until<OfferRequest>().has_value());
  peer_.send(PageSums{1, 0, Pgno(1)}, Bytes(8));           // not asked for
  peer_.send(Offer{1, 7, 4096, 10, 256}, Bytes(8));        // another attempt
  peer_.send(Offer{99, 0, 4096, 10, 256}, Bytes(8));       // no such database
  peer_.send(Offer{1, 0, 4096, 3000, 256}, Bytes(12 * 8));
  peer_.send(Offer{1, 0, 4096, 3000, 256}, Bytes(12 * 8));  // once is enough
  const auto request = peer_.read_until<PageSumsRequest>();
  ASSERT_TRUE(request.has_value());
  EXPECT_EQ(request->first, Pgno(1));
  EXPECT_EQ(request->count, 3000u);
  peer_.send(PageSums{1, 0, Pgno(2)}, Bytes(3000 * 8));  // other pages
  peer_.send(PageSums{1, 0, Pgno(1)}, Bytes(2999 * 8));  // too few
  peer_.send(PageSums{1, 0, Pgno(1)}, Bytes(3000 * 8));
  const auto begin = peer_.read_until<SnapshotBegin>();
  ASSERT_TRUE(begin.has_value());
  EXPECT_TRUE(begin->compared);
  EXPECT_EQ(begin->differing, 3000u);
  ASSERT_TRUE(peer_.read_until<SnapshotPages>().has_value());
  expect_alive();
}

TEST_F(HostileOffer, AnOfferOfMorePagesThanThereAre) {
  ASSERT_TRUE(peer_.read_until<OfferRequest>().has_value());
  peer_.send(Offer{1, 0, 4096, 0xffffffff, 65536}, Bytes(65536 * 8));
  const auto request = peer_.read_until<PageSumsRequest>();
  ASSERT_TRUE(request.has_value());
  EXPECT_EQ(request->count, 3000u);
  expect_alive();
}

TEST_F(HostileOffer, WhoDoesNotAnswerHoldsNothingUp) {
  ASSERT_TRUE(peer_.read_until<OfferRequest>().has_value());
  peer_.send(Offer{1, 0, 4096, 3000, 256}, Bytes(12 * 8));
  ASSERT_TRUE(peer_.read_until<PageSumsRequest>().has_value());
  expect_alive();
}

TEST_F(HostileOffer, BrokenOnesAreRefused) {
  ASSERT_TRUE(peer_.read_until<OfferRequest>().has_value());
  peer_.send(Offer{1, 0, 4096, 3000, 256}, Bytes(11 * 8));
  const auto error = peer_.read_until<ErrorFrame>();
  ASSERT_TRUE(error.has_value());
  EXPECT_NE(error->text.find("blocks"), std::string::npos) << error->text;
  expect_alive();
}

}  // namespace
}  // namespace sluice::replication::testing
