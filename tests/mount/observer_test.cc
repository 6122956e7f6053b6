// What the observer is told: exactly the operations that can move a database's content, with the right kinds and names.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/fd.h"
#include "tests/mount/mount_fixture.h"

namespace sluice::fuse {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class ObserverTest : public MountFixture {
 protected:
  std::vector<std::string> changes_of(const std::string& database, const std::string& sql) {
    observer_.take();
    sqlite(database, sql);
    // RELEASE comes after close() has returned.
    EXPECT_TRUE(wait_for([&] {
      return observer_.saw([&](const SeenOp& op) { return op.released && op.path == database; });
    }));
    return observer_.take_changes();
  }
  static std::size_t count(const std::vector<std::string>& texts, const std::string& prefix) {
    return static_cast<std::size_t>(
        std::count_if(texts.begin(), texts.end(), [&](const std::string& t) { return t.starts_with(prefix); }));
  }
  static std::size_t index(const std::vector<std::string>& texts, const std::string& prefix) {
    return static_cast<std::size_t>(
        std::find_if(texts.begin(), texts.end(), [&](const std::string& t) { return t.starts_with(prefix); }) -
        texts.begin());
  }
};

TEST_F(ObserverTest, FirstTransactionOfANewDatabase) {
  const auto ops = changes_of("new.db", "CREATE TABLE t(x);");
  ASSERT_FALSE(ops.empty());
  EXPECT_EQ(ops.front(), "create plain new.db");
  EXPECT_THAT(ops, Contains("create journal new.db-journal"));
  EXPECT_THAT(ops, Contains(StartsWith("write database new.db 0+")));
  EXPECT_EQ(ops.back(), "unlink journal new.db-journal");
  EXPECT_THAT(ops, Not(Contains(StartsWith("write plain"))));
}

TEST_F(ObserverTest, DeleteModeCommit) {
  sqlite("app.db", "CREATE TABLE t(x);");
  const auto ops = changes_of("app.db", "INSERT INTO t VALUES(1);");
  EXPECT_EQ(ops.front(), "create journal app.db-journal");
  EXPECT_EQ(ops.back(), "unlink journal app.db-journal");
  EXPECT_GE(count(ops, "write journal app.db-journal"), 2u);
  EXPECT_GE(count(ops, "write database app.db 0+4096"), 1u);
  EXPECT_EQ(count(ops, "fsync database app.db"), 1u);
  EXPECT_LT(index(ops, "write journal"), index(ops, "write database"));
  EXPECT_LT(index(ops, "fsync database"), index(ops, "unlink journal"));
}

TEST_F(ObserverTest, TruncateModeCommit) {
  sqlite("app.db", "CREATE TABLE t(x);");
  const auto ops = changes_of("app.db", "PRAGMA journal_mode=TRUNCATE; INSERT INTO t VALUES(1); INSERT INTO t VALUES(2);");
  EXPECT_EQ(count(ops, "truncate journal app.db-journal 0"), 2u);
  EXPECT_EQ(count(ops, "unlink"), 0u);
}

TEST_F(ObserverTest, PersistModeCommit) {
  sqlite("app.db", "CREATE TABLE t(x);");
  const auto ops = changes_of("app.db", "PRAGMA journal_mode=PERSIST; INSERT INTO t VALUES(1);");
  EXPECT_EQ(ops.back().substr(0, 5), "write");
  EXPECT_THAT(ops, Contains("write journal app.db-journal 0+28"));
  EXPECT_EQ(count(ops, "unlink"), 0u);
}

TEST_F(ObserverTest, WalCommitIsSilentAndCheckpointIsNot) {
  sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x);");
  // The last connection's close checkpoints: gate on the database, then the -wal and -shm go.
  const auto ops = changes_of("app.db", "INSERT INTO t VALUES(1);");
  EXPECT_THAT(ops, Contains("create wal app.db-wal"));
  EXPECT_THAT(ops, Contains("create shm app.db-shm"));
  EXPECT_THAT(ops, Contains(StartsWith("write database app.db")));
  EXPECT_THAT(ops, Contains("unlink wal app.db-wal"));
  EXPECT_THAT(ops, Contains("unlink shm app.db-shm"));
  if (plain_path()) {
    EXPECT_LT(index(ops, "write wal"), index(ops, "write database"));
  } else {
    EXPECT_EQ(count(ops, "write wal"), 0u);
    EXPECT_EQ(count(ops, "write shm"), 0u);
  }
  EXPECT_LT(index(ops, "fsync wal"), index(ops, "write database"));

  const auto full = changes_of("app.db", "PRAGMA synchronous=FULL; INSERT INTO t VALUES(1); INSERT INTO t VALUES(1);");
  EXPECT_GE(count(full, "fsync wal app.db-wal"), 2u);
  const auto restart = changes_of("app.db", "INSERT INTO t VALUES(1); PRAGMA wal_checkpoint(TRUNCATE);");
  EXPECT_THAT(restart, Contains("truncate wal app.db-wal 0"));
}

TEST_F(ObserverTest, ModeSwitch) {
  sqlite("app.db", "CREATE TABLE t(x);");
  const auto to_wal = changes_of("app.db", "PRAGMA journal_mode=WAL;");
  EXPECT_THAT(to_wal, Contains("create journal app.db-journal"));
  EXPECT_THAT(to_wal, Contains(StartsWith("write database app.db 0+")));
  const auto back = changes_of("app.db", "INSERT INTO t VALUES(1); PRAGMA journal_mode=DELETE;");
  EXPECT_LT(index(back, "unlink wal"), index(back, "create journal"));
  EXPECT_EQ(back.back(), "unlink journal app.db-journal");
}

TEST_F(ObserverTest, VacuumTruncatesTheDatabase) {
  sqlite("app.db",
         "CREATE TABLE t(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<2000) "
         "INSERT INTO t SELECT randomblob(1000) FROM n; DELETE FROM t WHERE rowid%2;");
  const auto ops = changes_of("app.db", "VACUUM;");
  EXPECT_THAT(ops, Contains(StartsWith("truncate database app.db ")));
  EXPECT_EQ(sqlite("app.db", "SELECT count(*) FROM t; PRAGMA integrity_check;"), "1000\nok");
}

TEST_F(ObserverTest, MultiDatabaseCommitHasASuperJournal) {
  sqlite("a.db", "CREATE TABLE t(x);");
  sqlite("b.db", "CREATE TABLE t(x);");
  const auto ops = changes_of(
      "a.db", "ATTACH '" + at("b.db") + "' AS b; BEGIN; INSERT INTO main.t VALUES(1); INSERT INTO b.t VALUES(2); COMMIT;");
  EXPECT_EQ(count(ops, "create super-journal a.db-mj"), 1u);
  EXPECT_EQ(count(ops, "write super-journal a.db-mj"), 2u);
  EXPECT_EQ(count(ops, "unlink super-journal a.db-mj"), 1u);
  EXPECT_LT(index(ops, "unlink super-journal"), index(ops, "unlink journal a.db-journal"));
}

TEST_F(ObserverTest, CopiedInDatabaseIsOneFromItsFirstWrite) {
  sqlite("app.db", "CREATE TABLE t(x); INSERT INTO t VALUES(42);");
  const std::string content = read_text(at("app.db"));
  observer_.take();
  ASSERT_EQ(run({"cp", at("app.db"), at("copy.db")}).status, 0);
  ASSERT_TRUE(wait_for([&] {
    return observer_.saw([](const SeenOp& op) { return op.released && op.path == "copy.db" && op.write_only; });
  }));
  const auto seen = observer_.take();
  const auto write = std::find_if(seen.begin(), seen.end(), [](const SeenOp& op) { return op.kind == OpKind::write; });
  ASSERT_NE(write, seen.end());
  EXPECT_EQ(write->file, FileKind::database);
  EXPECT_EQ(write->database, "copy.db");
  EXPECT_TRUE(write->write_only);
  EXPECT_EQ(seen.back().file, FileKind::database);
  EXPECT_EQ(read_text(at("copy.db")), content);
  EXPECT_EQ(sqlite("copy.db", "SELECT * FROM t"), "42");

  // Also if no single write shows the magic.
  ASSERT_EQ(run({"dd", "if=" + at("app.db"), "of=" + at("slow.db"), "bs=5", "count=2000"}).status, 0);
  EXPECT_TRUE(wait_for([&] {
    return observer_.saw([](const SeenOp& op) {
      return op.released && op.path == "slow.db" && op.file == FileKind::database && op.write_access;
    });
  }));
}

TEST_F(ObserverTest, PlainFilesOnlyShowOpens) {
  observer_.take();
  write_text(at("notes-wal"), "no base");
  write_text(at("notes.txt"), "text");
  ASSERT_EQ(::mkdir(at("dir").c_str(), 0755), 0);
  write_text(at("dir-wal"), "base is a directory");
  ASSERT_EQ(::truncate(at("notes.txt").c_str(), 0), 0);
  ASSERT_EQ(::rename(at("notes.txt").c_str(), at("n").c_str()), 0);
  ASSERT_EQ(::unlink(at("n").c_str()), 0);
  EXPECT_THAT(observer_.take_changes(),
              ElementsAre("create plain notes-wal", "create plain notes.txt", "create plain dir-wal"));
}

TEST_F(ObserverTest, RenameAndUnlinkOfDatabasesAndDirectories) {
  ASSERT_EQ(::mkdir(at("d").c_str(), 0755), 0);
  sqlite("d/a.db", "CREATE TABLE t(x);");
  sqlite("b.db", "CREATE TABLE t(x);");
  observer_.take();
  ASSERT_EQ(::rename(at("d/a.db").c_str(), at("b.db").c_str()), 0);
  ASSERT_EQ(::rename(at("d").c_str(), at("e").c_str()), 0);
  ASSERT_EQ(::rename(at("b.db").c_str(), at("e/c.db").c_str()), 0);
  ASSERT_EQ(::unlink(at("e/c.db").c_str()), 0);
  EXPECT_THAT(observer_.take_changes(),
              ElementsAre("rename database d/a.db b.db over database", "rename directory d e",
                          "rename database b.db e/c.db", "unlink database e/c.db"));
}

TEST_F(ObserverTest, FilesWithoutANameAreMarked) {
  sqlite("app.db", "CREATE TABLE t(x);");
  const UniqueFd fd(::open(at("app.db").c_str(), O_RDWR));
  ASSERT_EQ(::pwrite(fd.get(), "x", 1, 5000), 1);
  ASSERT_EQ(::unlink(at("app.db").c_str()), 0);
  observer_.take();
  ASSERT_EQ(::pwrite(fd.get(), "x", 1, 5000), 1);
  ASSERT_EQ(::ftruncate(fd.get(), 4096), 0);
  ASSERT_EQ(::fsync(fd.get()), 0);
  for (const SeenOp& op : observer_.take()) {
    EXPECT_TRUE(op.unlinked) << op.text();
    EXPECT_EQ(op.path, "app.db");
    EXPECT_EQ(op.file, FileKind::database);
  }
  sqlite("app.db", "CREATE TABLE t(x);");
  EXPECT_FALSE(observer_.saw([](const SeenOp& op) { return op.kind == OpKind::write && op.unlinked; }));
}

TEST_F(ObserverTest, RefusalsReachTheClient) {
  sqlite("app.db", "CREATE TABLE t(x);");
  const std::string before = read_text(backing("app.db"));
  observer_.refuse([](const Op& op) {
    if (op.own) return 0;
    if (op.kind == OpKind::open && op.file == FileKind::database && op.write_access) return EROFS;
    return op.kind == OpKind::unlink ? EACCES : 0;
  });
  EXPECT_THAT(sqlite("app.db", "INSERT INTO t VALUES(1);", true), HasSubstr("attempt to write a readonly database"));
  EXPECT_EQ(sqlite("app.db", "SELECT count(*) FROM t;"), "0");
  EXPECT_EQ(::unlink(at("app.db").c_str()), -1);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(read_text(backing("app.db")), before);
  // The node's own way is open.
  EXPECT_TRUE(mount_->access().open("app.db", O_RDWR, 0));
}

TEST_F(ObserverTest, OwnAccessesAreRecognised) {
  sqlite("app.db", "CREATE TABLE t(x);");
  observer_.take();
  auto fd = mount_->access().open("app.db", O_RDWR, 0);
  ASSERT_TRUE(fd) << fd.error().to_string();
  ASSERT_TRUE(mount_->access().truncate(fd->get(), 16384));
  EXPECT_EQ(::pwrite(fd->get(), "x", 1, 16383), 1);
  const UniqueFd client(::open(at("app.db").c_str(), O_RDWR));
  EXPECT_EQ(::ftruncate(client.get(), 20480), 0);
  EXPECT_EQ(::pwrite(client.get(), "y", 1, 20479), 1);
  std::vector<std::pair<std::string, bool>> seen;
  for (const SeenOp& op : observer_.take())
    if (!op.opened && !op.released) seen.emplace_back(op.text(), op.own);
  EXPECT_THAT(seen, ElementsAre(std::pair("open database app.db", true), std::pair("truncate database app.db 16384", true),
                                std::pair("write database app.db 16383+1", true), std::pair("open database app.db", false),
                                std::pair("truncate database app.db 20480", false),
                                std::pair("write database app.db 20479+1", false)));
  fd->reset();
  EXPECT_TRUE(wait_for([&] { return observer_.saw([](const SeenOp& op) { return op.released && op.own; }); }));
}

TEST_F(ObserverTest, ParkedOperationsServeAWholeWorkload) {
  observer_.park_everything();
  for (const std::string mode : {"DELETE", "TRUNCATE", "PERSIST", "WAL"}) {
    const std::string db = mode + ".db";
    sqlite(db, "PRAGMA journal_mode=" + mode +
                   "; CREATE TABLE t(x); INSERT INTO t VALUES(zeroblob(100000)); BEGIN; INSERT INTO t VALUES(1); ROLLBACK; "
                   "INSERT INTO t VALUES(2); VACUUM;");
    EXPECT_EQ(sqlite(db, "SELECT count(*) FROM t; PRAGMA integrity_check;"), "2\nok");
  }
  ASSERT_EQ(run({"cp", at("WAL.db"), at("copy.db")}).status, 0);
  EXPECT_EQ(sqlite("copy.db", "SELECT count(*) FROM t"), "2");
  ASSERT_EQ(::rename(at("copy.db").c_str(), at("moved.db").c_str()), 0);
  ASSERT_EQ(::unlink(at("moved.db").c_str()), 0);
  EXPECT_GT(observer_.parked(), 100u);
}

}  // namespace
}  // namespace sluice::fuse
