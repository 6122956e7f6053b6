// The steps of the fence on a plain directory. Descriptors of this process play the orphans: to the kernel an open file is an
// open file. Their locks cannot be played here; tests/counter_examples O-… have real ones.
#include "fuse/orphans/orphan_fence.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>

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

/// This thread does without a capability for a while.
class WithoutCapability {
 public:
  explicit WithoutCapability(unsigned number) {
    EXPECT_EQ(::syscall(SYS_capget, &header_, before_.data()), 0);
    auto now = before_;
    now[number / 32].effective &= ~(1u << (number % 32));
    EXPECT_EQ(::syscall(SYS_capset, &header_, now.data()), 0);
  }
  ~WithoutCapability() { EXPECT_EQ(::syscall(SYS_capset, &header_, before_.data()), 0); }

 private:
  __user_cap_header_struct header_{_LINUX_CAPABILITY_VERSION_3, 0};
  std::array<__user_cap_data_struct, 2> before_{};
};

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

// A container has no CAP_LEASE, and clients of any user make files.
TEST_F(OrphanFenceTest, FilesOfOthersAreHeldToo) {
  make_database("a.db", kCommitted);
  constexpr uid_t kOther = 12345;
  ASSERT_EQ(::chown(path("a.db-wal").c_str(), kOther, kOther), 0);
  const WithoutCapability none(CAP_LEASE);
  EXPECT_FALSE(is_held(path("a.db-wal")));
  hold("a.db");
  EXPECT_TRUE(is_held(path("a.db-wal")));
  // The thread has its rights back.
  EXPECT_EQ(::access(path("a.db-wal").c_str(), W_OK), 0);
  EXPECT_TRUE(UniqueFd(::open(path("a.db-wal").c_str(), O_RDWR | O_CLOEXEC)));
}

// The kernel tells the holder of a lease by a signal that somebody wants the file.
TEST_F(OrphanFenceTest, WhoOpensAFileWhileItIsLookedAtEndsNobody) {
  make_database("a.db", kCommitted);
  const std::string file = path("a.db-wal");
  const pid_t other = ::fork();
  ASSERT_GE(other, 0);
  if (other == 0) {
    ::alarm(60);
    for (;;) ::close(::open(file.c_str(), O_RDWR | O_CLOEXEC));
  }
  // Until it was in the way often enough.
  const MonotonicTime deadline = system_clock().now() + std::chrono::seconds(20);
  for (int met = 0; met < 2000 && system_clock().now() < deadline;) met += is_held(file) ? 1 : 0;
  ::kill(other, SIGKILL);
  ::waitpid(other, nullptr, 0);
  EXPECT_FALSE(is_held(file));
}

// Orphans and clients look the same to the process that takes a mount over.
TEST_F(OrphanFenceTest, WhatWasRefusedStaysSoForWhoTakesTheMountOver) {
  make_database("a.db", kCommitted);
  make_database("b.db", kCommitted);
  hold("a.db");
  UniqueFd direct(::open(path("a.db").c_str(), O_RDWR | O_CLOEXEC));
  OrphanFence fence(*store_, kEnding_ms);
  ASSERT_TRUE(fence.run().has_value());
  {
    OrphanFence next(*store_, kEnding_ms);
    ASSERT_TRUE(next.resume().has_value());
    ASSERT_EQ(next.refused().size(), 1u);
    EXPECT_EQ(next.refused().at("a.db").message, fence.refused().at("a.db").message);
  }
  direct.reset();
  orphans_.clear();
  ASSERT_TRUE(OrphanFence(*store_, kEnding_ms).run().has_value());
  OrphanFence next(*store_, kEnding_ms);
  ASSERT_TRUE(next.resume().has_value());
  EXPECT_TRUE(next.refused().empty());
  EXPECT_EQ(fenced_count(), 0u);
}

// An earlier start began to fence, this one cannot stop anybody: it must not take the WAL away from who still writes it.
TEST_F(OrphanFenceTest, AFenceThatCannotBeGoneOnWithRefuses) {
  for (const int step : {2, 4, 7}) {
    SCOPED_TRACE(step);
    make_database("a.db", kCommitted);
    hold("a.db");
    fs_.fail_changes_from(step);
    (void)OrphanFence(*store_, kEnding_ms).run();
    fs_.heal();
    {
      const WithoutCapability none(CAP_LINUX_IMMUTABLE);
      OrphanFence fence(*store_, kEnding_ms);
      ASSERT_TRUE(fence.run().has_value());
      ASSERT_EQ(fence.refused().count("a.db"), 1u);
      EXPECT_NE(fence.refused().at("a.db").message.find("CAP_LINUX_IMMUTABLE"), std::string::npos)
          << fence.refused().at("a.db").message;
    }
    OrphanFence fence(*store_, kEnding_ms);
    ASSERT_TRUE(fence.run().has_value());
    EXPECT_TRUE(fence.refused().empty());
    expect_fenced("a.db");
    orphans_.clear();
    fence.sweep();
    EXPECT_EQ(fenced_count(), 0u);
  }
}

// The WAL can only be replaced while it is not immutable: a transaction that was open may end just then, also if we die there.
TEST_F(OrphanFenceTest, ACommitWhileTheWalIsReplacedCounts) {
  for (const bool dies : {false, true}) {
    SCOPED_TRACE(dies);
    make_database("a.db", kCommitted);
    hold("a.db");
    WalBuilder wal(kPage, false);
    for (std::uint32_t n = 1; n <= kCommitted + 1; ++n) wal.frame(1, 1);
    const std::size_t at = wal.at(kCommitted + 1);
    const std::string copy = store_->tmp_dir() + "/fence-a.db";
    bool committed = false;
    fs_.on_change([&] {
      if (committed || inode(copy) == 0) return;
      committed = ::pwrite(wal_fd(), &wal.bytes[at], wal.bytes.size() - at, static_cast<off_t>(at)) > 0;
      if (committed && dies) fs_.fail_changes_from(2);
    });
    OrphanFence fence(*store_, kEnding_ms);
    ASSERT_TRUE(fence.run().has_value() || dies);
    fs_.on_change(nullptr);
    fs_.heal();
    ASSERT_TRUE(committed);
    if (dies) {
      EXPECT_EQ(find_committed_frames(), kCommitted) << "it did not die where it should";
      ASSERT_TRUE(OrphanFence(*store_, kEnding_ms).run().has_value());
    }
    EXPECT_EQ(content(path("a.db-wal")), wal.bytes);
    EXPECT_FALSE(can_write_wal());
    orphans_.clear();
    OrphanFence(*store_, kEnding_ms).sweep();
  }
}

// Between two starts somebody used the database in DATA/fs, and emptied its new WAL: the old one's frames are older than that.
TEST_F(OrphanFenceTest, AWalThatWasEmptiedSinceStaysEmpty) {
  int emptied = 0;
  bool finished = false;
  for (int step = 1; !finished; ++step) {
    SCOPED_TRACE(step);
    ASSERT_LT(step, 100);
    make_database("a.db", kCommitted);
    hold("a.db");
    const ino_t old = inode(path("a.db-wal"));
    fs_.fail_changes_from(step);
    OrphanFence fence(*store_, kEnding_ms);
    const auto ran = fence.run();
    fs_.heal();
    finished = ran.has_value() && fence.refused().empty();
    const bool replaced = inode(path("a.db-wal")) != old;
    if (replaced && !finished) {
      ASSERT_EQ(::truncate(path("a.db-wal").c_str(), 0), 0);
      ++emptied;
    }
    OrphanFence again(*store_, kEnding_ms);
    ASSERT_TRUE(again.run().has_value());
    EXPECT_TRUE(again.refused().empty());
    if (replaced && !finished) {
      EXPECT_EQ(content(path("a.db-wal")).size(), 0u);
    }
    orphans_.clear();
    again.sweep();
    EXPECT_EQ(fenced_count(), 0u);
    for (const char* suffix : {"", "-wal", "-shm"}) (void)real_file_system().unlink(path("a.db") + suffix);
  }
  EXPECT_GT(emptied, 0);
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
