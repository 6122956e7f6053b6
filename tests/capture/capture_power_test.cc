// A primary after a loss of power, and after a sync that failed: what shipped was on disk (I2), the position is that of the
// content (I3), and nothing that a sync lost comes back as if it was there.
#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>

#include "storage/boot.h"
#include "tests/capture/capture_fixture.h"
#include "tests/capture/failing_syncs.h"

namespace sluice::fuse {
namespace {

class CapturePower : public CaptureFixture {
 protected:
  void TearDown() override {
    test::before_sync(nullptr);
    CaptureFixture::TearDown();
    storage::set_boot_number_for_tests(0);
  }

  /// The data directory as it is now becomes what the next start_node() finds, after a restart of the machine.
  void lose_power() {
    const std::string image = dir_ + "/image";
    std::filesystem::copy(data_, image, std::filesystem::copy_options::recursive);
    stop_node();
    std::filesystem::remove_all(data_);
    std::filesystem::rename(image, data_);
    storage::set_boot_number_for_tests(++boot_);
  }
  void fail_syncs(std::string suffix) {
    test::before_sync([suffix](std::string_view file) { return file.ends_with(suffix) ? EIO : 0; });
  }
  bool eventually(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition() && std::chrono::steady_clock::now() < deadline) ::usleep(1000);
    return condition();
  }
  bool stopped() {
    return eventually([this] { return !store_->find("a.db")->fault().empty(); });
  }

 private:
  std::uint64_t boot_ = 7;
};

class JournalEnd : public CapturePower, public ::testing::WithParamInterface<std::tuple<const char*, const char*>> {};

// A journal that comes back rolls back what was shipped.
TEST_P(JournalEnd, IsOnDiskBeforeItsTransactionShips) {
  const auto [mode, synced] = GetParam();
  const std::string settings = std::string("pragma synchronous=off; pragma journal_mode=") + mode + ";";
  sql("a.db", settings + "create table t(x); insert into t values(1);");
  const auto database = store_->find("a.db");
  ASSERT_TRUE(eventually([&] { return database->log().durable() == database->pos().txid; }));
  const Txid before = database->pos().txid;
  // Syncs for the first transactions may still be on their way: they succeed.
  test::before_sync([suffix = std::string(synced), database, before](std::string_view file) {
    return database->pos().txid > before && file.ends_with(suffix) ? EIO : 0;
  });
  sql("a.db", settings + "insert into t values(2);");
  EXPECT_TRUE(stopped());
  EXPECT_EQ(database->pos().txid, before.next());
  EXPECT_EQ(database->log().durable(), before) << "shipped before its journal's end was on disk";
}
INSTANTIATE_TEST_SUITE_P(All, JournalEnd,
                         ::testing::Values(std::tuple{"delete", "/data/fs"}, std::tuple{"truncate", "/a.db-journal"},
                                           std::tuple{"persist", "/a.db-journal"}),
                         [](const auto& param) { return std::string(std::get<0>(param.param)); });

TEST_F(CapturePower, TheNamesOfNewFilesAreOnDiskBeforeTheirContentShips) {
  fail_syncs("/data/fs");
  Session session(path("a.db"));
  session.run("pragma synchronous=off; pragma journal_mode=wal; create table t(x); insert into t values(1);");
  EXPECT_TRUE(stopped());
  EXPECT_EQ(store_->find("a.db")->log().durable(), Txid(0));
}

TEST_F(CapturePower, AWriteWithoutAJournalIsNotedOnDiskBefore) {
  sql("a.db", "create table t(x);");
  fail_syncs("/data/tmp");
  const std::string answer = sql("a.db", "pragma journal_mode=off; insert into t values(1);", false);
  EXPECT_NE(answer.find("disk I/O error"), std::string::npos) << answer;
}

TEST_F(CapturePower, AFailedSyncIsRememberedUntilTheFilesWereWrittenAgain) {
  const std::string settings = "pragma journal_mode=wal; pragma synchronous=full;";
  sql("a.db", settings + "create table t(x); insert into t values(1);");
  sql("b.db", settings + "create table t(x);");
  fail_syncs("/a.db-wal");
  const std::string answer = sql("a.db", settings + "insert into t values(2);", false);
  EXPECT_NE(answer.find("disk I/O error"), std::string::npos) << answer;
  EXPECT_TRUE(stopped());
  sql("b.db", settings + "insert into t values(1);");
  // The kernel would report success from now on; a start must not believe it.
  stop_node();
  int again = 0;
  test::before_sync([&](std::string_view file) {
    if (!file.ends_with("/a.db")) return 0;
    ++again;
    return EIO;
  });
  start_node();
  EXPECT_GE(again, 1) << "its files were not written again";
  EXPECT_FALSE(store_->find("a.db")->fault().empty());
  // Refused at the open, or at the first write.
  const std::string refused = sql("a.db", "insert into t values(3);", false);
  EXPECT_TRUE(refused.find("disk I/O error") != std::string::npos || refused.find("unable to open") != std::string::npos) << refused;
  sql("b.db", settings + "insert into t values(2);");
  stop_node();
  test::before_sync(nullptr);
  start_node();
  EXPECT_TRUE(store_->find("a.db")->fault().empty()) << store_->find("a.db")->fault();
  sql("a.db", settings + "insert into t values(4);");
  expect_same("a.db");
  expect_same("b.db");
  EXPECT_TRUE(std::filesystem::is_empty(data_ + "/tmp"));
}

// The log kept what the WAL lost: TXIDs go forward, and the position is that of what SQLite has.
TEST_F(CapturePower, AWalThatLostItsEndBecomesANewChangeSet) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x); insert into t values('kept');");
  (void)txid("a.db");
  const auto kept = std::filesystem::file_size(backing("a.db-wal"));
  session.run("insert into t values(randomblob(9000));");
  const Txid before = txid("a.db");
  const std::string wal = backing("a.db-wal");
  lose_power();
  std::filesystem::resize_file(wal, kept);
  start_node();
  EXPECT_EQ(store_->find("a.db")->pos().txid, before.next());
  EXPECT_EQ(sql("a.db", "select * from t;"), "kept\n");
  expect_same("a.db");
}

// The WAL on disk is the one before the one that capture knows: its header was not synced, or its name was not.
TEST_F(CapturePower, AWalOfAnEarlierGenerationIsNotTakenForALaterOne) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma synchronous=off; pragma wal_autocheckpoint=0; create table t(x);");
  session.run("create table u(y); insert into u values(1);");
  (void)txid("a.db");
  std::filesystem::copy(backing("a.db-wal"), dir_ + "/old-wal");
  session.run("pragma wal_checkpoint(restart);");
  std::filesystem::copy(backing("a.db"), dir_ + "/old-db");
  session.run("insert into t values('lost');");
  (void)txid("a.db");
  lose_power();
  std::filesystem::copy(dir_ + "/old-wal", backing("a.db-wal"), std::filesystem::copy_options::overwrite_existing);
  start_node();
  EXPECT_EQ(sql("a.db", "select * from t;"), "");
  expect_same("a.db");
}

// synchronous=OFF: a page of the database file is an older one, and nothing but a comparison can tell.
TEST_F(CapturePower, PagesThatWentBackAreFound) {
  const std::string settings = "pragma synchronous=off; pragma journal_mode=delete;";
  sql("a.db", settings + "create table t(id integer primary key, x); insert into t select value, zeroblob(900) from generate_series(1,200);");
  std::filesystem::copy(backing("a.db"), dir_ + "/old-db");
  sql("a.db", settings + "update t set x=randomblob(900);");
  const Txid before = txid("a.db");
  lose_power();
  {
    std::ifstream old(dir_ + "/old-db", std::ios::binary);
    std::fstream file(backing("a.db"), std::ios::binary | std::ios::in | std::ios::out);
    std::string page(4096, '\0');
    old.seekg(20 * 4096);
    old.read(page.data(), 4096);
    file.seekp(20 * 4096);
    file.write(page.data(), 4096);
  }
  start_node();
  EXPECT_EQ(store_->find("a.db")->pos().txid, before.next());
  EXPECT_EQ(store_->find("a.db")->log().first_readable(), Txid(1)) << "only what differs goes to the replicas";
  expect_same("a.db");
}

TEST_F(CapturePower, AnUnchangedDatabaseKeepsItsPosition) {
  sql("a.db", "pragma journal_mode=wal; create table t(x); insert into t select randomblob(900) from generate_series(1,500);");
  const Txid before = txid("a.db");
  lose_power();
  start_node();
  EXPECT_EQ(store_->find("a.db")->pos().txid, before);
  EXPECT_EQ(capture_->counters().reconciliations.load(), 1u);
  expect_same("a.db");
  stop_node();
  start_node();
  EXPECT_EQ(capture_->counters().reconciliations.load(), 0u) << "compared once, not at every start";
}

}  // namespace
}  // namespace sluice::fuse
