// What both sides say of themselves is true.
#include <fcntl.h>

#include <filesystem>

#include "replication/database_feed.h"
#include "tests/unit/replication/raw_peer.h"
#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

TEST(StreamTruth, ANameThatIsNotUtf8IsReplicatedAsAnyOther) {
  const std::string odd = "tenants/caf\xe9.db";
  TestPrimary primary(quick());
  auto& db = primary.database(odd);
  db.commit(10, 0);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced()) << replica.status().last_error;
  EXPECT_EQ(replica.pos(odd), db.database().pos());
  replica.stop();
  db.commit(12, 3);
  replica.start();  // now it announces the name itself
  ASSERT_TRUE(replica.reaches(odd, db.database().pos())) << replica.status().last_error;
}

// Nothing is sent, so nothing else would tell.
TEST(StreamTruth, AfterARestartThePrimaryKnowsWhatIsDurable) {
  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  const Pos pos = db.commit(5, 1);
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", pos));
  replica.stop();
  ASSERT_TRUE(wait_for([&] { return primary.publisher().replicas().empty(); }));
  replica.start();
  EXPECT_TRUE(wait_for([&] {
    const auto all = primary.publisher().replicas();
    return all.size() == 1 && all[0].databases.size() == 1 && all[0].databases[0].durable == pos.txid;
  }));
}

// It is at a later TXID, but of another history: not caught up before the snapshot is in.
TEST(StreamTruth, AnotherHistoryIsNotInSync) {
  TestPrimary other(quick());
  auto& theirs = other.database("a.db");
  for (int i = 0; i < 5; ++i) theirs.commit(9, 2);
  TestReplica replica(other.url());
  replica.start();
  ASSERT_TRUE(replica.reaches("a.db", theirs.database().pos()));
  replica.stop();

  TestPrimary primary(quick());
  auto& db = primary.database("a.db");
  db.commit(3, 0);
  replica.options().primary_url = primary.url();
  replica.fake().fake("a.db")->hold();
  replica.start();
  ASSERT_TRUE(wait_for([&] { return replica.fake().fake("a.db")->waiting(); })) << "the snapshot is there";
  // Ready came with it; two heartbeats later it has been heard.
  for (int i = 0; i < 2; ++i) {
    const auto before = replica.status().bytes_received;
    ASSERT_TRUE(wait_for([&] { return replica.status().bytes_received > before; }));
  }
  EXPECT_TRUE(replica.status().connected);
  EXPECT_FALSE(replica.status().synced);
  replica.fake().fake("a.db")->release();
  EXPECT_TRUE(replica.synced());
  EXPECT_EQ(replica.pos("a.db"), db.database().pos());
}

// Removed and made anew while it is being sent: Ready, which waited for the old one, comes with the new one.
TEST(StreamTruth, ADatabaseReplacedWhileCatchingUpDoesNotHoldReadyBack) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  primary.database("a.db").commit(1000, 0);  // far more than the window
  RawPeer peer = RawPeer::to_primary(primary.port());
  peer.greet();
  ASSERT_TRUE(peer.read_until<ChangeSetData>().has_value());
  ASSERT_TRUE(primary.store().remove_database("a.db").has_value());
  TestDatabase fresh(primary.store().open_database("a.db").value(), 4096);
  fresh.commit(3, 0);
  EXPECT_TRUE(peer.read_until<Ready>().has_value());
}

// A replica whose content fits no history asked for a snapshot; when that breaks off, the log would not do.
TEST(StreamTruth, ASnapshotThatBreaksOffIsFollowedByASnapshot) {
  PublisherOptions options = quick();
  options.window_bytes = 256 * 1024;
  options.peer_timeout_ms = 300;
  options.stall_timeout_ms = 300;
  TestPrimary primary(options);
  auto& db = primary.database("a.db");
  db.commit(1000, 0);
  RawPeer peer = RawPeer::to_primary(primary.port());
  peer.greet();
  ASSERT_TRUE(peer.read_until<DatabaseStart>().has_value());
  peer.send(ResyncRequest{"a.db", 1, {}, true, "of no use"});
  const auto next = [&]() -> std::optional<Message> {  // keeps the connection alive, acknowledges nothing
    for (int i = 0; i < 200; ++i) {
      peer.send(Heartbeat{0, 0});
      if (auto message = peer.read(std::chrono::milliseconds(50))) return message;
    }
    return std::nullopt;
  };
  std::uint64_t received = 0;  // of the second attempt, in window bytes
  bool aborted = false;
  for (;;) {
    const auto message = next();
    ASSERT_TRUE(message.has_value()) << "no snapshot comes";
    const auto* start = std::get_if<DatabaseStart>(&*message);
    received = start != nullptr ? 0 : received + content_cost(*message, peer.payload().size());
    if (std::holds_alternative<OfferRequest>(*message)) {
      peer.send(Offer{1, 1, 0, 0, 256});
    } else if (std::holds_alternative<SnapshotAbort>(*message)) {
      aborted = true;
      peer.send(Ack{1, 1, {}, {}, received});  // it works again
    } else if (aborted) {
      ASSERT_TRUE(std::holds_alternative<SnapshotBegin>(*message)) << kind_name(*message) << " would not do";
      break;
    }
  }
}

// The application runs as a child: a stream that it inherited would stay open when this node is long gone.
TEST(StreamTruth, NoSocketIsInheritedByChildren) {
  TestPrimary primary(quick());
  TestReplica replica(primary.url());
  replica.start();
  ASSERT_TRUE(replica.synced());
  int sockets = 0;
  for (const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone;
    if (!std::filesystem::read_symlink(entry, gone).string().starts_with("socket:")) continue;
    ++sockets;
    EXPECT_NE(::fcntl(std::stoi(entry.path().filename()), F_GETFD) & FD_CLOEXEC, 0) << entry.path();
  }
  EXPECT_GE(sockets, 3);
}

}  // namespace
}  // namespace sluice::replication::testing
