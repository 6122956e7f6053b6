// Real SQLite on a real mount: every journal mode, several processes, and what the observer sees of them.
#include <fcntl.h>
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/mount/mount_fixture.h"

namespace sluice::fuse {
namespace {

using ::testing::Test;

class SqliteMountTest : public MountFixture {};

TEST_F(SqliteMountTest, WalInsertCostsNoWriteRequest) {
  EXPECT_EQ(sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x);"), "wal");
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(at("app.db").c_str(), &db), SQLITE_OK);
  ASSERT_EQ(sqlite3_exec(db, "PRAGMA synchronous=NORMAL; INSERT INTO t VALUES(1);", nullptr, nullptr, nullptr), SQLITE_OK);
  const auto writes = requests("WRITE");
  const auto total = all_requests();
  for (int i = 0; i < 100; ++i)
    ASSERT_EQ(sqlite3_exec(db, "INSERT INTO t VALUES(2);", nullptr, nullptr, nullptr), SQLITE_OK);
  EXPECT_EQ(requests("WRITE"), writes);
  EXPECT_LE(all_requests() - total, 5u);
  sqlite3_close(db);
  EXPECT_EQ(sqlite("app.db", "SELECT count(*) FROM t; PRAGMA integrity_check;"), "101\nok");
}

}  // namespace
}  // namespace sluice::fuse
