// The change log while everything goes well.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <latch>
#include <thread>

#include "storage/change_log_format.h"
#include "tests/unit/storage/log_support.h"

namespace sluice::storage::test {
namespace {

class ChangeLogTest : public testing::Test {
 protected:
  std::unique_ptr<ChangeLog> open(std::uint64_t segment_size = 64u << 20) {
    auto log = ChangeLog::open(fs_, dir(), {segment_size});
    EXPECT_TRUE(log.has_value()) << log.error().to_string();
    return log.has_value() ? std::move(*log) : nullptr;
  }
  std::string dir() const { return temp_.file("log/app.db"); }
  std::size_t files() const {
    return static_cast<std::size_t>(std::distance(std::filesystem::directory_iterator(dir()), {}));
  }
  TempDir temp_;
  FaultFileSystem fs_;
};

TEST_F(ChangeLogTest, ANewLogIsEmpty) {
  const auto log = open();
  EXPECT_FALSE(log->last().has_value());
  EXPECT_EQ(log->first_readable(), Txid(1));
  EXPECT_EQ(log->durable(), Txid(0));
  EXPECT_EQ(log->size_bytes(), 0u);
  EXPECT_EQ(log->find(Txid(1)).error().code, Errc::not_found);
  EXPECT_FALSE(log->position_at(Txid(0)).has_value());
  const auto synced = log->sync();
  ASSERT_OK(synced);
  EXPECT_EQ(*synced, Txid(0));
}

TEST_F(ChangeLogTest, RecordsComeBackAsTheyWere) {
  auto log = open();
  for (std::uint64_t txid = 1; txid <= 1000; ++txid) ASSERT_OK(append(*log, txid));
  expect_holds(*log, 1, 1000);
  log = nullptr;
  log = open();
  expect_holds(*log, 1, 1000);
  EXPECT_EQ(log->durable(), Txid(0)) << "nobody has synced it";
  ASSERT_OK(log->sync());
  EXPECT_EQ(log->durable(), Txid(1000));
  ASSERT_OK(append(*log, 1001));
  expect_holds(*log, 1, 1001);
}

TEST_F(ChangeLogTest, RecordsMayHoldSeveralTransactions) {
  const auto log = open();
  ASSERT_OK(append(*log, 1));
  ASSERT_OK(append(*log, info_of(2, 9), image_of(9, 50)));
  ASSERT_OK(append(*log, 10));
  for (std::uint64_t txid = 2; txid <= 9; ++txid) {
    const auto found = log->find(Txid(txid));
    ASSERT_OK(found);
    EXPECT_EQ(found->info.min_txid, Txid(2));
    EXPECT_EQ(found->info.post, pos_at(9));
    EXPECT_EQ(log->position_at(Txid(txid)).has_value(), txid == 9);
  }
}

TEST_F(ChangeLogTest, AppendsInPieces) {
  auto log = open();
  const Bytes image = image_of(1, 5000);
  ASSERT_OK(log->begin_append());
  for (std::size_t at = 0; at < image.size(); at += 7) {
    ASSERT_OK(log->append_bytes(ByteView(image).subspan(at, std::min<std::size_t>(7, image.size() - at))));
  }
  EXPECT_EQ(log->find(Txid(1)).error().code, Errc::not_found);  // not before finish_append
  ASSERT_OK(log->finish_append(info_of(1)));
  EXPECT_EQ(read_image(*log->find(Txid(1))), image);
}

TEST_F(ChangeLogTest, LargeRecordsAreStreamed) {
  auto log = open();
  ASSERT_OK(append(*log, 1));
  const Bytes image = image_of(2, (5u << 20) + 12345);
  ASSERT_OK(append(*log, info_of(2), image));
  ASSERT_OK(append(*log, 3));
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(read_image(*log->find(Txid(2))), image);
    EXPECT_EQ(read_image(*log->find(Txid(3))), image_of(3, image_size(3)));
    log = nullptr;
    log = open();
  }
}

TEST_F(ChangeLogTest, ASmallRecordIsOneWrite) {
  const auto log = open();
  ASSERT_OK(append(*log, 1));
  const int writes = fs_.count(FileOp::write);
  const int others = fs_.count(FileOp::read) + fs_.count(FileOp::sync) + fs_.count(FileOp::truncate);
  for (std::uint64_t txid = 2; txid <= 101; ++txid) ASSERT_OK(append(*log, txid));
  EXPECT_LE(fs_.count(FileOp::write) - writes, 103) << "and zeros ahead, which grow with the log";
  EXPECT_EQ(fs_.count(FileOp::read) + fs_.count(FileOp::sync) + fs_.count(FileOp::truncate), others);
}

TEST_F(ChangeLogTest, ZerosAreWrittenAheadOfSmallRecords) {
  const auto log = open();
  ASSERT_OK(append(*log, 1));
  const auto file = real_file_system().open(dir() + "/0000000000000001.seg", {});
  ASSERT_OK(file);
  const std::uint64_t size = *(*file)->size();
  EXPECT_GT(size, log->size_bytes() + (10u << 10));
  EXPECT_LE(size, log->size_bytes() + (20u << 10)) << "there can be thousands of logs with little in them";
  for (std::uint64_t txid = 2; txid <= 30; ++txid) ASSERT_OK(append(*log, txid));
  EXPECT_EQ(*(*file)->size(), size);
  for (std::uint64_t txid = 31; txid <= 3000; ++txid) ASSERT_OK(append(*log, txid));
  const int writes = fs_.count(FileOp::write);
  for (std::uint64_t txid = 3001; txid <= 4000; ++txid) ASSERT_OK(append(*log, txid));
  EXPECT_LE(fs_.count(FileOp::write) - writes, 1003);
}

TEST_F(ChangeLogTest, ReopeningGoesOnInTheZeros) {
  auto log = open();
  for (std::uint64_t txid = 1; txid <= 3; ++txid) ASSERT_OK(append(*log, txid));
  const std::uint64_t used = log->size_bytes();
  log = nullptr;
  log = open();
  EXPECT_EQ(log->size_bytes(), used);
  EXPECT_GT(std::filesystem::file_size(dir() + "/0000000000000001.seg"), used);
  const int writes = fs_.count(FileOp::write);
  for (std::uint64_t txid = 4; txid <= 6; ++txid) ASSERT_OK(append(*log, txid));
  EXPECT_EQ(fs_.count(FileOp::write) - writes, 3) << "into zeros that are there";
  log = nullptr;
  log = open();
  expect_holds(*log, 1, 6);
}

TEST_F(ChangeLogTest, SegmentsAreSealedBySize) {
  auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 300; ++txid) ASSERT_OK(append(*log, txid));
  EXPECT_GT(files(), 20u);
  expect_holds(*log, 1, 300);
  log = nullptr;
  log = open(2000);
  expect_holds(*log, 1, 300);
  for (std::uint64_t txid = 301; txid <= 320; ++txid) ASSERT_OK(append(*log, txid));
  expect_holds(*log, 1, 320);
}

TEST_F(ChangeLogTest, ASegmentWithoutRecordsYetKnowsWhatCameBefore) {
  auto log = open(500);
  std::uint64_t txid = 0;
  while (files() < 2) ASSERT_OK(append(*log, ++txid));
  log->abort_append();
  // The second segment holds one record; cut it off as if the crash had come right after the roll-over.
  const std::string second = dir() + "/" + log_format::segment_name(Txid(txid));
  log = nullptr;
  std::filesystem::resize_file(second, log_format::kSegmentHeaderSize);
  log = open(500);
  expect_holds(*log, 1, txid - 1);
  ASSERT_OK(append(*log, txid));
  expect_holds(*log, 1, txid);
}

TEST_F(ChangeLogTest, RefusesRecordsThatDoNotFollow) {
  const auto log = open();
  EXPECT_EQ(append(*log, 2).error().code, Errc::position);  // an empty log starts at 1
  ASSERT_OK(append(*log, 1));
  EXPECT_EQ(append(*log, 1).error().code, Errc::position);
  EXPECT_EQ(append(*log, 3).error().code, Errc::position);
  RecordInfo other_content = info_of(2);
  other_content.pre.checksum = Checksum(kEmptyChecksum.value() | 77);
  EXPECT_EQ(append(*log, other_content, image_of(2, 10)).error().code, Errc::position);
  RecordInfo backwards = info_of(2);
  backwards.post.txid = Txid(1);
  EXPECT_EQ(append(*log, backwards, image_of(2, 10)).error().code, Errc::position);
  ASSERT_OK(append(*log, 2));
  expect_holds(*log, 1, 2);
}

TEST_F(ChangeLogTest, AbortedRecordsLeaveNothing) {
  auto log = open();
  ASSERT_OK(append(*log, 1));
  for (const std::size_t size : {std::size_t{0}, std::size_t{500}, std::size_t{3} << 20}) {
    ASSERT_OK(log->begin_append());
    ASSERT_OK(log->append_bytes(image_of(9, size)));
    log->abort_append();
    log->abort_append();  // harmless
  }
  EXPECT_LT(std::filesystem::file_size(dir() + "/0000000000000001.seg"), 1u << 20);
  ASSERT_OK(append(*log, 2));
  log = nullptr;
  log = open();
  expect_holds(*log, 1, 2);
}

TEST_F(ChangeLogTest, VisitingStartsAndStopsWhereAsked) {
  const auto log = open(3000);
  for (std::uint64_t txid = 1; txid <= 500; ++txid) ASSERT_OK(append(*log, txid));
  std::vector<std::uint64_t> seen;
  ASSERT_OK(log->for_each(Txid(321), [&](const ChangeLog::Handle& handle) {
    seen.push_back(handle.info.post.txid.value());
    return seen.size() < 5;
  }));
  EXPECT_THAT(seen, testing::ElementsAre(321, 322, 323, 324, 325));
  seen.clear();
  ASSERT_OK(log->for_each(Txid(501), [&](const ChangeLog::Handle&) { return seen.push_back(0), true; }));
  EXPECT_TRUE(seen.empty());
}

TEST_F(ChangeLogTest, ABaseStartsTheLogOver) {
  auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 100; ++txid) ASSERT_OK(append(*log, txid));
  for (const std::uint64_t base :
       {5000u, 40u, 1u}) {  // ahead, back into the old range, onto an existing file's name
    ASSERT_OK(log->append_base(info_of(base)));
    EXPECT_EQ(*log->sync(), Txid(base));
    for (int round = 0; round < 2; ++round) {
      EXPECT_EQ(files(), 1u);
      ASSERT_TRUE(log->last().has_value());
      RecordInfo expected = info_of(base);
      expected.base = true;
      expect_same(*log->last(), expected, 0);
      EXPECT_EQ(log->first_readable(), Txid(base + 1));
      EXPECT_EQ(log->position_at(Txid(base)), pos_at(base));
      EXPECT_EQ(log->find(Txid(base)).error().code, Errc::not_found);
      log = nullptr;
      log = open(2000);
    }
    for (std::uint64_t txid = base + 1; txid <= base + 30; ++txid) ASSERT_OK(append(*log, txid));
    expect_holds(*log, base + 1, base + 30);
  }
}

TEST_F(ChangeLogTest, VisitingShowsTheBase) {
  const auto log = open();
  ASSERT_OK(log->append_base(info_of(7)));
  ASSERT_OK(append(*log, 8));
  std::vector<bool> bases;
  ASSERT_OK(log->for_each(Txid(1), [&](const ChangeLog::Handle& handle) {
    bases.push_back(handle.info.base);
    return true;
  }));
  EXPECT_THAT(bases, testing::ElementsAre(true, false));
}

TEST_F(ChangeLogTest, AnInterruptedBaseIsCompleted) {
  auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 60; ++txid) ASSERT_OK(append(*log, txid));
  const std::size_t before = files();
  fs_.fail(FileOp::unlink, 1, EIO, true);
  EXPECT_TRUE(log->append_base(info_of(30)).has_error());
  EXPECT_GE(files(), before);
  fs_.heal();
  log = nullptr;
  log = open(2000);
  EXPECT_EQ(files(), 1u);
  EXPECT_EQ(log->first_readable(), Txid(31));
}

TEST_F(ChangeLogTest, RetentionByAge) {
  auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 100; ++txid) ASSERT_OK(append(*log, txid));
  const std::size_t before = files();
  // Record n has timestamp 1000 n: at 110 s, older than 50 s means below 60.
  const auto removed = log->retain({.max_age_ms = 50'000, .max_bytes = 1u << 30}, Txid(1000), 110'000);
  ASSERT_OK(removed);
  EXPECT_GT(*removed, 0u);
  EXPECT_EQ(files(), before - *removed);
  const std::uint64_t first = log->first_readable().value();
  EXPECT_GT(first, 40u);
  EXPECT_LE(first, 60u);
  expect_holds(*log, first, 100);
  EXPECT_EQ(log->position_at(Txid(first - 1)), pos_at(first - 1));  // a replica there can still go on
  EXPECT_FALSE(log->position_at(Txid(first - 2)).has_value());
  log = nullptr;
  log = open(2000);
  expect_holds(*log, first, 100);
  EXPECT_EQ(log->position_at(Txid(first - 1)), pos_at(first - 1));
}

TEST_F(ChangeLogTest, RetentionBySize) {
  const auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 100; ++txid) ASSERT_OK(append(*log, txid));
  ASSERT_OK(log->retain({.max_age_ms = 1'000'000'000, .max_bytes = 7000}, Txid(1000), 0));
  EXPECT_LE(log->size_bytes(), 7000u);
  EXPECT_GT(log->size_bytes(), 4000u);
  EXPECT_EQ(log->last()->post, pos_at(100));
}

TEST_F(ChangeLogTest, RetentionKeepsWhatIsNeededAndTheLastSegment) {
  const auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 100; ++txid) ASSERT_OK(append(*log, txid));
  const RetentionPolicy nothing{.max_age_ms = 0, .max_bytes = 0};
  ASSERT_OK(log->retain(nothing, Txid(50), 1'000'000'000));
  EXPECT_LE(log->first_readable(), Txid(50));
  ASSERT_OK(log->retain(nothing, Txid(1000), 1'000'000'000));
  EXPECT_EQ(files(), 1u);
  expect_holds(*log, log->first_readable().value(), 100);
  ASSERT_OK(append(*log, 101));
}

TEST_F(ChangeLogTest, AHandleOutlivesRetention) {
  auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 100; ++txid) ASSERT_OK(append(*log, txid));
  const auto handle = log->find(Txid(1));
  ASSERT_OK(handle);
  ASSERT_OK(log->retain({.max_age_ms = 0, .max_bytes = 0}, Txid(1000), 1'000'000'000));
  EXPECT_EQ(log->find(Txid(1)).error().code, Errc::not_found);
  EXPECT_EQ(read_image(*handle), image_of(1, image_size(1)));
}

TEST_F(ChangeLogTest, RemoveAllLeavesNothing) {
  auto log = open(2000);
  for (std::uint64_t txid = 1; txid <= 50; ++txid) ASSERT_OK(append(*log, txid));
  ASSERT_OK(log->remove_all());
  EXPECT_FALSE(std::filesystem::exists(dir()));
  EXPECT_FALSE(log->last().has_value());
}

TEST_F(ChangeLogTest, SyncMakesTheAppendedDurable) {
  const auto log = open();
  for (std::uint64_t txid = 1; txid <= 5; ++txid) ASSERT_OK(append(*log, txid));
  EXPECT_EQ(log->durable(), Txid(0));
  const int syncs = fs_.count(FileOp::sync);
  const auto synced = log->sync();
  ASSERT_OK(synced);
  EXPECT_EQ(*synced, Txid(5));
  EXPECT_EQ(log->durable(), Txid(5));
  ASSERT_OK(log->sync());
  EXPECT_EQ(fs_.count(FileOp::sync), syncs + 1);  // the second one had nothing to do
}

// I2: on a primary a record may be on disk before the WAL that it was captured from.
TEST_F(ChangeLogTest, OnlySyncReleases) {
  auto log = open(500);
  std::uint64_t txid = 0;
  while (files() < 2) ASSERT_OK(append(*log, ++txid));  // sealing the first segment synced it
  EXPECT_EQ(log->durable(), Txid(0));
  EXPECT_EQ(log->synced(), Txid(0));
  ASSERT_OK(log->flush());
  EXPECT_EQ(log->durable(), Txid(0));
  const int syncs = fs_.count(FileOp::sync);
  EXPECT_EQ(*log->sync(Txid(2)), Txid(2));
  EXPECT_EQ(log->durable(), Txid(2));
  EXPECT_EQ(*log->sync(Txid(1)), Txid(2));
  log->hold(Txid(3));
  EXPECT_EQ(*log->sync(), Txid(txid));
  EXPECT_EQ(log->synced(), Txid(txid));
  EXPECT_EQ(log->durable(), Txid(2));
  EXPECT_TRUE(log->release_hold());
  EXPECT_EQ(log->durable(), Txid(txid));
  EXPECT_EQ(fs_.count(FileOp::sync), syncs) << "it was on disk already";
}

TEST_F(ChangeLogTest, ABaseReadFromAWalIsReleasedBySync) {
  const auto log = open();
  for (std::uint64_t txid = 1; txid <= 9; ++txid) ASSERT_OK(append(*log, txid));
  ASSERT_OK(log->append_base(info_of(7)));
  EXPECT_EQ(log->durable(), Txid(6));
  EXPECT_EQ(*log->sync(), Txid(7));
  RecordInfo file_only = info_of(8);
  file_only.wal = {};
  ASSERT_OK(log->append_base(file_only));
  EXPECT_EQ(log->durable(), Txid(8));
}

TEST_F(ChangeLogTest, OneSyncServesAllThatWait) {
  const auto log = open();
  ASSERT_OK(append(*log, 1));
  const int syncs = fs_.count(FileOp::sync);
  constexpr int kWaiters = 8;
  // The first sync is held up until all have asked.
  std::latch first_is_syncing(1);
  std::latch go_on(1);
  std::atomic<bool> held{false};
  fs_.on_sync([&] {
    if (held.exchange(true)) return;
    first_is_syncing.count_down();
    go_on.wait();
  });
  std::thread first([&] { EXPECT_TRUE(log->sync().has_value()); });
  first_is_syncing.wait();
  ASSERT_OK(append(*log, 2));  // not covered by the sync under way
  std::atomic<int> asking{0};
  std::vector<std::thread> waiters;
  for (int i = 0; i < kWaiters; ++i) {
    waiters.emplace_back([&] {
      ++asking;
      const auto synced = log->sync();
      EXPECT_TRUE(synced.has_value());
      EXPECT_GE(*synced, Txid(2));
    });
  }
  while (asking < kWaiters) std::this_thread::yield();
  go_on.count_down();
  first.join();
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_EQ(log->durable(), Txid(2));
  // One for TXID 1, and one for all the others (those that came late found it done).
  EXPECT_EQ(fs_.count(FileOp::sync), syncs + 2);
}

TEST_F(ChangeLogTest, AppendersSyncersAndReadersTogether) {
  const auto log = open(20'000);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> appended{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const std::uint64_t before = appended;
        const auto synced = log->sync();
        ASSERT_TRUE(synced.has_value());
        ASSERT_GE(synced->value(), before);
      }
    });
    threads.emplace_back([&, i] {
      std::mt19937_64 random(static_cast<std::uint64_t>(i));
      while (!stop) {
        if (appended == 0) continue;
        const std::uint64_t txid = random() % appended + 1;
        const auto found = log->find(Txid(txid));
        if (found.has_error()) {
          ASSERT_LT(txid, log->first_readable().value()) << found.error().to_string();
        } else {
          ASSERT_EQ(read_image(*found), image_of(txid, image_size(txid)));
        }
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop)
      ASSERT_TRUE(log->retain({.max_age_ms = 300'000, .max_bytes = 1u << 30}, log->durable(),
                              static_cast<std::int64_t>(appended.load()) * 1000)
                      .has_value());
  });
  for (std::uint64_t txid = 1; txid <= 3000; ++txid) {
    ASSERT_OK(append(*log, txid));
    appended = txid;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  expect_holds(*log, log->first_readable().value(), 3000);
}

}  // namespace
}  // namespace sluice::storage::test
