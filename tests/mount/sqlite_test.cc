// Real SQLite on a real mount: every journal mode, several processes, and what it costs in requests.
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

#include "tests/mount/mount_fixture.h"

namespace sluice::fuse {
namespace {

class Connection {
 public:
  explicit Connection(const std::string& path, int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE) {
    if (sqlite3_open_v2(path.c_str(), &db_, flags, nullptr) == SQLITE_OK) sqlite3_busy_timeout(db_, 20'000);
  }
  ~Connection() { sqlite3_close(db_); }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  bool run(const std::string& sql) { return sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) == SQLITE_OK; }
  long long number(const std::string& sql) {
    sqlite3_stmt* statement = nullptr;
    long long value = -1;
    if (sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr) == SQLITE_OK &&
        sqlite3_step(statement) == SQLITE_ROW)
      value = sqlite3_column_int64(statement, 0);
    sqlite3_finalize(statement);
    return value;
  }
  const char* message() { return sqlite3_errmsg(db_); }

 private:
  sqlite3* db_ = nullptr;
};

class SqliteMountTest : public MountFixture {};

TEST_F(SqliteMountTest, WhatAWalInsertCosts) {
  ASSERT_EQ(sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x);"), "wal");
  Connection db(at("app.db"));
  ASSERT_TRUE(db.run("PRAGMA synchronous=NORMAL; INSERT INTO t VALUES(1);"));
  const auto before = all_requests();
  const auto writes = requests("WRITE");
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(db.run("INSERT INTO t VALUES(2);")) << db.message();
  if (plain_path()) {
    EXPECT_LE(requests("WRITE") - writes, 350u);  // frame header, and the page in two
    EXPECT_LE(all_requests() - before, 360u);
  } else {
    EXPECT_EQ(requests("WRITE"), writes);
    EXPECT_LE(all_requests() - before, 5u);
  }
  EXPECT_EQ(requests("SETLK"), 0u);
  EXPECT_EQ(requests("FLUSH"), 0u);
}

TEST_F(SqliteMountTest, CachedReadsCostNoRequest) {
  for (const std::string mode : {"WAL", "DELETE"}) {
    const std::string name = mode + ".db";
    sqlite(name, "PRAGMA journal_mode=" + mode +
                     "; CREATE TABLE t(i INTEGER PRIMARY KEY, x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n "
                     "WHERE i<2000) INSERT INTO t SELECT i, zeroblob(500) FROM n;");
    Connection db(at(name));
    ASSERT_TRUE(db.run("PRAGMA cache_size=10;"));
    ASSERT_EQ(db.number("SELECT count(*) FROM t WHERE length(x)=500"), 2000);
    const auto before = all_requests();
    for (int i = 1; i <= 200; ++i)
      ASSERT_EQ(db.number("SELECT length(x) FROM t WHERE i=" + std::to_string(i * 10)), 500);
    EXPECT_LE(all_requests() - before, 2u) << mode;
  }
}

class JournalModeTest : public SqliteMountTest, public ::testing::WithParamInterface<const char*> {};

TEST_P(JournalModeTest, SeveralProcessesWriteAndRead) {
  const std::string mode = GetParam();
  ASSERT_TRUE(Connection(at("app.db")).run("PRAGMA journal_mode=" + mode + "; CREATE TABLE t(who, i, pad);"));
  std::vector<pid_t> children;
  for (int who = 0; who < 3; ++who) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      ::alarm(90);
      Connection db(at("app.db"));
      db.run("PRAGMA journal_mode=" + mode + "; PRAGMA synchronous=OFF; PRAGMA cache_size=5;");
      for (int i = 0; i < 60; ++i) {
        if (!db.run("INSERT INTO t VALUES(" + std::to_string(who) + "," + std::to_string(i) + ",zeroblob(3000));")) ::_exit(1);
        if (i % 20 == 5 && !db.run("BEGIN; DELETE FROM t; ROLLBACK;")) ::_exit(2);
      }
      ::_exit(0);
    }
    children.push_back(pid);
  }
  long long last = 0;
  {
    Connection reader(at("app.db"));
    for (int i = 0; i < 50; ++i) {
      const long long now = reader.number("SELECT count(*) FROM t");
      EXPECT_GE(now, last) << reader.message();
      last = now;
    }
  }
  for (const pid_t pid : children) {
    int status = 0;
    ASSERT_EQ(::waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  EXPECT_EQ(sqlite("app.db", "SELECT count(*), count(DISTINCT who*1000+i) FROM t; PRAGMA integrity_check;"), "180|180\nok");
  stop_mount();
  Connection backing_db(backing("app.db"));
  EXPECT_EQ(backing_db.number("SELECT count(*) FROM t"), 180);
}

INSTANTIATE_TEST_SUITE_P(Modes, JournalModeTest, ::testing::Values("DELETE", "TRUNCATE", "PERSIST", "WAL"),
                         [](const auto& mode) { return std::string(mode.param); });

TEST_F(SqliteMountTest, PageSizesMappingsAndExclusiveLocking) {
  for (const std::string size : {"512", "4096", "65536"})
    for (const std::string mode : {"DELETE", "WAL"}) {
      const std::string name = mode + size + ".db";
      const std::string rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300) INSERT INTO t SELECT randomblob(700) FROM n;";
      sqlite(name, "PRAGMA page_size=" + size + "; PRAGMA journal_mode=" + mode + "; CREATE TABLE t(x);" + rows);
      sqlite(name, "PRAGMA mmap_size=100000000; SELECT sum(length(x)) FROM t; " + rows + " SELECT sum(length(x)) FROM t;");
      sqlite(name, "PRAGMA locking_mode=EXCLUSIVE; " + rows + " DELETE FROM t WHERE rowid%3=0; PRAGMA incremental_vacuum; VACUUM;");
      EXPECT_EQ(sqlite(name, "PRAGMA integrity_check; SELECT count(*) FROM t;"), "ok\n600");
    }
}

TEST_F(SqliteMountTest, ModeSwitchesBothWays) {
  sqlite("app.db", "CREATE TABLE t(x);");
  for (const std::string mode : {"wal", "delete", "truncate", "wal", "persist", "wal", "delete"})
    EXPECT_EQ(sqlite("app.db", "PRAGMA journal_mode=" + mode + "; INSERT INTO t VALUES(1);"), mode);
  EXPECT_EQ(sqlite("app.db", "SELECT count(*) FROM t; PRAGMA integrity_check;"), "7\nok");
}

TEST_F(SqliteMountTest, KilledWriterRecovers) {
  for (const std::string mode : {"DELETE", "WAL"}) {
    const std::string name = mode + ".db";
    sqlite(name, "PRAGMA journal_mode=" + mode + "; CREATE TABLE t(x); INSERT INTO t VALUES(1);");
    in_child([&] {
      Connection db(at(name));
      db.run("PRAGMA cache_size=2; BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500) "
             "INSERT INTO t SELECT zeroblob(2000) FROM n;");
      ::kill(::getpid(), SIGKILL);
      return 0;
    });
    EXPECT_EQ(sqlite(name, "SELECT count(*) FROM t; PRAGMA integrity_check;"), "1\nok");
  }
}

TEST_F(SqliteMountTest, NonRootClient) {
  ASSERT_EQ(::chmod(mountpoint_.c_str(), 0777), 0);
  for (const std::string mode : {"DELETE", "WAL"}) {
    const int failed = in_child([&] {
      if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 1;
      Connection db(at(mode + ".db"));
      if (!db.run("PRAGMA journal_mode=" + mode + "; CREATE TABLE t(x); INSERT INTO t VALUES(7);")) return 2;
      return db.number("SELECT x FROM t") == 7 ? 0 : 3;
    });
    EXPECT_EQ(failed, 0);
  }
  struct stat st {};
  ASSERT_EQ(::stat(backing("WAL.db").c_str(), &st), 0);
  EXPECT_EQ(st.st_uid, 65534u);
}

TEST_F(SqliteMountTest, DatabasesInSubdirectoriesMove) {
  ASSERT_EQ(::mkdir(at("tenants").c_str(), 0755), 0);
  sqlite("tenants/42.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x); INSERT INTO t VALUES(1);");
  ASSERT_EQ(::rename(at("tenants").c_str(), at("customers").c_str()), 0);
  sqlite("customers/42.db", "INSERT INTO t VALUES(2);");
  EXPECT_EQ(sqlite("customers/42.db", "SELECT sum(x) FROM t; PRAGMA journal_mode;"), "3\nwal");
}

}  // namespace
}  // namespace sluice::fuse
