// copy_database while the database changes under it.
#include "storage/snapshot.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <set>

#include "storage/ltx/checksum.h"
#include "tests/unit/storage/log_support.h"

namespace sluice::storage::test {
namespace {

using Pages = std::map<std::uint32_t, Bytes>;

/// A database whose content is in memory: commits through Database::commit, reads through PageSource.
class MemoryDatabase : public PageSource {
 public:
  explicit MemoryDatabase(const TempDir& temp) : temp_(temp) {
    auto opened = Database::open(fs_, "app.db", temp.file("log"), temp.file("sums"), system_clock(), {});
    EXPECT_TRUE(opened.has_value()) << opened.error().to_string();
    database = *opened;
    MutexLock lock(database->commit_mutex());
    database->set_page_source(this);
  }
  ~MemoryDatabase() override {
    MutexLock lock(database->commit_mutex());
    database->set_page_source(nullptr);
  }

  /// One transaction: new content for `changed`, then `commit` pages.
  void commit(std::uint32_t commit, std::vector<std::uint32_t> changed) {
    MutexLock lock(database->commit_mutex());
    const Pages before = pages;
    for (std::uint32_t p = static_cast<std::uint32_t>(pages.size()) + 1; p <= commit; ++p)
      changed.push_back(p);
    ++version_;
    for (const std::uint32_t p : changed) {
      if (p <= commit) pages[p] = content(p);
    }
    pages.erase(pages.upper_bound(commit), pages.end());
    std::sort(changed.begin(), changed.end());
    changed.erase(std::unique(changed.begin(), changed.end()), changed.end());
    std::vector<Pgno> pgnos;
    for (const std::uint32_t p : changed) pgnos.emplace_back(p);
    const auto read = [&](Pgno pgno) -> Result<ByteView> { return ByteView(pages.at(pgno.value())); };
    const auto read_old = [&](Pgno pgno) -> Result<ByteView> { return ByteView(before.at(pgno.value())); };
    const CommitInput input{page_size, commit, pgnos, read, read_old, {}};
    const auto done = database->commit(input, Epoch(1), NodeId(7));
    ASSERT_TRUE(done.has_value()) << done.error().to_string();
  }
  void change_page_size(std::uint32_t size, std::uint32_t commit_pages) {
    {
      MutexLock lock(database->commit_mutex());
      pages.clear();
      page_size = size;
    }
    commit(commit_pages, {});
  }

  Result<void> read_page(Pgno pgno, ByteSpan out) override {
    ++reads;
    if (busy.contains(pgno.value())) return make_error(Errc::busy, "held");
    const Bytes& page = pages.at(pgno.value());
    std::copy(page.begin(), page.end(), out.begin());
    return {};
  }

  std::shared_ptr<Database> database;
  std::uint32_t page_size = 512;
  Pages pages;
  std::set<std::uint32_t> busy;
  int reads = 0;

 private:
  Bytes content(std::uint32_t pgno) const {
    Bytes page(page_size, static_cast<std::byte>(version_));
    store_be<std::uint32_t>(page.data(), pgno);
    store_be<std::uint64_t>(page.data() + 8, version_);
    return page;
  }
  const TempDir& temp_;
  FaultFileSystem fs_;
  std::uint64_t version_ = 0;
};

/// Keeps what a replica would, and lets the test act in the middle.
class CollectingSink : public SnapshotSink {
 public:
  void differing(std::uint32_t count) override { expected = count; }
  Result<void> begin(std::uint32_t size, std::uint32_t) override {
    ++begins;
    page_size = size;
    pages.clear();
    return {};
  }
  Result<void> page(Pgno pgno, ByteView bytes) override {
    EXPECT_FALSE(ended);
    EXPECT_EQ(bytes.size(), page_size);
    pages[pgno.value()] = Bytes(bytes.begin(), bytes.end());
    ++received;
    if (on_page) on_page(received);
    if (received == fail_at) return make_error(Errc::unavailable, "peer is gone");
    return {};
  }
  Result<void> end(const SnapshotEnd& at) override {
    ended = at;
    pages.erase(pages.upper_bound(at.commit), pages.end());
    return {};
  }
  std::uint32_t page_size = 0;
  Pages pages;
  std::optional<SnapshotEnd> ended;
  std::uint32_t expected = 0;
  int begins = 0;
  int received = 0;
  int fail_at = 0;
  std::function<void(int)> on_page;
};

class SnapshotTest : public testing::Test {
 protected:
  SnapshotTest() : source_(temp_) { options_.tmp_dir = temp_.file("tmp"); }

  Result<SnapshotEnd> copy() { return copy_database(*source_.database, options_, sink_); }
  void copy_and_compare() {
    const auto end = copy();
    ASSERT_TRUE(end.has_value()) << end.error().to_string();
    ASSERT_TRUE(sink_.ended.has_value());
    EXPECT_EQ(end->pos, sink_.ended->pos);
    EXPECT_EQ(end->pos, source_.database->pos());
    EXPECT_EQ(end->commit, source_.pages.size());
    EXPECT_EQ(end->page_size, source_.page_size);
    EXPECT_EQ(end->epoch, source_.database->epoch());
    EXPECT_EQ(sink_.page_size, source_.page_size);
    EXPECT_TRUE(sink_.pages == source_.pages);
    EXPECT_EQ(checksum_received(), end->pos.checksum);
  }
  Checksum checksum_received() const {
    Checksum sum = kEmptyChecksum;
    for (const auto& [p, page] : sink_.pages) sum = ltx::toggle(sum, ltx::page_checksum(Pgno(p), page));
    return sum;
  }
  static std::vector<std::uint32_t> range(std::uint32_t first, std::uint32_t count) {
    std::vector<std::uint32_t> pages(count);
    std::iota(pages.begin(), pages.end(), first);
    return pages;
  }

  TempDir temp_;
  MemoryDatabase source_;
  SnapshotOptions options_;
  CollectingSink sink_;
};

TEST_F(SnapshotTest, ADatabaseThatStandsStill) {
  source_.commit(1000, {});
  copy_and_compare();
  EXPECT_EQ(sink_.received, 1000);
  EXPECT_EQ(source_.reads, 1000);
}

TEST_F(SnapshotTest, NothingYet) {
  const auto end = copy();
  ASSERT_OK(end);
  EXPECT_EQ(end->pos, Pos{});
  EXPECT_EQ(end->commit, 0u);
  EXPECT_EQ(sink_.page_size, 4096u);
  EXPECT_EQ(sink_.received, 0);
}

TEST_F(SnapshotTest, ADeletedDatabase) {
  source_.commit(10, {});
  source_.commit(0, {});
  const auto end = copy();
  ASSERT_OK(end);
  EXPECT_EQ(end->pos, (Pos{Txid(2), kEmptyChecksum}));
  EXPECT_EQ(end->commit, 0u);
  EXPECT_EQ(sink_.received, 0);
}

TEST_F(SnapshotTest, PagesThatChangeAreSentAgain) {
  source_.commit(1000, {});
  sink_.on_page = [&](int n) {
    if (n == 500) source_.commit(1000, {1, 2, 700});
  };
  copy_and_compare();
  EXPECT_EQ(sink_.received, 1002);  // 700 had not been sent yet
}

TEST_F(SnapshotTest, GrowingAndShrinking) {
  source_.commit(1000, {});
  sink_.on_page = [&](int n) {
    if (n == 100) source_.commit(5000, {});
    if (n == 2500) source_.commit(2000, {3});
    if (n == 2600) source_.commit(2600, {});
  };
  copy_and_compare();
}

TEST_F(SnapshotTest, AWriterThatNeverStops) {
  // Every ten pages that are sent, 400 of 600 change, also while the last round is being sent.
  source_.commit(600, {});
  sink_.on_page = [&](int n) {
    if (n % 10 == 0) source_.commit(600, range(1 + static_cast<std::uint32_t>(n) % 7, 400));
  };
  const auto end = copy();
  ASSERT_OK(end);
  EXPECT_EQ(source_.database->log().position_at(end->pos.txid), end->pos);
  EXPECT_EQ(checksum_received(), end->pos.checksum);
}

TEST_F(SnapshotTest, DeletionMidway) {
  source_.commit(1000, {});
  sink_.on_page = [&](int n) {
    if (n == 300) source_.commit(0, {});
  };
  copy_and_compare();
  EXPECT_TRUE(sink_.pages.empty());
}

TEST_F(SnapshotTest, DeletionAndRecreationMidway) {
  source_.commit(1000, {});
  sink_.on_page = [&](int n) {
    if (n == 300) source_.commit(0, {});
    if (n == 320) source_.commit(50, {});
  };
  copy_and_compare();
}

TEST_F(SnapshotTest, ANewPageSizeStartsOver) {
  source_.commit(1000, {});
  sink_.on_page = [&](int n) {
    if (n == 300) source_.change_page_size(1024, 400);
  };
  copy_and_compare();
  EXPECT_EQ(sink_.begins, 2);
}

/// A receiver with the given pages; counts what it is asked for.
class Receiver final : public ReceiverPages {
 public:
  Receiver(Pages pages, std::uint32_t page_size) : pages_(std::move(pages)) {
    offer_.page_size = page_size;
    offer_.pages = pages_.empty() ? 0 : pages_.rbegin()->first;
    offer_.block_pages = block_pages_for(offer_.pages);
    for (std::uint64_t p = 1; p <= offer_.pages; p += offer_.block_pages) {
      BlockSum sum;
      for (std::uint64_t q = p; q < p + offer_.block_pages && q <= offer_.pages; ++q) {
        if (Pgno(static_cast<std::uint32_t>(q)) != lock_page(page_size)) sum.add(Checksum(sum_of(q)));
      }
      offer_.blocks.push_back(sum.value());
    }
  }
  const PageOffer& offer() const override { return offer_; }
  PageOffer& offer() { return offer_; }
  Result<void> page_sums(Pgno first, std::span<std::uint64_t> out) override {
    ++requests;
    asked += out.size();
    if (on_request) on_request();
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = sum_of(first.value() + i);
    return {};
  }
  std::size_t requests = 0;
  std::size_t asked = 0;
  std::function<void()> on_request;

 private:
  std::uint64_t sum_of(std::uint64_t p) const {
    const auto it = pages_.find(static_cast<std::uint32_t>(p));
    return it == pages_.end() ? 0 : ltx::page_checksum(Pgno(it->first), it->second).value();
  }
  const Pages pages_;
  PageOffer offer_;
};

TEST_F(SnapshotTest, OnlyWhatTheReceiverLacks) {
  source_.commit(1000, {});
  Receiver receiver(source_.pages, source_.page_size);
  source_.commit(1100, {5, 6, 7});
  options_.receiver = &receiver;
  ASSERT_OK(copy());
  EXPECT_EQ(sink_.received, 103);
  EXPECT_EQ(source_.reads, 103);
  EXPECT_EQ(sink_.expected, 103u);
  EXPECT_EQ(receiver.requests, 1u);
  EXPECT_EQ(receiver.asked, 256u) << "the sums of one block: the others are equal";
  for (const auto& [p, page] : sink_.pages) EXPECT_TRUE(page == source_.pages.at(p)) << p;
}

TEST_F(SnapshotTest, DifferingBlocksNextToEachOtherAreAskedForTogether) {
  source_.commit(3000, {});
  Receiver receiver(source_.pages, source_.page_size);
  source_.commit(2900, {1, 300, 1500, 2900});
  options_.receiver = &receiver;
  ASSERT_OK(copy());
  EXPECT_EQ(sink_.received, 4);
  EXPECT_EQ(receiver.requests, 3u);
  EXPECT_EQ(receiver.asked, 512u + 256u + (2900u - 11u * 256u));
}

TEST_F(SnapshotTest, TheReceiverHasMoreAndOtherPages) {
  source_.commit(700, {});
  Pages theirs = source_.pages;
  theirs.erase(350);
  source_.commit(1000, {});
  for (std::uint32_t p = 701; p <= 1000; ++p) theirs[p] = source_.pages.at(p);
  source_.commit(600, {10});
  Receiver receiver(theirs, source_.page_size);
  options_.receiver = &receiver;
  ASSERT_OK(copy());
  EXPECT_EQ(sink_.received, 2);
  EXPECT_TRUE(sink_.pages.contains(10) && sink_.pages.contains(350));
}

TEST_F(SnapshotTest, ItChangesWhileItIsCompared) {
  source_.commit(1000, {});
  Receiver receiver(source_.pages, source_.page_size);
  source_.commit(1000, {5});
  receiver.on_request = [&] { source_.commit(1010, {5, 900}); };
  options_.receiver = &receiver;
  ASSERT_OK(copy());
  EXPECT_EQ(sink_.received, 12);
  for (const auto& [p, page] : sink_.pages) EXPECT_TRUE(page == source_.pages.at(p)) << p;
}

TEST_F(SnapshotTest, NothingIsComparedAcrossPageSizes) {
  source_.commit(500, {});
  Receiver receiver(source_.pages, 2 * source_.page_size);
  options_.receiver = &receiver;
  copy_and_compare();
  EXPECT_EQ(receiver.requests, 0u);
}

TEST_F(SnapshotTest, ANewPageSizeAfterTheComparisonSendsEverything) {
  source_.commit(1000, {});
  Receiver receiver(source_.pages, source_.page_size);
  source_.commit(1000, {5});
  receiver.on_request = [&] { source_.change_page_size(1024, 400); };
  options_.receiver = &receiver;
  copy_and_compare();
}

TEST_F(SnapshotTest, WrongSumsCostTrafficAndNothingElse) {
  source_.commit(600, {});
  Receiver receiver(source_.pages, source_.page_size);
  for (auto& block : receiver.offer().blocks) block ^= 1;
  options_.receiver = &receiver;
  ASSERT_OK(copy());
  EXPECT_EQ(receiver.asked, 600u);
  EXPECT_EQ(sink_.received, 0);
}

TEST(BlockSum, TheSameChangeOfTwoPagesDoesNotCancelOut) {
  // As it does in the rolling checksum: CRCs are linear.
  const auto sum_of = [](std::uint64_t a, std::uint64_t b) {
    BlockSum sum;
    sum.add(Checksum(a));
    sum.add(Checksum(b));
    return sum.value();
  };
  const std::uint64_t flag = std::uint64_t{1} << 63;
  for (std::uint64_t delta = 1; delta != 0 && delta < flag; delta <<= 1) {
    EXPECT_NE(sum_of(flag | 77, flag | 99), sum_of((flag | 77) ^ delta, (flag | 99) ^ delta)) << delta;
  }
  EXPECT_NE(sum_of(1, 2), sum_of(2, 1));
}

TEST(PageOffer, BlocksAreBounded) {
  EXPECT_EQ(block_pages_for(0), 256u);
  EXPECT_EQ(block_pages_for(256 * 65536), 256u);
  EXPECT_EQ(block_pages_for(256 * 65536 + 1), 512u);
  EXPECT_EQ(block_pages_for(0xffffffffu), 65536u);
  EXPECT_EQ(PageOffer::block_count(0xffffffffu, 65536), 65536u);
  EXPECT_FALSE(valid_block_pages(128));
  EXPECT_FALSE(valid_block_pages(300));
}

TEST_F(SnapshotTest, BusyPagesAreAskedForAgain) {
  source_.commit(200, {});
  source_.busy = {10, 199};
  sink_.on_page = [&](int n) {
    if (n == 198) source_.busy.clear();  // everything else has been sent
  };
  copy_and_compare();
}

TEST_F(SnapshotTest, BusyForTooLong) {
  source_.commit(200, {});
  source_.busy = {10};
  options_.busy_timeout_ms = 30;
  EXPECT_EQ(copy().error().code, Errc::busy);
  EXPECT_EQ(sink_.received, 199);
}

TEST_F(SnapshotTest, CancelledWhileBusy) {
  source_.commit(20, {});
  source_.busy = {10};
  int polls = 0;
  options_.cancelled = [&] { return ++polls > 5; };
  EXPECT_EQ(copy().error().code, Errc::cancelled);
}

TEST_F(SnapshotTest, Cancelled) {
  source_.commit(1000, {});
  options_.cancelled = [&] { return sink_.received > 200; };
  EXPECT_EQ(copy().error().code, Errc::cancelled);
  EXPECT_LT(sink_.received, 400);
}

TEST_F(SnapshotTest, TheSinksErrorIsPassedOn) {
  source_.commit(1000, {});
  sink_.fail_at = 77;
  EXPECT_EQ(copy().error().code, Errc::unavailable);
  EXPECT_EQ(sink_.received, 77);
}

TEST_F(SnapshotTest, APageThatIsNotWhatItShouldBeIsFound) {
  source_.commit(1000, {});
  source_.pages[321][100] ^= std::byte{1};
  const auto end = copy();
  ASSERT_TRUE(end.has_error());
  EXPECT_EQ(end.error().code, Errc::corrupt);
  EXPECT_THAT(end.error().message, testing::HasSubstr("page 321"));
  EXPECT_FALSE(sink_.ended.has_value());
}

TEST_F(SnapshotTest, UnknownChecksumsAreComputedAndTheSumStillProvesTheContent) {
  source_.commit(300, {});
  {
    MutexLock lock(source_.database->commit_mutex());
    for (std::uint32_t p = 1; p <= 300; ++p)
      ASSERT_OK(source_.database->checksums().set(Pgno(p), Checksum{}));
  }
  copy_and_compare();
  // The same, but a page has been damaged while its checksum was not known: the position's checksum tells.
  {
    MutexLock lock(source_.database->commit_mutex());
    for (std::uint32_t p = 1; p <= 300; ++p)
      ASSERT_OK(source_.database->checksums().set(Pgno(p), Checksum{}));
  }
  source_.pages[300][500] ^= std::byte{1};
  sink_.ended.reset();
  EXPECT_EQ(copy().error().code, Errc::corrupt);
}

TEST_F(SnapshotTest, WithoutAContentSource) {
  source_.commit(10, {});
  {
    MutexLock lock(source_.database->commit_mutex());
    source_.database->set_page_source(nullptr);
  }
  EXPECT_EQ(copy().error().code, Errc::unavailable);
}

TEST_F(SnapshotTest, NothingIsLeftInTheTemporaryDirectory) {
  source_.commit(1000, {});
  copy_and_compare();
  EXPECT_TRUE(real_file_system().list(temp_.file("tmp"))->empty());
}

}  // namespace
}  // namespace sluice::storage::test
