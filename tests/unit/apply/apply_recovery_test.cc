// Whatever happens, the database file and the log lead back to the log's position, or a snapshot is asked for.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "storage/apply/recovery.h"
#include "storage/apply/snapshot_files.h"
#include "tests/unit/apply/history.h"
#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

TEST(ApplyKilled, TheLogIsWhatRemains) {
  TempDir dir;
  const std::string data = dir.path() + "/data";
  const std::string history = dir.path() + "/history";
  std::filesystem::create_directory(history);
  std::vector<Bytes> states(1);
  std::vector<Pos> positions(1);
  {
    Source source(dir.path() + "/source.db", 1024, "DELETE");
    create_accounts(source.sql(), 300);
    const auto record = [&](const ChangeSet& change) {
      write_change(history, change);
      const std::uint64_t txid = change.head.post.txid.value();
      if (txid % 9 == 0 && change.head.commit != 0) write_snapshot(history, change, source.content());
      states.push_back(source.content());
      positions.push_back(source.pos());
    };
    record(source.next());
    for (int i = 1; i <= 400; ++i) {
      if (i % 90 == 0) {
        source.sql().exec("PRAGMA page_size=" + std::to_string(i % 180 == 0 ? 1024 : 2048) + "; VACUUM");
      } else if (i % 55 == 0) {
        source.sql().exec("CREATE TABLE IF NOT EXISTS big(b); INSERT INTO big VALUES(randomblob(200000))");
      } else if (i % 70 == 0) {
        source.sql().exec("DROP TABLE IF EXISTS big; VACUUM");
      } else if (i == 250) {
        record(source.remove());
        source.create(1024, "DELETE");
        create_accounts(source.sql(), 100);
      }
      transfer(source.sql(), i);
      record(source.next());
    }
  }
  std::mt19937 random(12345);
  std::uint64_t durable = 0;
  std::uint64_t last = 0;
  int kills = 0;
  for (int round = 0; round < 60 && last + 1 < positions.size(); ++round) {
    Child worker({SLUICE_APPLY_WORKER, data, history});
    // Short ones first: a fast machine is through the history before a long one ends.
    const auto delay = std::chrono::milliseconds(round < 10 ? 1 + random() % 12 : 20 + random() % 150);
    const std::string line = worker.read_line();
    std::this_thread::sleep_for(delay);
    worker.kill();
    std::string more = line;
    while (!more.empty()) {
      ASSERT_FALSE(more.starts_with("ERROR")) << more;
      if (more.starts_with("durable ")) durable = std::max<std::uint64_t>(durable, std::stoull(more.substr(8)));
      more = worker.read_line();
    }
    if (worker.wait() < 0) ++kills;
    ReplicaNode node(data);
    const Pos pos = node.database("app.db")->logged();
    ASSERT_GE(pos.txid.value(), durable);
    ASSERT_GE(pos.txid.value(), last);
    last = pos.txid.value();
    ASSERT_EQ(pos, positions[last]);
    ASSERT_EQ(node.database("app.db")->applied(), pos);
    if (states[last].empty()) {
      ASSERT_FALSE(exists(node.path("app.db")));
    } else if (last > 0) {
      ASSERT_EQ(difference(node.path("app.db"), states[last]), "") << "at " << last;
      ASSERT_EQ(file_content(node.path("app.db")), states[last]);
    }
  }
  EXPECT_GT(kills, 3);
  EXPECT_EQ(last + 1, positions.size()) << "the history did not get through";
}

class ApplyRecovery : public testing::Test {
 protected:
  void SetUp() override {
    create_accounts(source.sql(), 300);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    for (int i = 1; i <= 10; ++i) {
      transfer(source.sql(), i);
      ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    }
  }
  void expect_healed_by_snapshot() {
    EXPECT_EQ(node.database("app.db")->logged(), Pos{});
    transfer(source.sql(), 11);
    source.next();
    const auto installed = node.snapshot("app.db", source);
    ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
    node.restart();
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  }

  TempDir dir;
  ReplicaNode node{dir.path() + "/data"};
  Source source{dir.path() + "/source.db", 4096, "WAL"};
};

TEST_F(ApplyRecovery, WalAndWalIndexAreDisposable) {
  node.close();
  std::filesystem::remove(node.path("app.db-wal"));
  std::filesystem::remove(node.path("app.db-shm"));
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  node.close();
  std::ofstream(node.path("app.db-wal")) << std::string(100'000, 'x');
  std::ofstream(node.path("app.db-shm")) << std::string(40'000, 'y');
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

// None of the WAL's frames reached the disk, but the index of them did.
TEST_F(ApplyRecovery, AWalIndexThatOutlivedItsWalIsNotBelieved) {
  const auto recover = [this] {
    StoreOptions options;
    options.data_dir = node.data_dir();
    auto store = Store::open(real_file_system(), system_clock(), options);
    ASSERT_TRUE(store.has_value());
    ASSERT_TRUE(Replica::recover(**store).has_value());
  };
  const Bytes index = file_content(node.path("app.db-shm"));
  node.close();
  recover();
  ASSERT_EQ(file_content(node.path("app.db-wal")).size(), 32u);
  std::ofstream(node.path("app.db-shm"), std::ios::binary)
      .write(reinterpret_cast<const char*>(index.data()), static_cast<std::streamsize>(index.size()));
  recover();
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyRecovery, AMissingDatabaseFile) {
  node.close();
  std::filesystem::remove(node.path("app.db"));
  node.restart();
  expect_healed_by_snapshot();
}

TEST_F(ApplyRecovery, AShortDatabaseFileIsSetAside) {
  node.close();
  std::filesystem::resize_file(node.path("app.db"), 5000);
  node.restart();
  EXPECT_FALSE(exists(node.path("app.db"))) << "no reader may see a malformed database";
  expect_healed_by_snapshot();
}

TEST_F(ApplyRecovery, AForeignDatabaseFileIsSetAside) {
  node.close();
  Bytes content = file_content(node.path("app.db"));
  content[30] ^= std::byte{1};
  std::ofstream(node.path("app.db"), std::ios::binary)
      .write(reinterpret_cast<const char*>(content.data()), static_cast<std::streamsize>(content.size()));
  node.restart();
  expect_healed_by_snapshot();
}

TEST_F(ApplyRecovery, ARollbackJournalBesideItMakesItUnusable) {
  node.close();
  std::ofstream(node.path("app.db-journal")) << "hot";
  node.restart();
  EXPECT_FALSE(exists(node.path("app.db-journal")));
  expect_healed_by_snapshot();
}

TEST_F(ApplyRecovery, AFailedDatabaseTakesTheHistoryFromTxidOne) {
  node.close();
  std::filesystem::remove(node.path("app.db"));
  node.restart();
  Source fresh(dir.path() + "/fresh.db", 4096, "WAL");
  create_accounts(fresh.sql(), 50);
  const auto applied = node.apply("app.db", fresh.next());
  ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
  EXPECT_EQ(node.database("app.db")->logged(), fresh.pos());
  EXPECT_EQ(difference(node.path("app.db"), fresh.content()), "");
  transfer(fresh.sql(), 1);
  ASSERT_TRUE(node.apply("app.db", fresh.next()).has_value());
  node.restart();
  EXPECT_EQ(difference(node.path("app.db"), fresh.content()), "");
}

TEST_F(ApplyRecovery, AMarkedSnapshotIsInstalledAgain) {
  // As a crash right after the marker leaves it: nothing of the snapshot in log, WAL or database file.
  node.close();
  transfer(source.sql(), 11);
  source.next();
  const std::string install = node.data_dir() + "/install";
  {
    auto files = apply::SnapshotFiles::create(real_file_system(), install, escape_name("app.db"), 4096);
    ASSERT_TRUE(files.has_value());
    for (std::uint32_t p = 1; p <= source.pages(); ++p) {
      ASSERT_TRUE((*files)->add(Pgno(p), ByteView(source.content()).subspan((p - 1) * 4096, 4096)).has_value());
    }
    ASSERT_TRUE((*files)->mark(source.end()).has_value());
  }
  EXPECT_FALSE(std::filesystem::is_empty(install));
  node.restart();
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  EXPECT_TRUE(std::filesystem::is_empty(install));
  transfer(source.sql(), 12);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
}

TEST_F(ApplyRecovery, ADamagedMarkerMakesTheDatabaseUnusable) {
  // The database file may be half-way to a snapshot that nobody knows any more.
  node.close();
  const std::string install = node.data_dir() + "/install";
  std::filesystem::create_directories(install);
  std::ofstream(install + "/" + escape_name("app.db") + ".install") << std::string(72, 'z');
  node.restart();
  EXPECT_FALSE(exists(node.path("app.db")));
  expect_healed_by_snapshot();
}

TEST_F(ApplyRecovery, AnInterruptedCollectionIsCleanedUp) {
  const std::string install = node.data_dir() + "/install";
  node.close();
  std::filesystem::create_directories(install);
  std::ofstream(install + "/" + escape_name("app.db") + ".7.pages") << "half";
  std::ofstream(install + "/" + escape_name("app.db") + ".7.sums") << "half";
  node.restart();
  EXPECT_TRUE(std::filesystem::is_empty(install));
  EXPECT_EQ(node.database("app.db")->logged(), source.pos());
}

TEST_F(ApplyRecovery, AFormerPrimarysDatabasesAreKeptAside) {
  node.close();
  {
    StoreOptions options;
    options.data_dir = node.data_dir();
    auto store = Store::open(real_file_system(), system_clock(), options);
    ASSERT_TRUE(store.has_value());
    ASSERT_TRUE((*store)->set_last_role(Role::primary).has_value());
  }
  node.restart();
  EXPECT_EQ(node.store().last_role(), Role::replica);
  EXPECT_FALSE(exists(node.path("app.db")));
  EXPECT_FALSE(std::filesystem::is_empty(node.data_dir() + "/lost+found"));
  expect_healed_by_snapshot();
}

TEST_F(ApplyRecovery, AReaderOfWhatTheLastProcessLeftIsNotPulledAlong) {
  node.close();
  {
    // A client connected before anything was recovered: its own wal-index, with frames.
    Child early({SLUICE_APPLY_READER, "hold", node.path("app.db")});
    EXPECT_EQ(early.read_line(), "ready 10");
    ReplicaOptions options;
    options.exclusive_wait_ms = 100;
    node.restart(options);
    EXPECT_EQ(node.database("app.db")->logged(), Pos{}) << "must ask for a snapshot";
    transfer(source.sql(), 11);
    source.next();
    const auto installed = node.snapshot("app.db", source);
    ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
    early.write_line();
    EXPECT_EQ(early.read_line(), "then 11");
    EXPECT_EQ(early.wait(), 0);
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
  }
  transfer(source.sql(), 12);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyRecovery, SomebodyElseInTheWalIsNoticed) {
  {
    Connection intruder(node.path("app.db"), SQLITE_OPEN_READWRITE);
    intruder.exec("INSERT INTO account VALUES(100000, 0)");
  }
  transfer(source.sql(), 11);
  const auto applied = node.apply("app.db", source.next());
  ASSERT_TRUE(applied.has_error());
  EXPECT_EQ(node.database("app.db")->logged(), Pos{});
  transfer(source.sql(), 12);
  source.next();
  const auto installed = node.snapshot("app.db", source);
  ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

}  // namespace
}  // namespace sluice::storage::apply_test
