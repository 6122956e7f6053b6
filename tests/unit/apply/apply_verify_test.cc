// I4: what does not follow the position, or is not what it says, is refused and changes nothing.
#include <gtest/gtest.h>

#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

class ApplyVerify : public testing::Test {
 protected:
  void SetUp() override {
    create_accounts(source.sql(), 200);
    first = source.next();
    ASSERT_TRUE(node.apply("app.db", first).has_value());
    transfer(source.sql(), 1);
    second = source.next();
    before = content();
    position = database().logged();
  }
  ReplicaDatabase& database() { return *node.database("app.db"); }
  Bytes content() {
    Connection sql(node.path("app.db"), SQLITE_OPEN_READONLY);
    sqlite3_int64 size = 0;
    unsigned char* data = sqlite3_serialize(sql.handle(), "main", &size, 0);
    Bytes bytes(reinterpret_cast<std::byte*>(data), reinterpret_cast<std::byte*>(data) + size);
    sqlite3_free(data);
    return bytes;
  }
  void expect_refused(const ChangeSet& change, Errc code, const std::string& why) {
    const auto applied = node.apply("app.db", change);
    ASSERT_TRUE(applied.has_error()) << why;
    EXPECT_EQ(applied.error().code, code) << why << ": " << applied.error().to_string();
    EXPECT_EQ(database().logged(), position) << why;
    EXPECT_EQ(database().applied(), position) << why;
    EXPECT_EQ(content(), before) << why;
  }
  void expect_still_works() {
    const auto applied = node.apply("app.db", second);
    ASSERT_TRUE(applied.has_value()) << applied.error().to_string();
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
    node.restart();
    EXPECT_EQ(database().logged(), source.pos());
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
  }

  TempDir dir;
  ReplicaNode node{dir.path() + "/data"};
  Source source{dir.path() + "/source.db", 4096, "WAL"};
  ChangeSet first;
  ChangeSet second;
  Bytes before;
  Pos position;
};

TEST_F(ApplyVerify, EveryFlippedByteIsNoticed) {
  for (std::size_t at = 0; at < second.image.size(); at += 1 + second.image.size() / 150) {
    ChangeSet bad = second;
    bad.image[at] ^= std::byte{0x41};
    expect_refused(bad, Errc::corrupt, "byte " + std::to_string(at));
  }
  expect_still_works();
}

TEST_F(ApplyVerify, TruncatedAndOverlongImages) {
  for (const std::size_t length : {std::size_t{0}, std::size_t{50}, second.image.size() / 2, second.image.size() - 1}) {
    ChangeSet bad = second;
    bad.image.resize(length);
    expect_refused(bad, Errc::corrupt, "only " + std::to_string(length) + " bytes");
    bad.head.length = length;
    expect_refused(bad, Errc::corrupt, "announced " + std::to_string(length) + " bytes");
  }
  ChangeSet longer = second;
  longer.image.push_back(std::byte{0});
  expect_refused(longer, Errc::corrupt, "a byte more");
  expect_still_works();
}

TEST_F(ApplyVerify, DuplicatesReorderingAndForeignPositions) {
  expect_refused(first, Errc::position, "duplicate");
  transfer(source.sql(), 2);
  const ChangeSet third = source.next();
  expect_refused(third, Errc::position, "gap");
  ChangeSet foreign = second;
  foreign.head.pre.checksum = Checksum(foreign.head.pre.checksum.value() ^ 2);
  expect_refused(foreign, Errc::position, "foreign checksum");
  ChangeSet relabelled = third;
  relabelled.head.pre = second.head.pre;
  relabelled.head.post.txid = second.head.post.txid;
  expect_refused(relabelled, Errc::corrupt, "another change set under this one's head");
  ASSERT_TRUE(node.apply("app.db", second).has_value());
  ASSERT_TRUE(node.apply("app.db", third).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyVerify, HeadsThatTheImageDoesNotBear) {
  ChangeSet bad = second;
  bad.head.commit += 1;
  expect_refused(bad, Errc::corrupt, "commit");
  bad = second;
  bad.head.post.checksum = Checksum(bad.head.post.checksum.value() ^ 4);
  expect_refused(bad, Errc::corrupt, "post");
  bad = second;
  bad.head.post.txid = bad.head.post.txid.next();
  expect_refused(bad, Errc::corrupt, "TXID range");
  bad = second;
  bad.head.page_size = 8192;
  expect_refused(bad, Errc::corrupt, "page size");
  bad.head.page_size = 1000;
  expect_refused(bad, Errc::corrupt, "impossible page size");
  expect_still_works();
}

TEST_F(ApplyVerify, AnImageOfAnotherDatabaseIsRefusedByTheRollingChecksum) {
  // Same positions, other content: only the checksums over our own pages can tell.
  Source other(dir.path() + "/other.db", 4096, "WAL");
  create_accounts(other.sql(), 300);
  ChangeSet foreign = other.next();
  transfer(other.sql(), 7);
  foreign = other.next();
  foreign.head.pre = position;
  expect_refused(foreign, Errc::corrupt, "pre-apply checksum inside");
  expect_still_works();
}

TEST_F(ApplyVerify, OldEpochsAreRefused) {
  second.head.epoch = Epoch(3);
  ASSERT_TRUE(node.apply("app.db", second).has_value());
  position = database().logged();
  before = content();
  transfer(source.sql(), 2);
  ChangeSet stale = source.next();
  stale.head.epoch = Epoch(2);
  expect_refused(stale, Errc::stale_epoch, "epoch");
  node.restart();
  expect_refused(stale, Errc::stale_epoch, "epoch after a restart");
  const auto database = node.database("app.db");
  source.epoch = Epoch(2);
  const auto installed = node.snapshot("app.db", source);
  ASSERT_TRUE(installed.has_error());
  EXPECT_EQ(installed.error().code, Errc::stale_epoch);
  EXPECT_EQ(content(), before);
}

TEST_F(ApplyVerify, AbortForgetsWhatCame) {
  ASSERT_TRUE(database().begin_change_set(second.head).has_value());
  ASSERT_TRUE(database().change_set_bytes(ByteView(second.image).first(100)).has_value());
  database().abort_change_set();
  EXPECT_TRUE(database().change_set_bytes(ByteView(second.image).first(100)).has_error());
  EXPECT_TRUE(database().finish_change_set().has_error());
  expect_still_works();
}

TEST_F(ApplyVerify, AFullDiskChangesNothing) {
  source.sql().exec("CREATE TABLE big(b); WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM c WHERE i<20000) "
                    "INSERT INTO big SELECT randomblob(1000) FROM c");
  const ChangeSet large = source.next();
  ASSERT_TRUE(node.apply("app.db", second).has_value());
  position = database().logged();
  before = content();
  node.access().full = true;  // the wal-index cannot grow
  expect_refused(large, Errc::no_space, "full disk");
  node.access().full = false;
  ASSERT_TRUE(node.apply("app.db", large).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

TEST_F(ApplyVerify, SnapshotsThatDoNotAddUpAreRefused) {
  ASSERT_TRUE(node.apply("app.db", second).has_value());
  position = database().logged();
  before = content();
  transfer(source.sql(), 2);
  source.next();
  const auto send = [&](std::uint32_t wrong_page, const SnapshotEnd& end) -> Result<void> {
    TRY(database().begin_snapshot(4096, source.pages()));
    for (std::uint32_t p = 1; p <= source.pages(); ++p) {
      Bytes page(source.content().begin() + (p - 1) * 4096, source.content().begin() + p * 4096);
      if (p == wrong_page) page[2000] ^= std::byte{1};
      TRY(database().snapshot_page(Pgno(p), page));
    }
    return database().finish_snapshot(end);
  };
  SnapshotEnd end = source.end();
  for (const std::uint32_t page : {1u, 2u, source.pages()}) {
    const auto installed = send(page, end);
    ASSERT_TRUE(installed.has_error());
    EXPECT_EQ(installed.error().code, Errc::corrupt);
  }
  end.commit += 1;
  EXPECT_TRUE(send(0, end).has_error()) << "a page is missing";
  EXPECT_TRUE(database().begin_snapshot(1000, 3).has_error());
  ASSERT_TRUE(database().begin_snapshot(4096, 3).has_value());
  EXPECT_TRUE(database().snapshot_page(Pgno(0), Bytes(4096)).has_error());
  EXPECT_TRUE(database().snapshot_page(Pgno(1), Bytes(512)).has_error());
  EXPECT_TRUE(database().snapshot_page(lock_page(4096), Bytes(4096)).has_error());
  database().abort_snapshot();
  EXPECT_EQ(database().logged(), position);
  EXPECT_EQ(content(), before);
  ASSERT_TRUE(send(0, source.end()).has_value());
  EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
}

}  // namespace
}  // namespace sluice::storage::apply_test
