// Change sets become visible, in every page size and journal mode, and end up in the database file.
#include <gtest/gtest.h>

#include <algorithm>

#include "storage/apply/replica_database.h"
#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

struct Kind {
  std::uint32_t page_size;
  const char* journal_mode;
};

class ApplyKind : public testing::TestWithParam<Kind> {
 protected:
  TempDir dir;
  ReplicaNode node{dir.path() + "/data"};
  Source source{dir.path() + "/source.db", GetParam().page_size, GetParam().journal_mode};
};

INSTANTIATE_TEST_SUITE_P(Kinds, ApplyKind,
                         testing::Values(Kind{512, "WAL"}, Kind{512, "DELETE"}, Kind{4096, "WAL"}, Kind{4096, "DELETE"},
                                         Kind{65536, "WAL"}, Kind{65536, "DELETE"}),
                         [](const auto& kind) {
                           return std::string(kind.param.journal_mode) + std::to_string(kind.param.page_size);
                         });

TEST_P(ApplyKind, EveryChangeSetIsVisibleToAnOpenReader) {
  create_accounts(source.sql(), 200);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  for (int i = 1; i <= 40; ++i) {
    transfer(source.sql(), i);
    const auto applied = node.apply("app.db", source.next());
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    ASSERT_EQ(reader.integer("SELECT n FROM meta"), i);
  }
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  EXPECT_EQ(node.database("app.db")->applied(), source.pos());
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
}

TEST_P(ApplyKind, LargeGrowingAndShrinkingChangeSets) {
  create_accounts(source.sql(), 200);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  source.sql().exec("CREATE TABLE big(b); WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<4000) "
                    "INSERT INTO big SELECT randomblob(1000) FROM c");
  const ChangeSet large = source.next();
  EXPECT_GT(large.image.size(), std::size_t{1} << 20) << "must be spooled";
  const auto grown = node.apply("app.db", large);
  ASSERT_TRUE(grown.has_value()) << grown.error().to_string();
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  source.sql().exec("DELETE FROM big; VACUUM");
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  node.close();
  EXPECT_EQ(file_content(node.path("app.db")), source.content()) << "a clean stop leaves the database file complete";
}

TEST_P(ApplyKind, DatabaseFileIsCompleteSoonAfterTheLastChange) {
  ReplicaOptions options;
  options.idle_checkpoint_ms = 50;
  node.restart(options);
  create_accounts(source.sql(), 200);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  for (int i = 1; i <= 5; ++i) {
    transfer(source.sql(), i);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  }
  EXPECT_TRUE(eventually([&] { return file_content(node.path("app.db")) == source.content(); }));
  EXPECT_GT(node.access().invalidations, 0) << "cached pages of the database file must be dropped";
}

class Apply : public testing::Test {
 protected:
  TempDir dir;
  ReplicaNode node{dir.path() + "/data"};
  std::string source_path = dir.path() + "/source.db";
};

TEST_F(Apply, AReaderNeitherBlocksNorIsBlockedWhateverPageOneSays) {
  for (const char* mode : {"WAL", "DELETE"}) {
    Source source(source_path + mode, 4096, mode);
    const std::string name = std::string(mode) + ".db";
    create_accounts(source.sql(), 100);
    ASSERT_TRUE(node.apply(name, source.next()).has_value());
    Connection reader(node.path(name), SQLITE_OPEN_READONLY);
    reader.exec("BEGIN");
    EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0);
    for (int i = 1; i <= 300; ++i) {
      transfer(source.sql(), i);
      ASSERT_TRUE(node.apply(name, source.next()).has_value());
    }
    EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0) << mode;
    EXPECT_EQ(reader.integer("SELECT COUNT(*) FROM journal"), 0) << mode;
    reader.exec("COMMIT");
    EXPECT_EQ(reader.integer("SELECT n FROM meta"), 300) << mode;
    EXPECT_EQ(reader.text("PRAGMA journal_mode"), "wal") << "rollback databases too are read through the WAL";
  }
}

TEST_F(Apply, ModeSwitchesOnThePrimaryAreOrdinaryPages) {
  Source source(source_path, 4096, "WAL");
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  int n = 0;
  for (const char* mode : {"DELETE", "WAL", "TRUNCATE", "WAL", "PERSIST"}) {
    source.sql().text(std::string("PRAGMA journal_mode=") + mode);
    transfer(source.sql(), ++n);
    const auto applied = node.apply("app.db", source.next());
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    EXPECT_EQ(reader.integer("SELECT n FROM meta"), n) << mode;
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "") << mode;
  }
}

TEST_F(Apply, TheWalStartsOverAgainAndAgain) {
  ReplicaOptions options;
  options.checkpoint_frames = 20;
  node.restart(options);
  Source source(source_path, 4096, "WAL");
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  for (int i = 1; i <= 600; ++i) {
    transfer(source.sql(), i);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    ASSERT_EQ(reader.integer("SELECT n FROM meta"), i);
  }
  // 600 change sets of 4 pages and more without starting over would be 2400 frames.
  const Bytes wal = file_content(node.path("app.db-wal"));
  EXPECT_LT(wal.size(), std::size_t{32 + 1500 * 4120}) << "the WAL never started over";
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(Apply, AReaderThatPinsTheWalIsReportedUntilItIsGone) {
  ReplicaOptions options;
  options.checkpoint_frames = 10;
  options.max_wal_frames = 50;
  node.restart(options);
  Source source(source_path, 4096, "WAL");
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  reader.exec("BEGIN");
  (void)reader.integer("SELECT n FROM meta");
  const auto warning = [&] { return node.store().find("app.db")->warning(); };
  int n = 0;
  // Checkpoints run beside the change sets.
  const auto apply_until = [&](const auto& condition) {
    for (const int last = n + 3000; n < last && !condition();) {
      transfer(source.sql(), ++n);
      ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    }
    EXPECT_TRUE(condition()) << warning();
  };
  apply_until([&] { return warning().find("a long read transaction of process") != std::string::npos; });
  reader.exec("COMMIT");
  apply_until([&] { return warning().empty(); });
}

TEST_F(Apply, PagesCanBeReadAtThePositionFromWalAndFile) {
  Source source(source_path, 4096, "WAL");
  create_accounts(source.sql(), 500);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  for (int i = 1; i <= 20; ++i) {
    transfer(source.sql(), i);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    const auto database = node.store().find("app.db");
    MutexLock lock(database->commit_mutex());
    ASSERT_NE(database->page_source(), nullptr);
    Bytes page(4096);
    for (std::uint32_t p = 1; p <= source.pages(); ++p) {
      ASSERT_TRUE(database->page_source()->read_page(Pgno(p), page).has_value());
      ASSERT_TRUE(std::ranges::equal(page, ByteView(source.content()).subspan((p - 1) * 4096, 4096))) << p;
    }
    EXPECT_TRUE(database->page_source()->read_page(Pgno(source.pages() + 1), page).has_error());
  }
}

TEST_F(Apply, AReaderThatComesFirstAfterARestartIsServed) {
  Source source(source_path, 4096, "WAL");
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  transfer(source.sql(), 1);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  node.close();
  {
    // What the server does before it mounts.
    StoreOptions options;
    options.data_dir = node.data_dir();
    auto store = Store::open(real_file_system(), system_clock(), options);
    ASSERT_TRUE(store.has_value()) << store.error().to_string();
    ASSERT_TRUE(Replica::recover(**store).has_value());
  }
  Child reader({SLUICE_APPLY_READER, "hold", node.path("app.db")});
  EXPECT_EQ(reader.read_line(), "ready 1");
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  transfer(source.sql(), 2);
  const auto applied = node.apply("app.db", source.next());
  ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
  reader.write_line();
  EXPECT_EQ(reader.read_line(), "then 2");
  EXPECT_EQ(reader.wait(), 0);
}

TEST_F(Apply, WritersGetBusyWhenTheWriteLocksAreHeld) {
  ReplicaOptions options;
  options.hold_write_locks = true;
  options.checkpoint_frames = 20;
  node.restart(options);
  Source source(source_path, 4096, "WAL");
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection client(node.path("app.db"));
  sqlite3_busy_timeout(client.handle(), 0);
  for (int i = 1; i <= 100; ++i) {
    EXPECT_EQ(client.try_exec("UPDATE meta SET n = 99"), SQLITE_BUSY);
    EXPECT_EQ(client.try_exec("PRAGMA journal_mode=DELETE"), SQLITE_BUSY);
    transfer(source.sql(), i);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    ASSERT_EQ(client.integer("SELECT n FROM meta"), i);
  }
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(Apply, ClosingClientsDoNotTakeTheWalAway) {
  Source source(source_path, 4096, "DELETE");
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  for (int i = 1; i <= 3; ++i) {
    { EXPECT_EQ(Connection(node.path("app.db")).integer("SELECT n FROM meta"), i - 1); }
    ASSERT_TRUE(exists(node.path("app.db-wal")));
    EXPECT_GE(file_content(node.path("app.db-wal")).size(), 32u) << "never empty: SQLite would read in rollback mode";
    transfer(source.sql(), i);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  }
}

}  // namespace
}  // namespace sluice::storage::apply_test
