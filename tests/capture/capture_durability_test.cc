// I2: what leaves the node is in a WAL that is on disk.
#include <atomic>
#include <string_view>

#include "tests/capture/capture_fixture.h"
#include "tests/capture/failing_syncs.h"

namespace sluice::fuse {
namespace {

class CaptureDurability : public CaptureFixture {
 protected:
  void TearDown() override {
    test::before_sync(nullptr);
    CaptureFixture::TearDown();
  }
};

// SQLite syncs the header of a WAL that starts over, while the file behind it still has the frames of the generation before.
TEST_F(CaptureDurability, ASyncOfTheWalCoversNoFramesThatComeLater) {
  std::atomic<int> wal_syncs{0};
  test::before_sync([&](std::string_view file) {
    if (file.ends_with("/a.db-wal")) ++wal_syncs;
    return 0;
  });
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma synchronous=normal; pragma wal_autocheckpoint=0; create table t(x);");
  session.run("insert into t select randomblob(900) from generate_series(1,500);");
  session.run("pragma wal_checkpoint(restart);");
  session.run("insert into t values(1);");
  const auto database = store_->find("a.db");
  ASSERT_NE(database, nullptr);
  for (int i = 0; i < 20; ++i) {
    const Txid before = txid("a.db");
    const int syncs = wal_syncs;
    session.run("insert into t values(2);");
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (database->log().durable() <= before && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
    ASSERT_GT(database->log().durable(), before);
    ASSERT_GT(wal_syncs, syncs) << "shipped before its WAL was synced";
  }
}

// Until the journal is gone the transaction may still be rolled back: nobody else may see it.
TEST_F(CaptureDurability, ARollbackTransactionShipsWhenItsJournalIsGone) {
  sql("a.db", "create table t(x); insert into t values(1);");
  const auto database = store_->find("a.db");
  ASSERT_NE(database, nullptr);
  const Txid before = txid("a.db");
  std::atomic<int> removals{0};
  before_operation([&](const Op& op) {
    if (op.kind != OpKind::unlink || op.file != FileKind::journal) return 0;
    EXPECT_EQ(database->log().last()->post.txid, before.next()) << "in the log before the commit";
    EXPECT_EQ(database->log().durable(), before) << "and not to be had";
    ++removals;
    return 0;
  });
  sql("a.db", "insert into t values(2);");
  before_operation(nullptr);
  EXPECT_EQ(removals, 1);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (database->log().durable() == before && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(database->log().durable(), before.next());
}

TEST_F(CaptureDurability, ACommitThatFailsIsTakenBackAndNeverShips) {
  sql("a.db", "create table t(x); insert into t values('kept');");
  const auto database = store_->find("a.db");
  const Txid before = txid("a.db");
  std::atomic<bool> failed{false};
  before_operation([&](const Op& op) {
    if (op.kind != OpKind::unlink || op.file != FileKind::journal || failed.exchange(true)) return 0;
    return EIO;
  });
  Session session(path("a.db"));
  const std::string answer = session.run("insert into t values('doomed');");
  EXPECT_TRUE(failed);
  EXPECT_NE(answer.find("disk I/O error"), std::string::npos) << answer;
  EXPECT_EQ(session.run("select * from t;"), "kept\n");
  session.run("insert into t values('next');");
  before_operation(nullptr);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (database->log().durable() < database->pos().txid && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_EQ(database->log().durable(), database->pos().txid);
  EXPECT_GT(database->pos().txid, before);
  expect_same("a.db");
}

}  // namespace
}  // namespace sluice::fuse
