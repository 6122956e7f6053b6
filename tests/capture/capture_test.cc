// What capture makes of real SQLite's transactions on a real mount: the change sets, applied to nothing, must give the
// database byte for byte.
#include <atomic>
#include <filesystem>
#include <fstream>
#include <future>

#include <fcntl.h>
#include <unistd.h>

#include "tests/capture/capture_fixture.h"

namespace sluice::fuse {
namespace {

class CaptureTest : public CaptureFixture {};

TEST_F(CaptureTest, WalTransactions) {
  sql("a.db", "pragma journal_mode=wal; create table t(x); insert into t values(1);");
  expect_same("a.db");
  const Txid before = txid("a.db");
  for (int i = 0; i < 20; ++i) sql("a.db", "insert into t values(randomblob(100));");
  EXPECT_GT(txid("a.db"), before);
  expect_same("a.db");
  EXPECT_EQ(capture_->counters().anomalies.load(), 0u);
  EXPECT_EQ(capture_->counters().reconciliations.load(), 0u);
}

TEST_F(CaptureTest, TailCapturesWithoutAnyGate) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x);");
  session.run("insert into t values(1);");
  const auto database = store_->find("a.db");
  ASSERT_NE(database, nullptr);
  const Txid before = txid("a.db");
  session.run("insert into t values(2);");
  // No gate, nobody asks: the poller alone must find it.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (database->log().durable() <= before && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_GT(database->log().durable(), before);
}

TEST_F(CaptureTest, IdleDatabaseIsWokenByItsNextCommit) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x);");
  const auto database = store_->find("a.db");
  const Txid before = txid("a.db");
  // Longer than idle_after_ms: the poller has gone over to inotify.
  session.run(".shell sleep 0.6");
  session.run("insert into t values(2);");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (database->log().durable() <= before && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  EXPECT_GT(database->log().durable(), before);
}

class JournalModes : public CaptureFixture, public ::testing::WithParamInterface<std::tuple<const char*, int, const char*>> {};

TEST_P(JournalModes, EveryTransactionIsCaptured) {
  const auto [mode, page_size, synchronous] = GetParam();
  const std::string settings = std::string("pragma page_size=") + std::to_string(page_size) + "; pragma journal_mode=" + mode +
                               "; pragma synchronous=" + synchronous + "; pragma cache_size=5;";
  sql("sub.db", settings + "create table t(id integer primary key, x blob); create index i on t(x);");
  expect_same("sub.db");
  for (int i = 0; i < 5; ++i) {
    sql("sub.db", settings + "insert into t(x) select randomblob(300) from generate_series(1,200);");
    expect_same("sub.db");
  }
  const Txid before = txid("sub.db");
  sql("sub.db", settings + "begin; update t set x=randomblob(300); rollback; select count(*) from t;");
  EXPECT_EQ(txid("sub.db"), before) << "a rolled back transaction made a change set";
  sql("sub.db", settings + "begin; savepoint s; delete from t where id%2; rollback to s; insert into t(x) values(zeroblob(9)); commit;");
  EXPECT_GT(txid("sub.db"), before);
  expect_same("sub.db");
  sql("sub.db", settings + "delete from t where id > 100; vacuum;");
  expect_same("sub.db");
  sql("sub.db", settings + "insert into t(x) select randomblob(900) from generate_series(1,2000);");
  expect_same("sub.db");
  EXPECT_EQ(capture_->counters().anomalies.load(), 0u);
}

INSTANTIATE_TEST_SUITE_P(All, JournalModes,
                         ::testing::Values(std::tuple{"wal", 4096, "normal"}, std::tuple{"wal", 512, "full"},
                                           std::tuple{"wal", 65536, "off"}, std::tuple{"delete", 4096, "full"},
                                           std::tuple{"delete", 512, "off"}, std::tuple{"truncate", 1024, "normal"},
                                           std::tuple{"persist", 8192, "extra"}, std::tuple{"persist", 65536, "full"}),
                         [](const auto& param) {
                           return std::string(std::get<0>(param.param)) + "_" + std::to_string(std::get<1>(param.param)) + "_" +
                                  std::get<2>(param.param);
                         });

TEST_F(CaptureTest, JournalModeSwitchesInEveryDirection) {
  sql("a.db", "create table t(x);");
  for (const char* mode : {"wal", "delete", "truncate", "wal", "persist", "delete", "persist", "wal", "truncate", "persist", "truncate", "delete"}) {
    sql("a.db", std::string("pragma journal_mode=") + mode + "; insert into t values(randomblob(5000));");
    expect_same("a.db");
  }
  EXPECT_EQ(capture_->counters().anomalies.load(), 0u);
  EXPECT_EQ(capture_->counters().reconciliations.load(), 0u);
}

TEST_F(CaptureTest, VacuumShrinksByManyPagesAndChangesThePageSize) {
  sql("a.db", "pragma journal_mode=wal; create table t(x); insert into t select randomblob(3000) from generate_series(1,1500);");
  expect_same("a.db");
  sql("a.db", "delete from t where rowid>10; vacuum;");
  expect_same("a.db");
  sql("a.db", "pragma journal_mode=delete; pragma page_size=16384; vacuum;");
  expect_same("a.db");
  EXPECT_EQ(store_->find("a.db")->page_size(), 16384u);
  sql("a.db", "pragma journal_mode=wal; insert into t select randomblob(3000) from generate_series(1,300);");
  expect_same("a.db");
}

TEST_F(CaptureTest, CheckpointModes) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x);");
  for (const char* mode : {"passive", "full", "restart", "truncate", "passive", "truncate"}) {
    session.run("insert into t select randomblob(2000) from generate_series(1,50);");
    EXPECT_EQ(session.run(std::string("pragma wal_checkpoint(") + mode + ");").substr(0, 2), "0|") << mode;
  }
  session.run("insert into t values(1); pragma wal_checkpoint(truncate);");
  expect_same("a.db");
  EXPECT_EQ(capture_->counters().reconciliations.load(), 0u);
}

TEST_F(CaptureTest, ExclusiveLockingMode) {
  for (const char* order : {"pragma locking_mode=exclusive; pragma journal_mode=wal;", "pragma journal_mode=wal; pragma locking_mode=exclusive;"}) {
    Session session(path("a.db"));
    session.run(std::string(order) + "create table if not exists t(x);");
    for (int i = 0; i < 30; ++i) session.run("insert into t select randomblob(2000) from generate_series(1,100);");
  }
  expect_same("a.db");
}

TEST_F(CaptureTest, LargeTransactionIsStreamed) {
  stop_node();
  options_.stream_bytes = 1u << 20;
  start_node();
  sql("a.db", "pragma journal_mode=wal; create table t(id integer primary key, x); "
              "begin; insert into t(x) select randomblob(1000) from generate_series(1,30000); update t set x=randomblob(1100) where id%3=0; commit;");
  expect_same("a.db");
}

// SQLite writes what does not fit into its cache to the WAL before the commit; pages may be written again, or be rolled back.
TEST_F(CaptureTest, WhatIsCompressedBeforeTheCommitIsWhatWasCommitted) {
  sql("a.db", "pragma journal_mode=wal; create table t(id integer primary key, x);");
  Session session(path("a.db"));
  session.run("pragma cache_size=100; pragma wal_autocheckpoint=0; begin;");
  const auto insert = [&](int rows) {
    for (int i = 0; i < rows / 200; ++i) {
      session.run("insert into t(x) select hex(randomblob(400)) from generate_series(1,200);");
      sql("a.db", "select count(*) from t;");  // takes its time
    }
  };
  insert(6000);
  session.run("update t set x = x || 'changed' where id % 50 = 0; commit; pragma wal_checkpoint(truncate);");
  expect_same("a.db");
  EXPECT_GT(capture_->counters().pages_ahead.load(), 100u);
  const auto before = capture_->counters().pages_ahead.load();
  session.run("begin;");
  insert(4000);
  session.run("rollback; begin;");
  insert(4000);
  session.run("update t set x = 'y'; commit;");
  session.run("pragma wal_checkpoint(truncate); begin;");
  insert(4000);
  session.run("commit; pragma wal_checkpoint(truncate);");
  expect_same("a.db");
  EXPECT_GT(capture_->counters().pages_ahead.load(), before);
  EXPECT_EQ(capture_->counters().anomalies.load(), 0u);
  EXPECT_EQ(capture_->counters().reconciliations.load(), 0u);
}

TEST_F(CaptureTest, DeletionAndRecreation) {
  sql("a.db", "pragma journal_mode=wal; create table t(x); insert into t values(1);");
  const Txid before = txid("a.db");
  ASSERT_EQ(shell("rm " + path("a.db") + "*"), 0);
  EXPECT_TRUE(store_->find("a.db")->deleted());
  EXPECT_EQ(txid("a.db"), before.next());
  sql("a.db", "create table other(y); insert into other values(2);");
  EXPECT_GT(txid("a.db"), before.next());
  expect_same("a.db");
}

TEST_F(CaptureTest, CopyingADatabaseInImportsIt) {
  ASSERT_EQ(shell("sqlite3 " + dir_ + "/outside.db \"create table t(x); insert into t select randomblob(500) from generate_series(1,5000);\""), 0);
  ASSERT_EQ(shell("cp " + dir_ + "/outside.db " + path("in.db")), 0);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while ((store_->find("in.db") == nullptr || store_->find("in.db")->page_count() == 0) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  expect_same("in.db");
  // And over it again, with other content.
  const Pos before = store_->find("in.db")->pos();
  ASSERT_EQ(shell("sqlite3 " + dir_ + "/outside.db \"delete from t where rowid>100; vacuum;\" && cp " + dir_ + "/outside.db " + path("in.db")), 0);
  while (store_->find("in.db")->pos() == before && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  expect_same("in.db");
}

// What was written to the file is not what the database is, once there is a WAL beside it.
TEST_F(CaptureTest, CopyingADatabaseInWithItsWal) {
  const std::string outside = dir_ + "/outside.db";
  ASSERT_EQ(shell("sqlite3 " + outside + " 'pragma journal_mode=wal; create table t(x); pragma wal_checkpoint(truncate); "
                  "insert into t select randomblob(500) from generate_series(1,3000);' '.shell cp " + outside + " " + dir_ +
                  "/saved && cp " + outside + "-wal " + dir_ + "/saved-wal'"), 0);
  const int writer = ::open(path("in.db").c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0644);  // while it is open, nobody looks at the file
  ASSERT_GE(writer, 0);
  ASSERT_EQ(shell("cat " + dir_ + "/saved >> " + path("in.db") + " && cp " + dir_ + "/saved-wal " + path("in.db-wal")), 0);
  Session session(path("in.db"));
  session.run("select count(*) from t; insert into t values(1);");
  ASSERT_FALSE(capture_->capture_now("in.db").has_error());
  const std::uint32_t pages = store_->find("in.db")->page_count();
  EXPECT_GT(pages, 300u);
  const std::uint64_t before = capture_->counters().unjournaled.load();
  ::close(writer);
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (capture_->counters().unjournaled.load() == before && std::chrono::steady_clock::now() < deadline)
    std::this_thread::yield();
  EXPECT_GT(capture_->counters().unjournaled.load(), before);
  EXPECT_EQ(store_->find("in.db")->page_count(), pages);
  session.run("insert into t values(2); pragma wal_checkpoint(truncate);");
  expect_same("in.db");
}

TEST_F(CaptureTest, JournalModeMemoryIsCapturedAfterTheFact) {
  sql("a.db", "pragma journal_mode=memory; create table t(x); insert into t values(randomblob(9000));");
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while ((store_->find("a.db") == nullptr || store_->find("a.db")->page_count() < 4) && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::yield();
  }
  expect_same("a.db");
  EXPECT_GT(capture_->counters().unjournaled.load(), 0u);
}

TEST_F(CaptureTest, KilledWriterLeavesAHotJournal) {
  sql("a.db", "create table t(id integer primary key, x); insert into t(x) select randomblob(500) from generate_series(1,500);");
  const Txid before = txid("a.db");
  {
    Session session(path("a.db"));
    session.run("pragma cache_size=2; begin; update t set x=randomblob(600);");
    session.kill();
  }
  EXPECT_EQ(sql("a.db", "select count(*) from t;"), "500\n");
  EXPECT_EQ(txid("a.db"), before);
  expect_same("a.db");
}

// The application comes first: two recoveries at once disturb each other where they share a super-journal.
TEST_F(CaptureTest, AnAbandonedJournalIsLeftToTheApplicationForAWhile) {
  stop_node();
  std::atomic<int> recoveries = 0;
  std::promise<std::string> recovered;
  options_.recover_client = [&](const std::string& name) -> Result<void> {
    EXPECT_EQ(sql(name, "select count(*) from t;"), "500\n");
    if (++recoveries == 1) recovered.set_value(name);
    return {};
  };
  start_node();
  const auto leave_hot_journal = [&](const std::string& name) {
    sql(name, "create table t(id integer primary key, x); insert into t(x) select randomblob(500) from generate_series(1,500);");
    Session session(path(name));
    session.run("pragma cache_size=2; begin; update t set x=randomblob(600);");
    session.kill();
    ASSERT_TRUE(std::filesystem::exists(backing(name + "-journal")));
  };
  leave_hot_journal("opened.db");
  sql("opened.db", "select count(*) from t;");
  leave_hot_journal("left.db");
  EXPECT_EQ(recoveries.load(), 0);
  auto first = recovered.get_future();
  ASSERT_EQ(first.wait_for(std::chrono::seconds(20)), std::future_status::ready);
  EXPECT_EQ(first.get(), "left.db");
  stop_node();
  EXPECT_EQ(recoveries.load(), 1);
  EXPECT_FALSE(std::filesystem::exists(backing("left.db-journal")));
  EXPECT_FALSE(std::filesystem::exists(backing("opened.db-journal")));
  options_.recover_client = nullptr;
  start_node();
}

// Pages from the freelist are overwritten without being journaled, and a rollback leaves them so.
TEST_F(CaptureTest, RestartWithAHotJournalKnowsWhatWasWrittenOverFreePages) {
  sql("a.db", "create table t(x); create table u(x); insert into u select randomblob(900) from generate_series(1,400); drop table u;");
  {
    Session session(path("a.db"));
    session.run("pragma cache_size=2; pragma cache_spill=2; begin; insert into t select randomblob(900) from generate_series(1,200);");
    session.kill();
  }
  ASSERT_TRUE(std::filesystem::exists(backing("a.db-journal")));
  stop_node();
  start_node();
  EXPECT_EQ(sql("a.db", "select count(*) from t;"), "0\n");
  expect_same("a.db");
}

TEST_F(CaptureTest, MultiDatabaseTransaction) {
  sql("a.db", "create table t(x);");
  sql("b.db", "create table t(x);");
  sql("a.db", "attach '" + path("b.db") + "' as b; begin; insert into t values(1); insert into b.t values(2); commit;");
  expect_same("a.db");
  expect_same("b.db");
}

TEST_F(CaptureTest, RenameIsDeletionAndCreation) {
  sql("a.db", "create table t(x); insert into t values(7);");
  std::filesystem::create_directories(path("dir"));
  ASSERT_EQ(shell("mv " + path("a.db") + " " + path("dir/b.db")), 0);
  EXPECT_TRUE(store_->find("a.db")->deleted());
  expect_same("dir/b.db");
  ASSERT_EQ(shell("mv " + path("dir") + " " + path("other")), 0);
  EXPECT_TRUE(store_->find("dir/b.db")->deleted());
  expect_same("other/b.db");
  sql("other/b.db", "insert into t values(8);");
  expect_same("other/b.db");
}

TEST_F(CaptureTest, RemovedWalTakesReplicasBackToo) {
  {
    Session session(path("a.db"));
    session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x); pragma wal_checkpoint(truncate); insert into t values(1);");
    (void)txid("a.db");
    session.kill();
  }
  ASSERT_EQ(shell("rm " + path("a.db-shm") + " " + path("a.db-wal")), 0);
  expect_same("a.db");
  EXPECT_EQ(sql("a.db", "select count(*) from t;"), "0\n");
}

// The kernel holds the directory's lock while it waits for a removal: nothing that needs the lock may be waited for. Right after
// a start the kernel knows no file of the directory yet.
TEST_F(CaptureTest, WhatADeadProcessLeftCanBeRemovedAfterARestart) {
  {
    Session session(path("a.db"));
    session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x); insert into t values(1);");
    session.kill();
  }
  ASSERT_TRUE(std::filesystem::exists(backing("a.db-shm")));
  stop_node();
  start_node();
  // Nobody has opened the -shm through this mount, so nobody is connected, and there is nothing to look up.
  ASSERT_FALSE(capture_->capture_now("a.db").has_error());
  auto counts = mount_->request_counts();
  EXPECT_EQ(counts["LOOKUP"], 0u);
  EXPECT_EQ(counts["OPEN"], 0u);
  EXPECT_EQ(shell("timeout -s KILL 20 rm " + path("a.db-wal")), 0);
  EXPECT_EQ(shell("timeout -s KILL 20 rm " + path("a.db-shm")), 0);
}

TEST_F(CaptureTest, RestartGoesOnWhereItStopped) {
  sql("a.db", "pragma journal_mode=wal; create table t(x); insert into t values(1);");
  sql("b.db", "create table t(x); insert into t values(1);");
  const Pos a = store_->find("a.db")->pos();
  const Pos b = store_->find("b.db")->pos();
  stop_node();
  start_node();
  EXPECT_EQ(store_->find("a.db")->pos(), a);
  EXPECT_EQ(store_->find("b.db")->pos(), b);
  sql("a.db", "insert into t values(2);");
  expect_same("a.db");
}

TEST_F(CaptureTest, ChangesMadeWhileStoppedAreCapturedAtStart) {
  sql("a.db", "pragma journal_mode=wal; create table t(x); insert into t values(1);");
  sql("b.db", "create table t(x); insert into t values(1);");
  stop_node();
  ASSERT_EQ(shell("sqlite3 " + backing("a.db") + " 'insert into t values(randomblob(10000))'"), 0);
  ASSERT_EQ(shell("sqlite3 " + backing("b.db") + " 'insert into t values(randomblob(10000))'"), 0);
  ASSERT_EQ(shell("sqlite3 " + backing("new.db") + " 'create table n(x)'"), 0);
  start_node();
  expect_same("a.db");
  expect_same("b.db");
  expect_same("new.db");
}

}  // namespace
}  // namespace sluice::fuse
