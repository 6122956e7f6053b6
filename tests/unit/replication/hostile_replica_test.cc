// What a replica, or somebody who claims to be one, can send to the primary.
#include <gtest/gtest.h>

#include <random>

#include "tests/unit/replication/raw_peer.h"
#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

class HostileReplica : public ::testing::Test {
 protected:
  HostileReplica() : primary_(options()) {}
  static PublisherOptions options() {
    PublisherOptions options = quick();
    options.peer_timeout_ms = 1000;
    return options;
  }
  // The primary is as good as new.
  void expect_alive() {
    TestReplica replica(primary_.url());
    replica.start();
    auto& db = primary_.database("alive.db");
    EXPECT_TRUE(replica.reaches("alive.db", db.commit(3, 1)));
  }
  void expect_refused(RawPeer& peer, WireError code, const std::string& part) {
    const auto error = peer.read_until<ErrorFrame>();
    ASSERT_TRUE(error.has_value()) << "no Error frame; expected: " << part;
    EXPECT_EQ(error->code, code) << error->text;
    EXPECT_NE(error->text.find(part), std::string::npos) << error->text;
    EXPECT_TRUE(peer.closed());
  }
  TestPrimary primary_;
};

TEST_F(HostileReplica, AnotherVersionIsToldWhichSideToUpgrade) {
  for (const bool newer : {true, false}) {
    RawPeer peer = RawPeer::to_primary(primary_.port());
    Hello hello;
    hello.min_version = newer ? kMaxVersion + 1 : 0;
    hello.max_version = newer ? kMaxVersion + 1 : 0;
    hello.node_id = NodeId(5);
    hello.hostname = "stranger";
    peer.send(hello);
    expect_refused(peer, WireError::version, newer ? "upgrade the primary" : "upgrade the replica");
  }
  EXPECT_TRUE(primary_.publisher().replicas().empty());
}

TEST_F(HostileReplica, ANewerVersionThatAlsoSpeaksOursIsWelcome) {
  RawPeer peer = RawPeer::to_primary(primary_.port());
  Hello hello;
  hello.max_version = kMaxVersion + 5;
  hello.node_id = NodeId(5);
  peer.send(hello);
  const auto welcome = peer.read_until<Welcome>();
  ASSERT_TRUE(welcome.has_value());
  EXPECT_EQ(welcome->version, kMaxVersion);
}

TEST_F(HostileReplica, ANodeDoesNotReplicateItself) {
  RawPeer peer = RawPeer::to_primary(primary_.port());
  peer.greet(primary_.store().node_id());
  expect_refused(peer, WireError::self, "itself");
}

TEST_F(HostileReplica, AReplicaOfALaterEpochFencesThePrimary) {
  RawPeer peer = RawPeer::to_primary(primary_.port());
  Hello hello;
  hello.node_id = NodeId(5);
  peer.send(hello);
  Positions positions;
  positions.databases.push_back({"a.db", {Txid(1), Checksum(2)}, Epoch(2), false});
  peer.send(positions);
  expect_refused(peer, WireError::stale_epoch, "epoch 2");
}

TEST_F(HostileReplica, FramesOutOfPlace) {
  primary_.database("a.db").commit(3, 0);
  const std::vector<Message> wrong = {Ready{}, Welcome{}, SnapshotBegin{1, 512, 1}, Hello{},
                                      Ack{1, 0, Txid(1), Txid(1), 1u << 30}, Ack{4711, 0, {}, {}, 0}};
  for (const Message& message : wrong) {
    RawPeer peer = RawPeer::to_primary(primary_.port());
    peer.greet();
    ASSERT_TRUE(peer.read_until<DatabaseStart>().has_value());
    peer.send(message);
    expect_refused(peer, WireError::protocol, "");
  }
  RawPeer early = RawPeer::to_primary(primary_.port());
  early.send(Ack{1, 0, {}, {}, 0});
  expect_refused(early, WireError::protocol, "Ack");
  expect_alive();
}

TEST_F(HostileReplica, DatabasesAnnouncedTwice) {
  RawPeer peer = RawPeer::to_primary(primary_.port());
  Hello hello;
  hello.node_id = NodeId(5);
  peer.send(hello);
  Positions positions;
  positions.databases = {{"a", {}, Epoch(1), false}, {"a", {}, Epoch(1), false}};
  peer.send(positions);
  expect_refused(peer, WireError::protocol, "twice");
}

TEST_F(HostileReplica, OversizedAndGarbage) {
  RawPeer peer = RawPeer::to_primary(primary_.port());
  Bytes header(kFrameHeader, std::byte{0xff});
  peer.send(ByteView(header));
  expect_refused(peer, WireError::too_large, "at most");

  std::mt19937 random(1);
  for (int round = 0; round < 30; ++round) {
    RawPeer garbage = RawPeer::to_primary(primary_.port());
    if (round % 2 != 0) garbage.greet();
    Bytes noise(random() % 5000 + 16);
    for (auto& b : noise) b = std::byte(random());
    noise[0] = round % 3 == 0 ? std::byte{0} : noise[0];
    garbage.send(ByteView(noise));
    EXPECT_TRUE(garbage.closed());
  }
  expect_alive();
}

TEST_F(HostileReplica, SayingNothingIsNotWaitedForForEver) {
  RawPeer silent = RawPeer::to_primary(primary_.port());
  EXPECT_TRUE(silent.closed(std::chrono::seconds(5)));
  RawPeer half = RawPeer::to_primary(primary_.port());
  half.greet();
  EXPECT_TRUE(half.closed(std::chrono::seconds(5)));
}

// A replica that acknowledges nothing gets a window full and no more.
TEST_F(HostileReplica, TheWindowIsRespected) {
  auto& db = primary_.database("a.db");
  for (int i = 0; i < 40; ++i) db.commit(200, 200);
  db.commit(4000, 0);
  RawPeer peer = RawPeer::to_primary(primary_.port());
  peer.greet();
  const auto welcome = peer.read_until<Welcome>();
  ASSERT_TRUE(welcome.has_value());
  std::uint64_t got = 0;
  while (auto message = peer.read(std::chrono::milliseconds(400))) {
    if (const auto* asked = std::get_if<OfferRequest>(&*message)) peer.send(Offer{asked->id, 0, 0, 0, 256});
    const bool content = std::holds_alternative<ChangeSet>(*message) || std::holds_alternative<ChangeSetData>(*message) ||
                         std::holds_alternative<ChangeSetEnd>(*message) ||
                         std::holds_alternative<SnapshotPages>(*message);
    if (content) got += frame_cost(peer.payload().size());
  }
  EXPECT_LE(got, welcome->window_bytes);
  EXPECT_GT(got, welcome->window_bytes / 2);
}

TEST_F(HostileReplica, AResyncRequestForWhateverIsHarmless) {
  auto& db = primary_.database("a.db");
  const Pos pos = db.commit(3, 0);
  RawPeer peer = RawPeer::to_primary(primary_.port());
  peer.greet();
  ASSERT_TRUE(peer.read_until<ChangeSet>().has_value());
  peer.send(ResyncRequest{"no.db", 1, {}, true, ""});
  peer.send(ResyncRequest{"a.db", 1, {Txid(77), Checksum(1)}, false, "lost"});
  auto start = peer.read_until<DatabaseStart>();
  ASSERT_TRUE(start.has_value());
  EXPECT_TRUE(start->snapshot);
  EXPECT_EQ(start->attempt, 1u);
  ASSERT_TRUE(peer.read_until<OfferRequest>().has_value());
  peer.send(Offer{start->id, 1, 0, 0, 256});
  ASSERT_TRUE(peer.read_until<SnapshotDone>().has_value());
  peer.send(ResyncRequest{"a.db", 1, {}, true, "an old one"});
  peer.send(ResyncRequest{"a.db", 2, pos, false, "back"});
  start = peer.read_until<DatabaseStart>();
  ASSERT_TRUE(start.has_value());
  EXPECT_EQ(start->attempt, 2u);
  EXPECT_FALSE(start->snapshot);
}

}  // namespace
}  // namespace sluice::replication::testing
