// The steps of the fence on a plain directory. Descriptors of this process play the orphans: to the kernel an open file is an
// open file. Their locks cannot be played here; tests/counter_examples O-… have real ones.
#include "fuse/orphans/orphan_fence.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "storage/sqlite/wal_copy.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/sqlite/builders.h"

namespace sluice::fuse {
namespace {

using sluice::test::FaultFileSystem;
using sluice::test::TempDir;
using sluice::test::WalBuilder;

constexpr std::uint32_t kPage = 512;
constexpr std::uint32_t kCommitted = 3;
constexpr int kEnding_ms = 10;

ino_t inode(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}

class OrphanFenceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (can_be_immutable(dir_.path()).has_error()) GTEST_FAIL() << "these tests need a file system with immutable files";
    (void)open_store();
  }
  void TearDown() override {
    orphans_.clear();
    if (store_ == nullptr) (void)open_store();
    OrphanFence(*store_).sweep();
    // What a failed test left must not survive its directory's removal.
    const auto entries = real_file_system().list(OrphanFence::directory(*store_));
    for (const DirEntry& e : entries.has_value() ? *entries : std::vector<DirEntry>())
      (void)set_immutable(OrphanFence::directory(*store_) + "/" + e.name + "/wal", false);
  }

  storage::Store& open_store() {
    store_.reset();
    storage::StoreOptions options;
    options.data_dir = dir_.file("data");
    auto store = storage::Store::open(fs_, system_clock(), options);
    EXPECT_TRUE(store.has_value()) << store.error().message;
    store_ = std::move(*store);
    return *store_;
  }

  std::string path(const std::string& name) const { return dir_.file("data") + "/fs/" + name; }

  void put(const std::string& file, ByteView content) {
    auto opened = real_file_system().open(file, {.write = true, .create = true});
    ASSERT_TRUE(opened.has_value());
    ASSERT_TRUE((*opened)->write_at(0, content).has_value());
  }
  /// A database whose WAL has kCommitted frames, and whose wal-index knows of `published` of them.
  void make_database(const std::string& name, std::uint32_t published) {
    WalBuilder wal(kPage, false);
    for (std::uint32_t n = 1; n <= kCommitted; ++n) wal.frame(1, 1);
    wal.frame(1, 0);
    wal_ = wal.bytes;
    committed_ = Bytes(wal.bytes.begin(), wal.bytes.begin() + static_cast<std::ptrdiff_t>(wal.at(kCommitted + 1)));
    put(path(name), as_bytes(std::string("SQLite format 3\0", 16)));
    put(path(name) + "-wal", wal.bytes);
    Bytes index(sqlite::kWalIndexBlockSize);
    sqlite::WalIndexHeader header;
    const auto last = sqlite::parse_frame_header(ByteView(wal.bytes).subspan(wal.at(published), sqlite::kWalFrameHeaderSize));
    header.mx_frame = published;
    header.frame_checksum = last.checksum;
    header.salts = last.salts;
    sqlite::publish_header(index.data(), header);
    put(path(name) + "-shm", index);
  }
  /// An orphan with the database's -wal and -shm open.
  void hold(const std::string& name) {
    for (const char* suffix : {"-wal", "-shm"}) {
      orphans_.emplace_back(::open((path(name) + suffix).c_str(), O_RDWR | O_CLOEXEC));
      ASSERT_TRUE(orphans_.back()) << name << suffix;
    }
  }
  int wal_fd() const { return orphans_[0].get(); }
  int shm_fd() const { return orphans_[1].get(); }

  bool poisoned() {
    Bytes bytes(sqlite::kWalIndexHeaderSize);
    EXPECT_EQ(::pread(shm_fd(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
    sqlite::WalIndexHeader header;
    return sqlite::read_header(bytes.data(), header) == sqlite::HeaderState::valid && header.version == sqlite::kPoisonedVersion;
  }
  bool can_write_wal() {
    const char byte = 1;
    return ::pwrite(wal_fd(), &byte, 1, static_cast<off_t>(wal_.size())) == 1;
  }
  Bytes content(const std::string& file) {
    const auto bytes = read_file(real_file_system(), file, 1 << 20);
    return bytes.has_value() ? *bytes : Bytes();
  }
  std::uint32_t find_committed_frames() {
    const auto wal = real_file_system().open(path("a.db-wal"), {});
    return wal.has_value() ? sqlite::find_committed(**wal, nullptr)->complete : 0;
  }
  std::size_t fenced_count() {
    const auto entries = real_file_system().list(OrphanFence::directory(*store_));
    return entries.has_value() ? entries->size() : 0;
  }

  void expect_fenced(const std::string& name) {
    EXPECT_EQ(content(path(name) + "-wal"), committed_);
    EXPECT_NE(inode(path(name) + "-wal"), 0u);
    struct stat st {};
    ASSERT_EQ(::fstat(wal_fd(), &st), 0);
    EXPECT_NE(inode(path(name) + "-wal"), st.st_ino) << "the database still has the orphan's WAL";
    EXPECT_EQ(inode(path(name) + "-shm"), 0u) << "the database still has the orphan's wal-index";
    EXPECT_TRUE(poisoned());
    EXPECT_FALSE(can_write_wal());
  }

  const TempDir dir_;
  FaultFileSystem fs_;
  std::unique_ptr<storage::Store> store_;
  std::vector<UniqueFd> orphans_;
  Bytes wal_;
  Bytes committed_;
};

TEST_F(OrphanFenceTest, NobodyThere) {
  make_database("a.db", kCommitted);
  const ino_t wal = inode(path("a.db-wal"));
  OrphanFence fence(*store_, kEnding_ms);
  ASSERT_TRUE(fence.run().has_value());
  EXPECT_TRUE(fence.refused().empty());
  EXPECT_EQ(inode(path("a.db-wal")), wal);
  EXPECT_EQ(content(path("a.db-wal")), wal_);
  EXPECT_NE(inode(path("a.db-shm")), 0u);
  EXPECT_EQ(fenced_count(), 0u);
}

TEST_F(OrphanFenceTest, FencesAndForgetsWhenTheOrphanHasEnded) {
  make_database("a.db", kCommitted);
  ASSERT_EQ(::chmod(path("a.db-wal").c_str(), 0640), 0);
  hold("a.db");
  OrphanFence fence(*store_, kEnding_ms);
  ASSERT_TRUE(fence.run().has_value());
  EXPECT_TRUE(fence.refused().empty());
  expect_fenced("a.db");
  EXPECT_EQ(fence.orphans().count("a.db"), 1u);
  struct stat st {};
  ASSERT_EQ(::stat(path("a.db-wal").c_str(), &st), 0);
  EXPECT_EQ(st.st_mode & 07777, 0640u);
  fence.sweep();
  EXPECT_EQ(fenced_count(), 1u) << "the orphan still lives";
  orphans_.clear();
  fence.sweep();
  EXPECT_EQ(fenced_count(), 0u);
  EXPECT_TRUE(fence.orphans().empty());
  EXPECT_EQ(content(path("a.db-wal")), committed_);
}

TEST_F(OrphanFenceTest, OthersAreNotTouched) {
  make_database("a.db", kCommitted);
  ASSERT_TRUE(real_file_system().make_directories(path("tenants")).has_value());
  make_database("tenants/b.db", kCommitted);
  const ino_t other = inode(path("a.db-wal"));
  hold("tenants/b.db");
  OrphanFence fence(*store_, kEnding_ms);
  ASSERT_TRUE(fence.run().has_value());
  expect_fenced("tenants/b.db");
  EXPECT_EQ(inode(path("a.db-wal")), other);
}

TEST_F(OrphanFenceTest, APoisonThatAnOrphanRemovedComesBack) {
  make_database("a.db", kCommitted);
  hold("a.db");
  OrphanFence fence(*store_, kEnding_ms);
  ASSERT_TRUE(fence.run().has_value());
  Bytes index(sqlite::kWalIndexHeaderSize);
  sqlite::publish_header(index.data(), {});
  ASSERT_EQ(::pwrite(shm_fd(), index.data(), 96, 0), 96);
  ASSERT_FALSE(poisoned());
  fence.sweep();
  EXPECT_TRUE(poisoned());
}

TEST_F(OrphanFenceTest, AProcessInTheDataDirectoryItselfIsRefused) {
  make_database("a.db", kCommitted);
  hold("a.db");
  const UniqueFd direct(::open(path("a.db").c_str(), O_RDWR | O_CLOEXEC));
  OrphanFence fence(*store_, kEnding_ms);
  ASSERT_TRUE(fence.run().has_value());
  ASSERT_EQ(fence.refused().count("a.db"), 1u);
  EXPECT_EQ(fence.refused().at("a.db").code, Errc::in_use);
  EXPECT_TRUE(can_write_wal()) << "it was fenced although it writes the database file, too";
  EXPECT_FALSE(poisoned());
}

// Dies at every operation that changes something; the next start must find its way from there, with the orphan alive or dead.
TEST_F(OrphanFenceTest, EveryPrefixIsRepairedByTheNextStart) {
  for (const bool orphan_dies : {false, true}) {
    bool finished = false;
    int steps = 0;
    for (int step = 1; !finished; ++step) {
      SCOPED_TRACE(fmt::format("step {}, orphan {}", step, orphan_dies ? "dies" : "lives"));
      ASSERT_LT(step, 100);
      steps = step;
      make_database("a.db", kCommitted);
      hold("a.db");
      open_store();
      {
        fs_.fail_changes_from(step);
        OrphanFence fence(*store_, kEnding_ms);
        const auto ran = fence.run();
        fs_.heal();
        finished = ran.has_value() && fence.refused().empty();
      }
      // Whoever looks into the directory now finds the committed frames.
      const Bytes now = content(path("a.db-wal"));
      ASSERT_GE(now.size(), committed_.size());
      EXPECT_TRUE(std::equal(committed_.begin(), committed_.end(), now.begin()));
      std::vector<UniqueFd> dead;
      if (orphan_dies) dead = std::exchange(orphans_, {});
      dead.clear();
      open_store();
      OrphanFence fence(*store_, kEnding_ms);
      const auto again = fence.run();
      ASSERT_TRUE(again.has_value());
      EXPECT_TRUE(fence.refused().empty());
      if (!orphan_dies) expect_fenced("a.db");
      EXPECT_EQ(find_committed_frames(), kCommitted);
      orphans_.clear();
      fence.sweep();
      EXPECT_EQ(fenced_count(), 0u);
      // What is left can be changed and removed again.
      for (const char* suffix : {"", "-wal", "-shm"}) {
        const Result<void> removed = real_file_system().unlink(path("a.db") + suffix);
        EXPECT_TRUE(removed.has_value() || removed.error().code == Errc::not_found) << suffix << removed.error().message;
      }
    }
    EXPECT_GT(steps, 8);
  }
}

}  // namespace
}  // namespace sluice::fuse
