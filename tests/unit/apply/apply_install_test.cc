// Databases that come, go, change their page size, or are replaced by a snapshot.
#include <gtest/gtest.h>

#include <algorithm>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>

#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

class ApplyInstall : public testing::Test {
 protected:
  std::vector<std::string> lost_and_found() {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(node.data_dir() + "/lost+found")) {
      if (entry.is_regular_file()) names.push_back(entry.path().string());
    }
    std::ranges::sort(names);
    return names;
  }
  std::size_t install_files() {
    const std::string path = node.data_dir() + "/install";
    if (!exists(path)) return 0;
    return static_cast<std::size_t>(
        std::distance(std::filesystem::directory_iterator(path), std::filesystem::directory_iterator()));
  }

  TempDir dir;
  ReplicaNode node{dir.path() + "/data"};
  Source source{dir.path() + "/source.db", 4096, "WAL"};
};

TEST_F(ApplyInstall, NewDatabaseInNewDirectories) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("tenants/eu/42.db", source.next()).has_value());
  EXPECT_EQ(difference(node.path("tenants/eu/42.db"), source.content()), "");
  EXPECT_GE(node.access().forgotten_entries, 3) << "negative entries must go";
}

TEST_F(ApplyInstall, TheLongestNameHasRoomForItsSuffixes) {
  const std::string name(220, 'x');
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply(name, source.next()).has_value());
  transfer(source.sql(), 1);
  source.next();
  ASSERT_TRUE(node.snapshot(name, source).has_value());
  EXPECT_EQ(difference(node.path(name), source.content()), "");
  ASSERT_TRUE(node.replica().discard(name).has_value());
}

TEST_F(ApplyInstall, LocalFilesInTheWayAreKeptAside) {
  std::ofstream(node.path("app.db")) << "my notes";
  std::ofstream(node.path("tenants")) << "a file where a directory comes";
  create_accounts(source.sql(), 100);
  const ChangeSet first = source.next();
  ASSERT_TRUE(node.apply("app.db", first).has_value());
  ASSERT_TRUE(node.apply("tenants/1.db", first).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  EXPECT_EQ(difference(node.path("tenants/1.db"), source.content()), "");
  const auto kept = lost_and_found();
  ASSERT_EQ(kept.size(), 2u);
  EXPECT_EQ(as_text(file_content(kept[0])), "my notes");
}

TEST_F(ApplyInstall, DeletionAndRecreation) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  reader.exec("BEGIN");
  EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0);
  for (int round = 1; round <= 3; ++round) {
    ASSERT_TRUE(node.apply("app.db", source.remove()).has_value());
    for (const char* suffix : {"", "-wal", "-shm"}) EXPECT_FALSE(exists(node.path("app.db") + suffix)) << suffix;
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
    if (round == 2) node.restart();
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
    EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0) << "an open reader keeps its files";
    source.create(round == 1 ? 4096 : 1024, round == 1 ? "WAL" : "DELETE");
    create_accounts(source.sql(), 100 * round);
    transfer(source.sql(), 1);
    const auto created = node.apply("app.db", source.next());
    ASSERT_TRUE(created.has_value()) << created.error().to_string();
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
    transfer(source.sql(), 2);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  }
}

TEST_F(ApplyInstall, ALocalFileThatTookADeletedDatabasesNameSurvivesARestart) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  ASSERT_TRUE(node.apply("app.db", source.remove()).has_value());
  std::ofstream(node.path("app.db")) << "local";
  node.restart();
  EXPECT_EQ(as_text(file_content(node.path("app.db"))), "local");
}

TEST_F(ApplyInstall, PageSizeChangesUnderAnIdleConnection) {
  Source rollback(dir.path() + "/rollback.db", 4096, "DELETE");
  create_accounts(rollback.sql(), 300);
  ASSERT_TRUE(node.apply("app.db", rollback.next()).has_value());
  Connection pooled(node.path("app.db"), SQLITE_OPEN_READONLY);
  Connection untouched(node.path("app.db"), SQLITE_OPEN_READONLY);
  EXPECT_EQ(pooled.integer("SELECT n FROM meta"), 0);
  int n = 0;
  for (const std::uint32_t page_size : {512u, 65536u, 1024u, 4096u}) {
    rollback.sql().exec("PRAGMA page_size=" + std::to_string(page_size) + "; VACUUM");
    transfer(rollback.sql(), ++n);
    const auto applied = node.apply("app.db", rollback.next());
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    ASSERT_EQ(rollback.page_size(), page_size);
    EXPECT_EQ(pooled.integer("SELECT n FROM meta"), n) << page_size;
    EXPECT_EQ(pooled.integer("PRAGMA page_size"), page_size);
    EXPECT_EQ(pooled.text("PRAGMA integrity_check"), "ok");
    EXPECT_EQ(difference(node.path("app.db"), rollback.content()), "") << page_size;
    for (int i = 0; i < 5; ++i) {
      transfer(rollback.sql(), ++n);
      ASSERT_TRUE(node.apply("app.db", rollback.next()).has_value());
      ASSERT_EQ(pooled.integer("SELECT n FROM meta"), n);
    }
    EXPECT_EQ(difference(node.path("app.db"), rollback.content()), "") << page_size;
  }
  EXPECT_EQ(untouched.integer("SELECT n FROM meta"), n);
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), rollback.pos());
  EXPECT_EQ(difference(node.path("app.db"), rollback.content()), "");
}

TEST_F(ApplyInstall, PageSizeChangeWaitsForReadersButNotForEver) {
  ReplicaOptions options;
  options.exclusive_wait_ms = 200;
  node.restart(options);
  Source rollback(dir.path() + "/rollback.db", 4096, "DELETE");
  create_accounts(rollback.sql(), 300);
  ASSERT_TRUE(node.apply("app.db", rollback.next()).has_value());
  const Pos before = rollback.pos();
  rollback.sql().exec("PRAGMA page_size=1024; VACUUM");
  const ChangeSet change = rollback.next();
  Child reader({SLUICE_APPLY_READER, "hold", node.path("app.db")});
  ASSERT_EQ(reader.read_line(), "ready 0");
  const auto refused = node.apply("app.db", change);
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().code, Errc::busy) << refused.error().to_string();
  EXPECT_NE(refused.error().message.find(std::to_string(reader.pid())), std::string::npos) << refused.error().message;
  EXPECT_EQ(node.database("app.db")->logged(), before);
  {
    Connection another(node.path("app.db"), SQLITE_OPEN_READONLY);
    EXPECT_EQ(another.integer("SELECT COUNT(*) FROM account"), 300) << "locks must be given back";
  }
  const auto snapshot_refused = node.snapshot("app.db", rollback);
  ASSERT_TRUE(snapshot_refused.has_error());
  EXPECT_EQ(snapshot_refused.error().code, Errc::busy);
  EXPECT_EQ(node.database("app.db")->logged(), before);
  // A reader that ends in time does not make it fail.
  options.exclusive_wait_ms = 20'000;
  Child second({SLUICE_APPLY_READER, "hold", node.path("app.db")});
  ASSERT_EQ(second.read_line(), "ready 0");
  reader.write_line();
  EXPECT_EQ(reader.read_line(), "then 0");
  node.restart(options);
  std::thread ends([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
    second.write_line();
  });
  const auto applied = node.apply("app.db", change);
  ends.join();
  ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
  EXPECT_EQ(second.read_line(), "then 0");
  EXPECT_EQ(second.wait(), 0);
  EXPECT_EQ(difference(node.path("app.db"), rollback.content()), "");
}

TEST_F(ApplyInstall, PageSizeChangesUnderBusyReaders) {
  Source rollback(dir.path() + "/rollback.db", 4096, "DELETE");
  create_accounts(rollback.sql(), 200);
  ASSERT_TRUE(node.apply("app.db", rollback.next()).has_value());
  std::vector<std::unique_ptr<Child>> readers;
  for (const char* mode : {"point", "reopen", "readonly"}) {
    readers.push_back(std::make_unique<Child>(std::vector<std::string>{SLUICE_APPLY_READER, mode, node.path("app.db")}));
  }
  for (const auto& reader : readers) ASSERT_EQ(reader->read_line(), "ready");
  int n = 0;
  for (const std::uint32_t page_size : {1024u, 8192u, 512u, 4096u, 16384u}) {
    rollback.sql().exec("PRAGMA page_size=" + std::to_string(page_size) + "; VACUUM");
    transfer(rollback.sql(), ++n);
    const auto applied = node.apply("app.db", rollback.next());
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    for (int i = 0; i < 20; ++i) {
      transfer(rollback.sql(), ++n);
      ASSERT_TRUE(node.apply("app.db", rollback.next()).has_value());
    }
  }
  for (const auto& reader : readers) {
    reader->close_input();
    const std::string line = reader->read_line();
    EXPECT_EQ(reader->wait(), 0) << line;
  }
  EXPECT_EQ(difference(node.path("app.db"), rollback.content()), "");
}

TEST_F(ApplyInstall, SnapshotIntoAnEmptyReplicaAndOn) {
  create_accounts(source.sql(), 500);
  source.next();
  transfer(source.sql(), 1);
  source.next();
  const auto installed = node.snapshot("dir/app.db", source);
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_EQ(node.database("dir/app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("dir/app.db"), source.content()), "");
  EXPECT_EQ(install_files(), 0u);
  transfer(source.sql(), 2);
  ASSERT_TRUE(node.apply("dir/app.db", source.next()).has_value());
  node.restart();
  EXPECT_EQ(node.database("dir/app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("dir/app.db"), source.content()), "");
}

TEST_F(ApplyInstall, SnapshotOverAReaderIsOneTransaction) {
  create_accounts(source.sql(), 500);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  reader.exec("BEGIN");
  EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0);
  for (int i = 1; i <= 20; ++i) {
    transfer(source.sql(), i);
    source.next();
  }
  const auto installed = node.snapshot("app.db", source);
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_EQ(reader.integer("SELECT COUNT(*) FROM journal"), 0);
  EXPECT_GT(install_files(), 0u) << "the reader keeps the snapshot out of the database file";
  reader.exec("COMMIT");
  EXPECT_EQ(reader.integer("SELECT COUNT(*) FROM journal"), 20);
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  transfer(source.sql(), 21);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  node.restart();
  EXPECT_EQ(install_files(), 0u);
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyInstall, SnapshotWithOtherPageSizeAndASmallerOne) {
  create_accounts(source.sql(), 3000);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  Connection pooled(node.path("app.db"), SQLITE_OPEN_READONLY);
  EXPECT_EQ(pooled.integer("SELECT COUNT(*) FROM account"), 3000);
  Source other(dir.path() + "/other.db", 512, "DELETE");
  create_accounts(other.sql(), 50);
  other.next();
  const auto installed = node.snapshot("app.db", other);
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_EQ(pooled.integer("SELECT COUNT(*) FROM account"), 50);
  EXPECT_EQ(difference(node.path("app.db"), other.content()), "");
  transfer(other.sql(), 1);
  ASSERT_TRUE(node.apply("app.db", other.next()).has_value());
  EXPECT_EQ(pooled.integer("SELECT n FROM meta"), 1);
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), other.pos());
  EXPECT_EQ(difference(node.path("app.db"), other.content()), "");
}

TEST_F(ApplyInstall, PagesThatTheReplicaHasNeedNotBeSent) {
  create_accounts(source.sql(), 3000);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  const Bytes before = source.content();
  transfer(source.sql(), 1);
  source.next();
  std::vector<std::uint32_t> same;
  for (std::uint32_t p = 1; p <= before.size() / 4096; ++p) {
    if (std::equal(before.begin() + (p - 1) * 4096, before.begin() + p * 4096, source.content().begin() + (p - 1) * 4096)) {
      same.push_back(p);
    }
  }
  ASSERT_GT(same.size(), 5u);
  const auto installed = node.snapshot("app.db", source, same);
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  node.restart();
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyInstall, SnapshotOfADeletedDatabase) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  source.remove();
  const auto database = node.database("app.db");
  ASSERT_TRUE(database->begin_snapshot(4096, 0).has_value());
  const auto installed = database->finish_snapshot(source.end());
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_FALSE(exists(node.path("app.db")));
  EXPECT_EQ(database->logged(), source.pos());
  source.create(4096, "WAL");
  create_accounts(source.sql(), 10);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyInstall, DiscardKeepsTheFiles) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("tenants/app.db", source.next()).has_value());
  transfer(source.sql(), 1);
  ASSERT_TRUE(node.apply("tenants/app.db", source.next()).has_value());
  ASSERT_TRUE(node.replica().discard("tenants/app.db").has_value());
  EXPECT_FALSE(exists(node.path("tenants/app.db")));
  EXPECT_FALSE(exists(node.path("tenants/app.db-wal")));
  EXPECT_TRUE(node.replica().list().empty());
  EXPECT_EQ(node.store().find("tenants/app.db"), nullptr);
  std::string kept;
  for (const std::string& file : lost_and_found()) {
    if (file.ends_with("/app.db")) kept = file;
  }
  ASSERT_FALSE(kept.empty());
  EXPECT_NE(kept.find(escape_name("tenants/app.db") + "-0000000000000002-1"), std::string::npos) << kept;
  EXPECT_EQ(difference(kept, source.content()), "");
  EXPECT_TRUE(node.replica().discard("tenants/app.db").has_error());
}

}  // namespace
}  // namespace sluice::storage::apply_test
