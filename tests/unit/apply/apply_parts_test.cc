// The parts on their own: wal-index lookups, image files, the idle timer.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <map>
#include <random>

#include "storage/apply/helper_index.h"
#include "storage/apply/idle_timer.h"
#include "storage/apply/image_file.h"
#include "storage/apply/snapshot_files.h"
#include "storage/apply/wal_index_map.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/apply/support.h"

namespace sluice::storage::apply_test {
namespace {

/// Has not got round to closing anything yet.
class SlowDescriptorStore final : public DescriptorStore {
 public:
  bool has(const std::string&) const override { return false; }
  UniqueFd take(const std::string&) override { return {}; }
  Result<void> keep(const std::string&, int fd) override {
    copies.emplace_back(::fcntl(fd, F_DUPFD_CLOEXEC, 0));
    return {};
  }
  void drop(const std::string&) override {}
  std::vector<UniqueFd> copies;
};

TEST(LiveFiles, GivesLocksBackThoughSomebodyKeepsTheDescriptors) {
  TempDir dir;
  Connection(dir.path() + "/app.db").exec("PRAGMA journal_mode=WAL; CREATE TABLE t(a)");
  PlainDirAccess access(dir.path());
  SlowDescriptorStore store;
  access.kept = &store;
  Connection client(dir.path() + "/app.db");
  client.exec("PRAGMA busy_timeout=0");
  {
    auto files = apply::LiveFiles::open(access, "app.db");
    ASSERT_TRUE(files.has_value());
    ASSERT_TRUE((*files)->lock_shared(1000).has_value());
    ASSERT_TRUE((*files)->open_wal(4096, 1000).has_value());
    ASSERT_TRUE((*files)->lock(sqlite::ShmLock::write, 1, 1000).has_value());
    ASSERT_TRUE((*files)->lock_exclusive(1000).has_value());
    EXPECT_EQ(client.try_exec("SELECT * FROM t"), SQLITE_BUSY);
  }
  ASSERT_EQ(store.copies.size(), 2u);
  EXPECT_EQ(client.try_exec("INSERT INTO t VALUES(1)"), SQLITE_OK);
}

TEST(WalIndexMap, FindsTheLastFrameOfEveryPageUpToMxFrame) {
  TempDir dir;
  Connection(dir.path() + "/app.db").exec("CREATE TABLE t(a)");
  PlainDirAccess access(dir.path());
  auto files = apply::LiveFiles::open(access, "app.db");
  ASSERT_TRUE(files.has_value());
  ASSERT_TRUE((*files)->lock_shared(1000).has_value());
  ASSERT_TRUE((*files)->open_wal(4096, 1000).has_value());
  apply::WalIndexMap index(**files);
  constexpr std::uint32_t kFrames = 20'000;  // several blocks
  ASSERT_TRUE(index.reserve(kFrames).has_value());
  std::mt19937 generator(1);
  const auto random = [&generator] { return static_cast<std::uint32_t>(generator()); };
  std::vector<std::uint32_t> pages(kFrames);
  for (auto& page : pages) page = 1 + random() % 3000;
  std::uint32_t frame = 1;
  while (frame <= kFrames) {
    const std::uint32_t n = std::min<std::uint32_t>(1 + random() % 700, kFrames - frame + 1);
    const std::vector<std::uint32_t> batch(pages.begin() + frame - 1, pages.begin() + frame - 1 + n);
    if (random() % 3 == 0) {
      // An append that was never published is forgotten by the next one.
      const std::vector<std::uint32_t> never(std::min<std::uint32_t>(50, kFrames - frame + 1), 5000);
      ASSERT_TRUE(index.append(frame, never).has_value());
    }
    ASSERT_TRUE(index.append(frame, batch).has_value());
    frame += n;
  }
  for (const std::uint32_t mx : {0u, 1u, 4062u, 4063u, 8158u, 8159u, 15'000u, kFrames}) {
    std::map<std::uint32_t, std::uint32_t> last;
    for (std::uint32_t f = 1; f <= mx; ++f) last[pages[f - 1]] = f;
    for (std::uint32_t page = 1; page <= 3001; ++page) {
      ASSERT_EQ(index.find(Pgno(page), mx), last.contains(page) ? last[page] : 0) << page << " up to " << mx;
    }
  }
  for (std::uint32_t f = 1; f <= kFrames; ++f) ASSERT_EQ(index.page_of(f), pages[f - 1]);
}

// The helper process, and a second look at the file through a mapping of our own.
class IndexHelperTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Connection(dir_.path() + "/app.db").exec("CREATE TABLE t(a)");
    auto opened = apply::LiveFiles::open(access_, "app.db");
    ASSERT_TRUE(opened.has_value());
    files_ = std::move(*opened);
    ASSERT_TRUE(files_->lock_shared(1000).has_value());
    ASSERT_TRUE(files_->open_wal(4096, 1000).has_value());
    index_ = std::make_unique<apply::HelperIndex>(*files_, helper_);
    ASSERT_TRUE(index_->reserve(kFrames).has_value());
    mapped_ = std::make_unique<apply::WalIndexMap>(*files_);
    ASSERT_TRUE(mapped_->reserve(kFrames).has_value());
  }
  sqlite::WalIndexHeader header(std::uint32_t frames) const {
    sqlite::WalIndexHeader h;
    h.mx_frame = frames;
    h.page_count = 7;
    return h;
  }
  void expect_header(std::uint32_t frames) {
    sqlite::WalIndexHeader seen;
    for (apply::LiveIndex* index : {static_cast<apply::LiveIndex*>(index_.get()), static_cast<apply::LiveIndex*>(mapped_.get())}) {
      const auto state = index->read_header(seen);
      ASSERT_TRUE(state.has_value()) << state.error().message;
      EXPECT_EQ(*state, sqlite::HeaderState::valid);
      EXPECT_EQ(seen.mx_frame, frames);
    }
  }

  static constexpr std::uint32_t kFrames = 20'000;  // several blocks, and several messages
  TempDir dir_;
  PlainDirAccess access_{dir_.path()};
  std::unique_ptr<apply::LiveFiles> files_;
  apply::IndexHelper helper_{start_index_helper};
  std::unique_ptr<apply::HelperIndex> index_;
  std::unique_ptr<apply::WalIndexMap> mapped_;
};

TEST_F(IndexHelperTest, StoresWhatAMappingSees) {
  std::vector<std::uint32_t> pages(kFrames);
  for (std::uint32_t i = 0; i < kFrames; ++i) pages[i] = 1 + i % 3000;
  const apply::IndexStore stores[] = {{apply::IndexWord::backfilled, 5}, {apply::IndexWord::read_mark3, 77},
                                      {apply::IndexWord::backfill_attempted, 6}};
  const auto published = index_->publish(1, pages, header(kFrames), stores);
  ASSERT_FALSE(published.has_error()) << published.error().message;
  expect_header(kFrames);
  for (std::uint32_t f = 1; f <= kFrames; ++f) {
    ASSERT_EQ(mapped_->page_of(f), pages[f - 1]) << f;
    ASSERT_EQ(index_->page_of(f), pages[f - 1]) << f;
  }
  for (std::uint32_t page = 1; page <= 3000; ++page) ASSERT_EQ(index_->find(Pgno(page), kFrames), mapped_->find(Pgno(page), kFrames));
  for (const apply::LiveIndex* index : {static_cast<apply::LiveIndex*>(index_.get()), static_cast<apply::LiveIndex*>(mapped_.get())}) {
    const auto info = index->checkpoint_info();
    ASSERT_TRUE(info.has_value());
    EXPECT_EQ(info->backfilled, 5u);
    EXPECT_EQ(info->read_marks[3], 77u);
    EXPECT_EQ(info->backfill_attempted, 6u);
  }
  ASSERT_FALSE(index_->erase_header().has_error());
  sqlite::WalIndexHeader none;
  EXPECT_EQ(mapped_->read_header(none).value(), sqlite::HeaderState::invalid);
}

TEST_F(IndexHelperTest, AnotherOneGoesOnWhereItDied) {
  const std::vector<std::uint32_t> pages = {3, 4, 5};
  ASSERT_FALSE(index_->publish(1, pages, header(3), {}).has_error());
  const int first = helper_.pid();
  ASSERT_EQ(::kill(first, SIGKILL), 0);
  ASSERT_FALSE(index_->publish(4, pages, header(6), {}).has_error());
  EXPECT_NE(helper_.pid(), first);
  expect_header(6);
  EXPECT_EQ(mapped_->find(Pgno(4), 6), 5u);
}

TEST_F(IndexHelperTest, EndsWithTheNode) {
  const int pid = helper_.pid();
  ASSERT_GT(pid, 0);
  index_.reset();
  files_.reset();
  { apply::IndexHelper gone(start_index_helper); }  // never needed, never started
  EXPECT_EQ(helper_.pid(), pid);
  auto process = start_index_helper();
  ASSERT_TRUE(process.has_value());
  process->socket.reset();
  int status = -1;
  ASSERT_EQ(::waitpid(process->pid, &status, 0), process->pid);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// A checkpoint that removes an installed snapshot's files runs beside the thread that begins the next one, with the same number.
TEST(SnapshotFiles, WhatWasRemovedDoesNotTakeItsSuccessorAlong) {
  const sluice::test::TempDir dir;
  const std::string install = dir.path() + "/install";
  const auto begin = [&] { return apply::SnapshotFiles::create(real_file_system(), install, "app.db", 512); };
  auto first = begin();
  ASSERT_FALSE(first.has_error());
  ASSERT_FALSE((*first)->add(Pgno(1), Bytes(512)).has_error());
  SnapshotEnd end;
  end.page_size = 512;
  end.commit = 1;
  end.pos.txid = Txid(1);
  ASSERT_FALSE((*first)->mark(end).has_error());
  ASSERT_FALSE((*first)->remove().has_error());
  auto second = begin();
  ASSERT_FALSE(second.has_error());
  ASSERT_FALSE((*second)->add(Pgno(1), Bytes(512)).has_error());
  first->reset();
  ASSERT_FALSE((*second)->mark(end).has_error());
  EXPECT_EQ(::access((*second)->image().path().c_str(), F_OK), 0) << "the marker's image is missing";
}

TEST(ImageFile, GathersRunsAndKeepsTheLastVersion) {
  TempDir dir;
  auto image = apply::ImageFile::create(real_file_system(), dir.path() + "/image", 512);
  ASSERT_TRUE(image.has_value());
  std::mt19937 generator(2);
  const auto random = [&generator] { return static_cast<std::uint32_t>(generator()); };
  Bytes expected(512 * 64);
  for (int i = 0; i < 500; ++i) {
    const std::uint32_t p = 1 + random() % 64;
    Bytes page(512, static_cast<std::byte>(random()));
    std::ranges::copy(page, expected.begin() + (p - 1) * 512);
    ASSERT_TRUE(image->write(Pgno(p), page).has_value());
  }
  ASSERT_TRUE(image->finish(64).has_value());
  EXPECT_EQ(file_content(dir.path() + "/image"), expected);
  Bytes part(512 * 3);
  ASSERT_TRUE(image->read(Pgno(10), part).has_value());
  EXPECT_TRUE(std::ranges::equal(part, ByteView(expected).subspan(512 * 9, 512 * 3)));
}

TEST(IdleTimer, CallsOnceAfterTheLastTouch) {
  std::atomic<int> calls{0};
  apply::IdleTimer timer(30, [&](const std::string& name) {
    EXPECT_EQ(name, "app.db");
    ++calls;
  });
  for (int i = 0; i < 100; ++i) timer.touch("app.db");
  EXPECT_TRUE(eventually([&] { return calls == 1; }));
  timer.touch("app.db");
  EXPECT_TRUE(eventually([&] { return calls == 2; }));
  timer.stop();
  timer.touch("app.db");
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace sluice::storage::apply_test
