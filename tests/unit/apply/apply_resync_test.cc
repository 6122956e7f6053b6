// A replica that is sent what differs (decision 0005): what it offers, what becomes of it, and what every crash on the way leaves.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>

#include "storage/ltx/checksum.h"
#include "tests/support/fault_fs.h"
#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

class ApplyResync : public testing::Test {
 protected:
  static ReplicaOptions options() {
    ReplicaOptions options;
    options.idle_checkpoint_ms = 60'000;  // nothing happens by itself
    return options;
  }
  void SetUp() override {
    create_accounts(source.sql(), 5000);
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    remember();
  }
  void remember() { states[source.pos()] = source.content(); }
  /// The source moves on without the replica.
  void go_on(int transfers) {
    for (int i = 0; i < transfers; ++i) transfer(source.sql(), ++number);
    source.next();
    remember();
  }
  std::size_t differing() {
    const Bytes& has = states.at(node.database("app.db")->logged());
    std::size_t count = 0;
    const std::size_t size = source.page_size();
    for (std::size_t at = 0; at < source.content().size(); at += size) {
      const auto now = ByteView(source.content()).subspan(at, size);
      count += at + size > has.size() || !std::ranges::equal(now, ByteView(has).subspan(at, size)) ? 1 : 0;
    }
    return count;
  }
  Result<std::size_t> resync(std::size_t most = static_cast<std::size_t>(-1)) {
    return send_differences(*node.database("app.db"), source.content(), source.end(), most);
  }
  void expect_current(ReplicaNode& at) {
    EXPECT_EQ(at.database("app.db")->logged(), source.pos());
    EXPECT_EQ(at.database("app.db")->applied(), source.pos());
    EXPECT_EQ(difference(at.path("app.db"), source.content()), "");
  }
  PageChecksums& checksums() NO_THREAD_SAFETY_ANALYSIS { return node.store().find("app.db")->checksums(); }
  void flip(std::uint32_t pgno) {
    std::fstream file(node.path("app.db"), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(pgno - 1) * source.page_size() + 100);
    const int was = file.get();
    file.seekp(static_cast<std::streamoff>(pgno - 1) * source.page_size() + 100);
    file.put(static_cast<char>(was ^ 1));
  }

  TempDir dir;
  test::FaultFileSystem fs;
  ReplicaNode node{dir.path() + "/data", options(), fs};
  Source source{dir.path() + "/source.db", 1024, "WAL"};
  std::map<Pos, Bytes> states;
  int number = 0;
};

TEST_F(ApplyResync, OnlyWhatDiffersIsSent) {
  go_on(3);
  const std::size_t expected = differing();
  ASSERT_LT(expected, source.pages() / 2);
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, expected);
  expect_current(node);
  // And on from there, by the log.
  transfer(source.sql(), ++number);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  expect_current(node);
  node.restart(options());
  expect_current(node);
  EXPECT_EQ(file_content(node.path("app.db")), source.content());
}

TEST_F(ApplyResync, ItGrowsAndShrinks) {
  source.sql().exec("CREATE TABLE big AS SELECT randomblob(300000) AS b");
  go_on(1);
  ASSERT_TRUE(resync().has_value());
  expect_current(node);
  source.sql().exec("DROP TABLE big; DELETE FROM account WHERE id > 100; VACUUM");
  go_on(1);
  ASSERT_TRUE(resync().has_value());
  expect_current(node);
  node.restart(options());
  expect_current(node);
}

TEST_F(ApplyResync, EveryPageSize) {
  for (std::uint32_t page_size = 512; page_size <= 65536; page_size *= 2) {
    const std::string name = std::to_string(page_size);
    Source sized(dir.path() + "/sized" + name, page_size, "DELETE");
    create_accounts(sized.sql(), 20'000);
    ASSERT_TRUE(node.apply(name, sized.next()).has_value());
    transfer(sized.sql(), 1);
    sized.next();
    const auto sent = send_differences(*node.database(name), sized.content(), sized.end());
    ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
    EXPECT_LE(*sent, 6u) << page_size;
    EXPECT_EQ(difference(node.path(name), sized.content()), "") << page_size;
  }
}

TEST_F(ApplyResync, ReadersKeepTheirSnapshotAndSeeOneTransaction) {
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  reader.exec("BEGIN");
  EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0);
  go_on(7);
  ASSERT_TRUE(resync().has_value());
  EXPECT_EQ(reader.integer("SELECT COUNT(*) FROM journal"), 0);
  reader.exec("COMMIT");
  EXPECT_EQ(reader.integer("SELECT COUNT(*) FROM journal"), 7);
  EXPECT_EQ(reader.integer("SELECT SUM(v) FROM account"), 0);
}

TEST_F(ApplyResync, WhatCameBeforeACutIsNotSentAgain) {
  source.sql().exec("UPDATE account SET v = 0.5");
  go_on(1);
  const std::size_t all = differing();
  ASSERT_GT(all, 30u);
  std::size_t sent = 0;
  for (const std::size_t piece : {10u, 1u, 12u}) {
    const auto cut = resync(piece);
    ASSERT_EQ(cut.error().code, Errc::cancelled);
    sent += piece;
  }
  // Meanwhile the primary goes on: what came may have changed again.
  transfer(source.sql(), ++number);
  const Bytes before = source.content();
  source.next();
  std::size_t changed = 0;
  for (std::size_t at = 0; at < before.size(); at += 1024) {
    changed += std::ranges::equal(ByteView(before).subspan(at, 1024), ByteView(source.content()).subspan(at, 1024)) ? 0 : 1;
  }
  const auto rest = resync();
  ASSERT_TRUE(rest.has_value()) << rest.error().to_string();
  EXPECT_LE(sent + *rest, all + changed + 2);
  expect_current(node);
}

TEST_F(ApplyResync, AFirstSnapshotIsResumedToo) {
  const auto cut = send_differences(*node.database("new.db"), source.content(), source.end(), 20);
  ASSERT_EQ(cut.error().code, Errc::cancelled);
  const auto rest = send_differences(*node.database("new.db"), source.content(), source.end());
  ASSERT_TRUE(rest.has_value()) << rest.error().to_string();
  EXPECT_EQ(*rest, source.pages() - 20);
  EXPECT_EQ(difference(node.path("new.db"), source.content()), "");
}

TEST_F(ApplyResync, WhatWasBrokenOffIsForgottenWhenTheLogGoesOn) {
  transfer(source.sql(), ++number);
  const ChangeSet next = source.next();
  ASSERT_EQ(resync(1).error().code, Errc::cancelled);
  EXPECT_FALSE(std::filesystem::is_empty(node.data_dir() + "/install"));
  ASSERT_TRUE(node.apply("app.db", next).has_value());
  EXPECT_TRUE(std::filesystem::is_empty(node.data_dir() + "/install"));
  expect_current(node);
}

TEST_F(ApplyResync, UnknownChecksumsAreComputed) {
  const std::uint32_t pages = source.pages();
  for (std::uint32_t p = 1; p <= pages; ++p) ASSERT_TRUE(checksums().set(Pgno(p), Checksum{}).has_value());
  go_on(3);
  const std::size_t expected = differing();
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, expected);
  expect_current(node);
}

TEST_F(ApplyResync, ADamagedPageIsFoundWhenTheSumDoesNotAddUp) {
  ASSERT_TRUE(node.database("app.db")->sync().has_value());
  node.restart(options());
  ASSERT_EQ(file_content(node.path("app.db")), source.content());
  flip(20);
  flip(21);
  go_on(1);
  SnapshotEnd lie = source.end();
  lie.pos.checksum = Checksum(lie.pos.checksum.value() ^ 1);
  const auto refused = send_differences(*node.database("app.db"), source.content(), lie);
  ASSERT_EQ(refused.error().code, Errc::corrupt);
  const std::size_t expected = differing();
  const auto sent = resync();  // now every page is read
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, expected + 2);
  expect_current(node);
  node.restart(options());
  expect_current(node);
}

TEST_F(ApplyResync, MarkedPagesAreRepairedAtTheSamePosition) {
  node.restart(options());
  flip(20);
  ASSERT_NE(file_content(node.path("app.db")), source.content());
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0);
  const std::vector<Pgno> bad = {Pgno(20)};
  node.database("app.db")->mark_damaged(bad);
  EXPECT_EQ(node.database("app.db")->damaged(), 1u);
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, 1u);
  EXPECT_EQ(node.database("app.db")->damaged(), 0u);
  expect_current(node);
  EXPECT_EQ(reader.text("PRAGMA integrity_check"), "ok");
  transfer(source.sql(), ++number);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  node.restart(options());
  expect_current(node);
  EXPECT_EQ(file_content(node.path("app.db")), source.content());
}

TEST_F(ApplyResync, WithoutKnowingWhichEveryPageIsRead) {
  node.restart(options());
  flip(20);
  flip(33);
  node.database("app.db")->mark_damaged({});
  EXPECT_EQ(node.database("app.db")->damaged(), 1u);
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, 2u);
  EXPECT_EQ(node.database("app.db")->damaged(), 0u);
  expect_current(node);
}

TEST_F(ApplyResync, AfterTwoThatDoNotAddUpNothingIsOffered) {
  go_on(1);
  SnapshotEnd lie = source.end();
  lie.pos.checksum = Checksum(lie.pos.checksum.value() ^ 1);
  for (int i = 0; i < 2; ++i) {
    ASSERT_EQ(send_differences(*node.database("app.db"), source.content(), lie).error().code, Errc::corrupt);
  }
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, source.pages());
  expect_current(node);
}

TEST_F(ApplyResync, AFailedDatabaseOffersNothing) {
  {
    Connection intruder(node.path("app.db"), SQLITE_OPEN_READWRITE);
    intruder.exec("INSERT INTO account VALUES(100000, 0)");
  }
  go_on(1);
  // Noticed while it is installed: the content is not what was offered.
  const auto refused = resync();
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(node.database("app.db")->logged(), Pos{});
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_EQ(*sent, source.pages());
  expect_current(node);
}

/// At every other change of a file of ours, a copy of the data directory is what a kill leaves. All of them lead to a position that
/// the node has had, with its content, and none to a snapshot.
class ApplyResyncKilled : public ApplyResync {
 protected:
  void copy_at_changes() {
    fs.on_change([this] {
      if (++changes % 2 == 0) return;  // half of them are points enough
      const std::string copy = dir.path() + "/copy" + std::to_string(copies++);
      std::filesystem::copy(node.data_dir(), copy, std::filesystem::copy_options::recursive);
      std::filesystem::remove(copy + "/lock");
    });
  }
  void expect_all_recover() {
    fs.on_change(nullptr);
    ASSERT_GT(copies, 5);
    for (int i = 0; i < copies; ++i) {
      const std::string copy = dir.path() + "/copy" + std::to_string(i);
      {
        ReplicaNode after(copy, options());
        const Pos pos = after.database("app.db")->logged();
        ASSERT_TRUE(states.contains(pos)) << i << " of " << copies << " is at " << fmt::format("{}", pos);
        ASSERT_EQ(difference(after.path("app.db"), states.at(pos)), "") << i;
        positions_seen[pos]++;
      }
      std::filesystem::remove_all(copy);
    }
  }
  int changes = 0;
  int copies = 0;
  std::map<Pos, int> positions_seen;
};

TEST_F(ApplyResyncKilled, WithFramesThatReadersKeepInTheWal) {
  Connection reader(node.path("app.db"), SQLITE_OPEN_READONLY);
  reader.exec("BEGIN");
  EXPECT_EQ(reader.integer("SELECT n FROM meta"), 0);
  for (int i = 0; i < 4; ++i) {
    transfer(source.sql(), ++number);
    source.sql().exec("UPDATE account SET v = v WHERE id % 500 = " + std::to_string(i));
    ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
    remember();
  }
  go_on(2);
  copy_at_changes();
  const auto sent = resync();
  ASSERT_TRUE(sent.has_value()) << sent.error().to_string();
  EXPECT_LT(*sent, 12u);
  // More by the log, while the marker is still needed.
  transfer(source.sql(), ++number);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  remember();
  // A second one before the first is in the file.
  go_on(1);
  ASSERT_TRUE(resync().has_value());
  transfer(source.sql(), ++number);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  remember();
  EXPECT_FALSE(std::filesystem::is_empty(node.data_dir() + "/install"));
  reader.exec("COMMIT");
  node.close();
  EXPECT_TRUE(std::filesystem::is_empty(node.data_dir() + "/install"));
  expect_all_recover();
  EXPECT_GT(positions_seen.size(), 2u);
}

TEST_F(ApplyResyncKilled, ShrinkingAndGrowing) {
  source.sql().exec("DELETE FROM account WHERE id > 300; VACUUM");
  go_on(1);
  copy_at_changes();
  ASSERT_TRUE(resync().has_value());
  source.sql().exec("CREATE TABLE big AS SELECT randomblob(100000) AS b");
  go_on(1);
  ASSERT_TRUE(resync().has_value());
  node.close();
  expect_all_recover();
  EXPECT_EQ(positions_seen.size(), 3u);
}

// Recovery goes on from the checkpoint, and retention may cut the log below it: while a marker is there, it stays at the marker.
TEST_F(ApplyResync, TheMarkerGoesBeforeTheCheckpointMovesOn) {
  go_on(1);
  const auto database = node.store().find("app.db");
  PageChecksums& sums = checksums();
  ASSERT_TRUE(resync().has_value());
  const Pos installed = source.pos();
  transfer(source.sql(), ++number);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  const std::string marker = node.data_dir() + "/install/" + escape_name("app.db") + ".install";
  int looks = 0;
  ASSERT_TRUE(exists(marker));
  fs.on_change([&] {
    if (!exists(marker)) return;
    ++looks;
    EXPECT_EQ(sums.state().checkpoint, installed);
  });
  node.replica().stop();
  fs.on_change(nullptr);
  EXPECT_GT(looks, 0);
  EXPECT_FALSE(exists(marker));
  EXPECT_EQ(sums.state().checkpoint, source.pos());
}

}  // namespace
}  // namespace sluice::storage::apply_test
