// A primary whose disk is full: SQLite's own error for the application, nothing lost, and no restart needed.
#include <sys/mount.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/capture/capture_fixture.h"

namespace sluice::fuse {
namespace {

class FullDisk : public CaptureFixture {
 protected:
  void SetUp() override {
    CaptureFixture::SetUp();
    stop_node();
    std::filesystem::remove_all(data_);
    std::filesystem::create_directory(data_);
    ASSERT_EQ(::mount("small", data_.c_str(), "tmpfs", 0, "size=8m"), 0);
    start_node();
  }
  void TearDown() override {
    stop_node();
    ::umount2(data_.c_str(), MNT_DETACH);
    CaptureFixture::TearDown();
  }
  std::string filler() const { return data_ + "/filler"; }
  /// Takes all but `leave` bytes of the disk.
  void fill_up(std::uint64_t leave) {
    const std::uint64_t space = std::filesystem::space(data_).available;
    std::ofstream file(filler(), std::ios::binary);
    const std::string piece(4096, 'x');
    for (std::uint64_t n = leave; n + piece.size() <= space; n += piece.size()) file << piece;
  }
  bool eventually(const std::function<bool()>& condition) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!condition() && std::chrono::steady_clock::now() < deadline) ::usleep(1000);
    return condition();
  }
};

class FullDiskModes : public FullDisk, public ::testing::WithParamInterface<const char*> {};

TEST_P(FullDiskModes, TheApplicationIsToldAndGoesOnWhenThereIsSpace) {
  Session session(path("a.db"));
  session.run(std::string("pragma journal_mode=") + GetParam() + "; create table t(x); insert into t values('first');");
  (void)txid("a.db");
  fill_up(200 * 1024);
  std::string answer;
  for (int i = 0; i < 200 && answer.empty(); ++i) answer = session.run("insert into t select randomblob(9000) from generate_series(1,10);");
  EXPECT_NE(answer.find("full"), std::string::npos) << answer;
  EXPECT_EQ(session.run("pragma integrity_check;"), "ok\n");
  std::filesystem::remove(filler());
  EXPECT_EQ(session.run("insert into t values('last');"), "");
  const auto database = store_->find("a.db");
  EXPECT_TRUE(eventually([&] { return database->log().durable() == database->pos().txid && database->waiting().empty(); }));
  EXPECT_EQ(database->fault(), "");
  EXPECT_EQ(session.run("select count(*) from t where x='last';"), "1\n");
  session.run("pragma wal_checkpoint(truncate);");
  expect_same("a.db");
}
INSTANTIATE_TEST_SUITE_P(All, FullDiskModes, ::testing::Values("wal", "delete", "truncate", "persist"),
                         [](const auto& param) { return std::string(param.param); });

// The WAL's blocks are there already: commits go on, the log has no room for them.
TEST_F(FullDisk, CommitsThatTheLogHasNoRoomForAreCapturedLater) {
  Session session(path("a.db"));
  session.run("pragma journal_mode=wal; pragma wal_autocheckpoint=0; create table t(x);");
  session.run("insert into t select randomblob(9000) from generate_series(1,100);");
  session.run("pragma wal_checkpoint(restart);");
  (void)txid("a.db");
  const auto database = store_->find("a.db");
  fill_up(0);
  for (int i = 0; i < 8 && database->waiting().empty(); ++i)
    session.run("delete from t where rowid <= 10; insert into t select randomblob(9000) from generate_series(1,10);");
  EXPECT_TRUE(eventually([&] { return !database->waiting().empty(); }));
  EXPECT_EQ(database->fault(), "");
  // The database file has its blocks, too: only the gate can keep the checkpoint from overtaking the log.
  EXPECT_NE(session.run("pragma wal_checkpoint(truncate);").find("full"), std::string::npos);
  EXPECT_EQ(session.run("pragma integrity_check;"), "ok\n");
  std::filesystem::remove(filler());
  EXPECT_TRUE(eventually([&] { return database->waiting().empty() && database->log().durable() == database->pos().txid; }));
  EXPECT_EQ(session.run("pragma wal_checkpoint(truncate);").substr(0, 2), "0|");
  expect_same("a.db");
}

}  // namespace
}  // namespace sluice::fuse
