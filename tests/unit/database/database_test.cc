// Database: change sets are minimal and complete, the rolling checksum is that of the pages, and opening again gives the
// same position, bytes and checksums.
#include "storage/database.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <map>
#include <random>

#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"
#include "tests/support/fault_fs.h"

namespace sluice::storage {
namespace {

constexpr std::uint32_t kPageSize = 1024;

class DatabaseTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char path[] = "/tmp/sluice-database-XXXXXX";
    ASSERT_NE(mkdtemp(path), nullptr);
    dir_ = path;
    open();
  }
  void TearDown() override {
    database_.reset();
    std::filesystem::remove_all(dir_);
  }

  void open() {
    database_.reset();
    auto opened = Database::open(real_file_system(), "app.db", dir_ + "/log", dir_ + "/checksums", system_clock(), {});
    ASSERT_TRUE(opened.has_value()) << opened.error().to_string();
    database_ = *opened;
  }

  // The model: what the database holds.
  void fill(std::uint32_t pgno, unsigned seed, std::uint32_t page_size = kPageSize) {
    std::mt19937 random(seed);
    Bytes page(page_size);
    for (auto& b : page) b = static_cast<std::byte>(random());
    pages_[pgno] = page;
  }
  Checksum model_checksum() const {
    Checksum sum = kEmptyChecksum;
    for (const auto& [pgno, page] : pages_) sum = ltx::toggle(sum, ltx::page_checksum(Pgno(pgno), page));
    return sum;
  }

  Result<std::optional<Pos>> commit(std::vector<std::uint32_t> changed, std::uint32_t size,
                                    std::uint32_t page_size = kPageSize) {
    std::vector<Pgno> pages;
    for (const auto p : changed) pages.emplace_back(p);
    reads_ = 0;
    const auto read = [this](Pgno pgno) -> Result<ByteView> {
      ++reads_;
      return ByteView(pages_.at(pgno.value()));
    };
    const auto read_old = [](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "gone"); };
    MutexLock lock(database_->commit_mutex());
    return database_->commit(CommitInput{page_size, size, pages, read, read_old, {}}, Epoch(1), NodeId(7));
  }

  std::vector<std::uint32_t> pages_of(Txid txid) {
    std::vector<std::uint32_t> found;
    auto handle = database_->log().find(txid);
    EXPECT_TRUE(handle.has_value());
    const auto source = [&](std::uint64_t offset, ByteSpan out) -> Result<void> {
      TRY_ASSIGN(const std::size_t n, handle->file->read_at(handle->offset + offset, out));
      if (n != out.size()) return make_error(Errc::corrupt, "short");
      return {};
    };
    auto decoded = ltx::decode(source, handle->info.length, [&](Pgno pgno, ByteView page) -> Result<void> {
      EXPECT_TRUE(std::equal(page.begin(), page.end(), pages_.at(pgno.value()).begin()));
      found.push_back(pgno.value());
      return {};
    });
    EXPECT_TRUE(decoded.has_value());
    return found;
  }

  std::string dir_;
  std::shared_ptr<Database> database_;
  std::map<std::uint32_t, Bytes> pages_;
  int reads_ = 0;
};

TEST_F(DatabaseTest, FirstChangeSetIsASnapshotOfEverything) {
  for (std::uint32_t p = 1; p <= 5; ++p) fill(p, p);
  const auto made = commit({2}, 5);
  ASSERT_TRUE(made.has_value()) << made.error().to_string();
  ASSERT_TRUE(made->has_value());
  EXPECT_EQ((*made)->txid, Txid(1));
  EXPECT_EQ((*made)->checksum, model_checksum());
  EXPECT_EQ(pages_of(Txid(1)), (std::vector<std::uint32_t>{1, 2, 3, 4, 5}));
}

TEST_F(DatabaseTest, UnchangedPagesAreLeftOutAndNothingChangedMakesNothing) {
  for (std::uint32_t p = 1; p <= 5; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 5)->has_value());
  fill(3, 33);
  ASSERT_TRUE(commit({2, 3, 4}, 5)->has_value());
  EXPECT_EQ(pages_of(Txid(2)), (std::vector<std::uint32_t>{3}));
  EXPECT_EQ(database_->pos().checksum, model_checksum());
  const auto nothing = commit({1, 2, 3, 4, 5}, 5);
  ASSERT_TRUE(nothing.has_value());
  EXPECT_FALSE(nothing->has_value());
  EXPECT_EQ(database_->pos().txid, Txid(2));
}

TEST_F(DatabaseTest, GrowthIncludesPagesNobodyWrote) {
  for (std::uint32_t p = 1; p <= 9; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 4)->has_value());
  fill(9, 99);
  ASSERT_TRUE(commit({9}, 9)->has_value());
  EXPECT_EQ(pages_of(Txid(2)), (std::vector<std::uint32_t>{5, 6, 7, 8, 9}));
  EXPECT_EQ(database_->pos().checksum, model_checksum());
}

TEST_F(DatabaseTest, ShrinkingTakesChecksumsOut) {
  for (std::uint32_t p = 1; p <= 600; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 600)->has_value());
  fill(1, 1000);
  for (std::uint32_t p = 11; p <= 600; ++p) pages_.erase(p);
  ASSERT_TRUE(commit({1}, 10)->has_value());
  EXPECT_EQ(database_->pos().checksum, model_checksum());
  EXPECT_EQ(database_->page_count(), 10u);
}

TEST_F(DatabaseTest, PageSizeChangeReplacesEverything) {
  for (std::uint32_t p = 1; p <= 8; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 8)->has_value());
  pages_.clear();
  for (std::uint32_t p = 1; p <= 3; ++p) fill(p, p + 50, 4096);
  ASSERT_TRUE(commit({}, 3, 4096)->has_value());
  EXPECT_EQ(database_->pos().checksum, model_checksum());
  EXPECT_EQ(database_->page_size(), 4096u);
  fill(2, 777, 4096);
  ASSERT_TRUE(commit({2}, 3, 4096)->has_value());
  EXPECT_EQ(database_->pos().checksum, model_checksum());
}

// Otherwise a loss of power leaves a log that a replica cannot replay into its file: checksums without a checkpoint, and no change
// set that has every page.
TEST_F(DatabaseTest, AChangeOfThePageSizeIsInTheDurableLogBeforeTheChecksumsStartOver) {
  sluice::test::FaultFileSystem fs;
  const auto opened = Database::open(fs, "other.db", dir_ + "/other-log", dir_ + "/other-checksums", system_clock(), {});
  ASSERT_TRUE(opened.has_value());
  database_ = *opened;
  for (std::uint32_t p = 1; p <= 5; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 5)->has_value());
  ASSERT_FALSE(database_->maintain({}, Database::Checkpoint::now).has_error());
  for (std::uint32_t p = 1; p <= 2; ++p) fill(p, p, 4096);
  fs.fail(sluice::test::FileOp::sync, 1, EIO);
  EXPECT_TRUE(commit({}, 2, 4096).has_error());
  EXPECT_TRUE(database_->log().flush().has_error()) << "the first sync was not the log's";
  database_.reset();
}

TEST_F(DatabaseTest, WaitsWhileTheDiskIsFull) {
  EXPECT_EQ(database_->waiting(), "");
  database_->note_attempt(make_error(Errc::io, "something else"));
  EXPECT_EQ(database_->waiting(), "");
  database_->note_attempt(make_error(Errc::no_space, "no room"));
  EXPECT_EQ(database_->waiting(), "no room");
  database_->note_attempt(make_error(Errc::io, "something else"));
  EXPECT_EQ(database_->waiting(), "no room");
  database_->note_attempt({});
  EXPECT_EQ(database_->waiting(), "");
}

TEST_F(DatabaseTest, DeletionAndRecreationGoOnCounting) {
  fill(1, 1);
  fill(2, 2);
  ASSERT_TRUE(commit({}, 2)->has_value());
  pages_.clear();
  ASSERT_TRUE(commit({}, 0)->has_value());
  EXPECT_EQ(database_->pos(), (Pos{Txid(2), kEmptyChecksum}));
  EXPECT_TRUE(database_->deleted());
  fill(1, 5);
  ASSERT_TRUE(commit({1}, 1)->has_value());
  EXPECT_EQ(database_->pos(), (Pos{Txid(3), model_checksum()}));
}

TEST_F(DatabaseTest, TheLockPageIsNeverPartOfAChangeSet) {
  // With 65536-byte pages the lock page is 16385: a database just beyond it, with all pages but three known to be zero.
  const std::uint32_t size = 65536;
  const std::uint32_t lock = lock_page(size).value();
  Bytes zero(size);
  fill(1, 1, size);
  std::vector<Pgno> none;
  bool asked_for_lock_page = false;
  const auto read = [&](Pgno pgno) -> Result<ByteView> {
    if (pgno.value() == lock) asked_for_lock_page = true;
    if (pgno.value() == 1) return ByteView(pages_.at(1));
    return ByteView(zero);
  };
  const auto read_old = [](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "gone"); };
  {
    MutexLock guard(database_->commit_mutex());
    const auto made = database_->commit(CommitInput{size, lock + 2, none, read, read_old, {}}, Epoch(1), NodeId(7));
    ASSERT_TRUE(made.has_value()) << made.error().to_string();
  }
  EXPECT_FALSE(asked_for_lock_page);
  Checksum expected = kEmptyChecksum;
  for (std::uint32_t p = 1; p <= lock + 2; ++p) {
    if (p != lock) expected = ltx::toggle(expected, ltx::page_checksum(Pgno(p), p == 1 ? ByteView(pages_.at(1)) : ByteView(zero)));
  }
  EXPECT_EQ(database_->pos().checksum, expected);
}

TEST_F(DatabaseTest, OpeningAgainGivesTheSamePositionAndChecksums) {
  std::mt19937 random(4);
  for (std::uint32_t p = 1; p <= 50; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 50)->has_value());
  for (unsigned i = 0; i < 100; ++i) {
    const auto p = static_cast<std::uint32_t>(1 + random() % 50);
    fill(p, 1000 + i);
    ASSERT_TRUE(commit({p}, 50)->has_value());
    if (i == 40) { ASSERT_FALSE(database_->maintain({}, Database::Checkpoint::now).has_error()); }
  }
  const Pos before = database_->pos();
  // The side file as a crash could leave it: entries changed after the checkpoint are old or lost.
  open();
  EXPECT_EQ(database_->pos(), before);
  MutexLock lock(database_->commit_mutex());
  for (const auto& [pgno, page] : pages_) {
    EXPECT_EQ(database_->checksums().get(Pgno(pgno)), ltx::page_checksum(Pgno(pgno), page)) << pgno;
  }
}

// I2: maintenance knows nothing of the WAL that holds what was captured.
TEST_F(DatabaseTest, MaintenanceReleasesNothing) {
  for (std::uint32_t p = 1; p <= 6; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 6)->has_value());
  ASSERT_FALSE(database_->sync().has_error());
  fill(2, 22);
  ASSERT_TRUE(commit({2}, 6)->has_value());
  fill(3, 33);
  ASSERT_TRUE(commit({3}, 6)->has_value());
  for (const auto checkpoint : {Database::Checkpoint::none, Database::Checkpoint::now}) {
    ASSERT_FALSE(database_->maintain({}, checkpoint).has_error());
    EXPECT_EQ(database_->log().durable(), Txid(1));
    EXPECT_EQ(database_->log().synced(), Txid(1)) << "somebody still has to sync the WAL";
  }
  ASSERT_FALSE(database_->sync(Txid(2)).has_error());
  EXPECT_EQ(database_->log().durable(), Txid(2));
  ASSERT_FALSE(database_->sync().has_error());
  EXPECT_EQ(database_->log().durable(), Txid(3));
}

TEST_F(DatabaseTest, LostSideFileFillsAgainFromOldContent) {
  for (std::uint32_t p = 1; p <= 6; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 6)->has_value());
  ASSERT_FALSE(database_->maintain({}, Database::Checkpoint::now).has_error());
  const auto old_pages = pages_;
  database_.reset();
  // A header that is damaged, not a file that is missing: the caller must notice.
  std::filesystem::resize_file(dir_ + "/checksums", 10);
  open();
  fill(4, 44);
  std::vector<Pgno> changed{Pgno(4)};
  const auto read = [this](Pgno pgno) -> Result<ByteView> { return ByteView(pages_.at(pgno.value())); };
  const auto read_old = [&](Pgno pgno) -> Result<ByteView> { return ByteView(old_pages.at(pgno.value())); };
  {
    MutexLock lock(database_->commit_mutex());
    const auto made = database_->commit(CommitInput{kPageSize, 6, changed, read, read_old, {}}, Epoch(1), NodeId(7));
    ASSERT_TRUE(made.has_value()) << made.error().to_string();
  }
  EXPECT_EQ(database_->pos().checksum, model_checksum());
}

TEST_F(DatabaseTest, FailedReadLeavesPositionAndLogAsTheyWere) {
  for (std::uint32_t p = 1; p <= 5; ++p) fill(p, p);
  ASSERT_TRUE(commit({}, 5)->has_value());
  const Pos before = database_->pos();
  fill(2, 22);
  fill(4, 44);
  std::vector<Pgno> changed{Pgno(2), Pgno(4)};
  const auto read = [this](Pgno pgno) -> Result<ByteView> {
    if (pgno == Pgno(4)) return make_error(Errc::io, "injected");
    return ByteView(pages_.at(pgno.value()));
  };
  const auto read_old = [](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "gone"); };
  {
    MutexLock lock(database_->commit_mutex());
    const auto made = database_->commit(CommitInput{kPageSize, 5, changed, read, read_old, {}}, Epoch(1), NodeId(7));
    ASSERT_TRUE(made.has_error());
    EXPECT_EQ(made.error().code, Errc::io);
  }
  EXPECT_EQ(database_->pos(), before);
  ASSERT_TRUE(commit({2, 4}, 5)->has_value());
  EXPECT_EQ(database_->pos(), (Pos{Txid(2), model_checksum()}));
  open();
  EXPECT_EQ(database_->pos(), (Pos{Txid(2), model_checksum()}));
}

}  // namespace
}  // namespace sluice::storage
