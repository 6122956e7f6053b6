// What a primary, or somebody in its place, can send to a replica.
#include <gtest/gtest.h>

#include "storage/ltx/decoder.h"
#include "tests/unit/replication/raw_peer.h"
#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

constexpr std::string_view kGranted = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n\r\n";

// Real change sets, to be sent in wrong ways.
struct Material {
  ChangeSet head;
  Bytes image;
};

class HostilePrimary : public ::testing::Test {
 protected:
  HostilePrimary()
      : listener_([this](UniqueFd socket) {
          MutexLock lock(mutex_);
          incoming_.push_back(std::make_unique<RawPeer>(std::move(socket)));
        }),
        replica_(listener_.url()) {
    // Two change sets of a real database.
    TestPrimary source(quick());
    auto& db = source.database("a.db");
    for (int i = 0; i < 3; ++i) {
      db.commit(20, 4);
      const auto handle = db.database().log().find(db.database().pos().txid).value();
      Material material;
      const auto& info = handle.info;
      material.head = {1, true, info.epoch, info.pre, info.post, info.page_size, info.commit, info.timestamp_ms,
                       info.length};
      material.image.resize(info.length);
      EXPECT_EQ(handle.file->read_at(handle.offset, material.image).value(), info.length);
      sets_.push_back(std::move(material));
    }
    replica_.start();
  }
  ~HostilePrimary() override {
    replica_.stop();
    listener_.stop();
  }

  // The replica's next connection, after its HTTP request.
  std::unique_ptr<RawPeer> accept() {
    std::unique_ptr<RawPeer> peer;
    EXPECT_TRUE(wait_for([&] {
      MutexLock lock(mutex_);
      if (incoming_.empty()) return false;
      peer = std::move(incoming_.front());
      incoming_.erase(incoming_.begin());
      return true;
    }));
    EXPECT_NE(peer->read_head().find("Upgrade: sluice"), std::string::npos);
    return peer;
  }
  std::unique_ptr<RawPeer> welcome(std::uint64_t window = 1 << 20) {
    auto peer = accept();
    peer->send(as_bytes(kGranted));
    EXPECT_TRUE(peer->read_until<Positions>().has_value());
    peer->send(Welcome{1, NodeId(1), "hostile", Epoch(1), window});
    return peer;
  }
  void start(RawPeer& peer, std::uint32_t attempt = 0) {
    peer.send(DatabaseStart{1, "a.db", attempt, {}, false, sets_.back().head.post});
  }
  void send(RawPeer& peer, std::size_t n) { peer.send(sets_[n].head, sets_[n].image); }
  void send_in_pieces(RawPeer& peer, std::size_t n, bool end = true) {
    ChangeSet head = sets_[n].head;
    head.whole = false;
    peer.send(head);
    const ByteView image = sets_[n].image;
    const std::size_t half = image.size() / 2;
    peer.send(ChangeSetData{1, 0}, image.first(half));
    peer.send(ChangeSetData{1, half}, image.subspan(half));
    if (end) peer.send(ChangeSetEnd{1, head.post.txid});
  }
  Pos post(std::size_t n) const { return sets_[n].head.post; }
  // The database asks to start over; the stream goes on from where it stood, on the same connection.
  void expect_resync(RawPeer& peer, const Pos& pos) {
    const auto request = peer.read_until<ResyncRequest>();
    ASSERT_TRUE(request.has_value());
    EXPECT_EQ(request->name, "a.db");
    EXPECT_EQ(request->pos, pos);
    EXPECT_EQ(replica_.pos("a.db"), pos) << "something was applied that must not be";
    send(peer, 0);  // still of the old stream: ignored
    start(peer, request->attempt);
    const std::size_t next = pos == Pos{} ? 0 : pos.txid.value();
    for (std::size_t n = next; n < sets_.size(); ++n) send(peer, n);
    EXPECT_TRUE(replica_.reaches("a.db", sets_.back().head.post)) << replica_.status().last_error;
  }
  void expect_refused(RawPeer& peer, const std::string& part) {
    const auto error = peer.read_until<ErrorFrame>();
    ASSERT_TRUE(error.has_value());
    EXPECT_NE(error->text.find(part), std::string::npos) << error->text;
    EXPECT_TRUE(wait_for([&] { return replica_.status().last_error.find(part) != std::string::npos; }))
        << replica_.status().last_error;
  }

  Mutex mutex_;
  std::vector<std::unique_ptr<RawPeer>> incoming_ GUARDED_BY(mutex_);
  std::vector<Material> sets_;
  Listener listener_;
  TestReplica replica_;
};

TEST_F(HostilePrimary, TheMaterialIsGood) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  send_in_pieces(*peer, 1);
  send(*peer, 2);
  ASSERT_TRUE(replica_.reaches("a.db", post(2)));
  const auto ack = peer->read_until<Ack>();
  ASSERT_TRUE(ack.has_value());
  EXPECT_EQ(ack->id, 1u);
}

TEST_F(HostilePrimary, Duplicated) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  send(*peer, 0);
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, Reordered) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 1);
  expect_resync(*peer, Pos{});
}

TEST_F(HostilePrimary, DataWithoutBegin) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  peer->send(ChangeSetData{1, 0}, sets_[1].image);
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, EndWithoutAllOfIt) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  ChangeSet head = sets_[1].head;
  head.whole = false;
  peer->send(head);
  peer->send(ChangeSetData{1, 0}, ByteView(sets_[1].image).first(10));
  peer->send(ChangeSetEnd{1, head.post.txid});
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, MoreThanAnnounced) {
  auto peer = welcome();
  start(*peer);
  ChangeSet head = sets_[0].head;
  head.whole = false;
  head.length -= 1;
  peer->send(head);
  peer->send(ChangeSetData{1, 0}, sets_[0].image);
  expect_resync(*peer, Pos{});
}

TEST_F(HostilePrimary, PiecesOutOfOrder) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  ChangeSet head = sets_[1].head;
  head.whole = false;
  peer->send(head);
  peer->send(ChangeSetData{1, 100}, ByteView(sets_[1].image).subspan(100));
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, BeginInsideAChangeSet) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  send_in_pieces(*peer, 1, false);
  send(*peer, 1);
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, AnImageThatLies) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  Bytes image = sets_[1].image;
  image[image.size() / 2] ^= std::byte{1};
  peer->send(sets_[1].head, image);
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, SnapshotFramesOutOfPlace) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  peer->send(SnapshotPages{1, false, 4096, {Pgno(1)}}, Bytes(4096));
  expect_resync(*peer, post(0));
  peer->send(SnapshotDone{1, post(0), Epoch(1), 4096, 1, 0});
  ASSERT_TRUE(peer->read_until<ResyncRequest>().has_value());
  EXPECT_EQ(replica_.pos("a.db"), post(2));
}

TEST_F(HostilePrimary, ASnapshotThatLies) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  peer->send(SnapshotBegin{1, 4096, 2});
  peer->send(SnapshotPages{1, false, 8192, {Pgno(1), Pgno(2)}}, Bytes(8192));
  peer->send(SnapshotDone{1, {Txid(9), Checksum(1)}, Epoch(1), 4096, 2, 0});
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, CompressedRubbish) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  peer->send(SnapshotBegin{1, 4096, 2});
  peer->send(SnapshotPages{1, true, 8192, {Pgno(1), Pgno(2)}}, Bytes(100, std::byte{0xff}));
  expect_resync(*peer, post(0));
}

TEST_F(HostilePrimary, TwiceTheSameDamageAsksForASnapshot) {
  auto peer = welcome();
  start(*peer);
  send(*peer, 0);
  ASSERT_TRUE(replica_.reaches("a.db", post(0)));
  for (std::uint32_t attempt = 1; attempt <= 2; ++attempt) {
    send(*peer, 2);
    const auto request = peer->read_until<ResyncRequest>();
    ASSERT_TRUE(request.has_value());
    EXPECT_EQ(request->attempt, attempt);
    EXPECT_EQ(request->snapshot, attempt == 2);
    start(*peer, attempt);
  }
}

TEST_F(HostilePrimary, AnUnknownDatabaseNumber) {
  auto peer = welcome();
  start(*peer);
  ChangeSet head = sets_[0].head;
  head.id = 5;
  peer->send(head, sets_[0].image);
  expect_refused(*peer, "number 5");
}

TEST_F(HostilePrimary, ANumberForTwoDatabases) {
  auto peer = welcome();
  start(*peer);
  peer->send(DatabaseStart{1, "b.db", 0, {}, false, {}});
  expect_refused(*peer, "must not");
}

TEST_F(HostilePrimary, ANameThatLeavesTheDirectory) {
  auto peer = welcome();
  peer->send(DatabaseStart{1, "../../etc/passwd", 0, {}, false, {}});
  expect_refused(*peer, "name");
}

TEST_F(HostilePrimary, AStaleEpoch) {
  {
    auto peer = welcome();
    start(*peer);
    Material later = sets_[0];
    later.head.epoch = Epoch(5);
    peer->send(later.head, later.image);
    ASSERT_TRUE(replica_.reaches("a.db", post(0)));
    send(*peer, 1);  // epoch 1
    expect_refused(*peer, "epoch");
    EXPECT_EQ(replica_.pos("a.db"), post(0));
  }
  auto peer = accept();
  peer->send(as_bytes(kGranted));
  peer->send(Welcome{1, NodeId(1), "hostile", Epoch(4), 1 << 20});
  expect_refused(*peer, "epoch 4");
}

TEST_F(HostilePrimary, WindowViolation) {
  auto peer = welcome(256 * 1024);
  start(*peer);
  replica_.fake().fake("a.db")->hold();
  send(*peer, 0);
  const Bytes piece(200 * 1024);
  ChangeSet head = sets_[1].head;
  head.whole = false;
  head.length = 10 * piece.size();
  peer->send(head);
  for (std::uint64_t i = 0; i < 3; ++i) peer->send(ChangeSetData{1, i * piece.size()}, piece);
  expect_refused(*peer, "window");
  replica_.fake().fake("a.db")->release();
}

TEST_F(HostilePrimary, AWindowOutOfBounds) {
  auto peer = welcome(std::uint64_t{1} << 40);
  expect_refused(*peer, "window");
}

TEST_F(HostilePrimary, AnotherVersion) {
  auto peer = accept();
  peer->send(as_bytes(kGranted));
  peer->send(Welcome{kMaxVersion + 1, NodeId(1), "new", Epoch(1), 1 << 20});
  expect_refused(*peer, "upgrade the replica");
}

TEST_F(HostilePrimary, ItsOwnNodeId) {
  auto peer = accept();
  peer->send(as_bytes(kGranted));
  peer->send(Welcome{1, NodeId(99), "me", Epoch(1), 1 << 20});
  expect_refused(*peer, "own id");
}

TEST_F(HostilePrimary, OutOfPlaceAndGarbage) {
  {
    auto peer = accept();
    peer->send(as_bytes(kGranted));
    peer->send(Ready{});
    expect_refused(*peer, "before Welcome");
  }
  {
    auto peer = welcome();
    peer->send(Hello{});
    expect_refused(*peer, "does not belong");
  }
  {
    auto peer = welcome();
    peer->send(ByteView(Bytes(100, std::byte{0xee})));
    expect_refused(*peer, "at most");
  }
  auto peer = welcome();
  start(*peer);
  for (std::size_t n = 0; n < 3; ++n) send(*peer, n);
  EXPECT_TRUE(replica_.reaches("a.db", post(2))) << "the next connection is as good as new";
}

TEST_F(HostilePrimary, RefusalsOfTheHttpServerAreReported) {
  auto peer = accept();
  peer->send(as_bytes("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"));
  EXPECT_TRUE(wait_for([&] { return replica_.status().last_error.find("503") != std::string::npos; }));
  peer = accept();
  peer->send(as_bytes("HTTP/1.1 401 Unauthorized\r\n\r\n"));
  EXPECT_TRUE(wait_for([&] { return replica_.status().last_error.find("token") != std::string::npos; }));
  peer = accept();
  peer->send(as_bytes("SSH-2.0-OpenSSH_9.2\r\n\r\n"));
  EXPECT_TRUE(wait_for([&] { return replica_.status().last_error.find("does not speak HTTP") != std::string::npos; }));
}

// The acknowledgement of one history says nothing about another.
TEST_F(HostilePrimary, WhatWasDurableOfAnotherHistoryIsNotAcknowledged) {
  {
    auto peer = welcome();
    start(*peer);
    for (std::size_t n = 0; n < 3; ++n) send(*peer, n);
    std::optional<Ack> ack;
    do {
      ack = peer->read_until<Ack>();
      ASSERT_TRUE(ack.has_value());
    } while (ack->durable != Txid(3));
  }
  auto peer = welcome();
  const ChangeSet& first = sets_[0].head;
  peer->send(DatabaseStart{1, "a.db", 0, {}, true, first.post});
  SnapshotPages pages{1, false, 0, {}};
  Bytes content;
  const auto take = [&](Pgno pgno, ByteView page) -> Result<void> {
    pages.pgnos.push_back(pgno);
    content.insert(content.end(), page.begin(), page.end());
    return {};
  };
  ASSERT_TRUE(ltx::decode(ltx::memory_source(sets_[0].image), sets_[0].image.size(), take).has_value());
  pages.raw_length = static_cast<std::uint32_t>(content.size());
  peer->send(SnapshotBegin{1, first.page_size, first.commit});
  peer->send(pages, content);
  peer->send(SnapshotDone{1, first.post, first.epoch, first.page_size, first.commit, first.timestamp_ms});
  std::optional<Ack> ack;
  do {
    ack = peer->read_until<Ack>();
    ASSERT_TRUE(ack.has_value());
    if (ack->applied == Txid(1)) {
      EXPECT_LE(ack->durable, Txid(1));
    }
  } while (ack->applied != Txid(1) || ack->durable != Txid(1));
}

}  // namespace
}  // namespace sluice::replication::testing
