// The change log on a disk that fails, fills up, or loses power.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "tests/unit/storage/log_support.h"

namespace sluice::storage::test {
namespace {

class ChangeLogFault : public testing::Test {
 protected:
  std::string dir() const { return temp_.file("log"); }
  std::unique_ptr<ChangeLog> open(FileSystem& fs, std::uint64_t segment_size = 64u << 20) {
    auto log = ChangeLog::open(fs, dir(), {segment_size});
    EXPECT_TRUE(log.has_value()) << log.error().to_string();
    return log.has_value() ? std::move(*log) : nullptr;
  }
  TempDir temp_;
  FaultFileSystem fs_;
};

TEST_F(ChangeLogFault, AFullDiskCostsTheRecordButNotTheLog) {
  auto log = open(fs_);
  ASSERT_OK(append(*log, 1));
  for (const std::size_t size : {std::size_t{300}, std::size_t{400} << 10, std::size_t{3} << 20}) {
    fs_.fail(FileOp::write, 1, ENOSPC, true);
    const auto failed = append(*log, info_of(2), image_of(2, size));
    ASSERT_TRUE(failed.has_error());
    EXPECT_EQ(failed.error().code, Errc::no_space);
    EXPECT_EQ(log->last()->post, pos_at(1));
    fs_.heal();
  }
  ASSERT_OK(append(*log, 2));
  ASSERT_OK(log->sync());
  expect_holds(*log, 1, 2);
  log = nullptr;
  log = open(fs_);
  expect_holds(*log, 1, 2);
}

TEST_F(ChangeLogFault, ZerosAheadAreGivenUpWhenThereIsNoRoomForThem) {
  const auto log = open(fs_);
  ASSERT_OK(log->begin_append());
  ASSERT_OK(log->append_bytes(image_of(1, image_size(1))));
  fs_.fail(FileOp::write, 1, ENOSPC);  // the zeros
  ASSERT_OK(log->finish_append(info_of(1)));
  expect_holds(*log, 1, 1);
}

TEST_F(ChangeLogFault, NoRoomForANewSegmentKeepsTheOldOne) {
  const auto log = open(fs_, 500);
  std::uint64_t txid = 0;
  while (log->size_bytes() < 500) ASSERT_OK(append(*log, ++txid));
  fs_.fail(FileOp::write, 1, ENOSPC);
  EXPECT_EQ(log->begin_append().error().code, Errc::no_space);
  ASSERT_OK(append(*log, txid + 1));
  expect_holds(*log, 1, txid + 1);
}

TEST_F(ChangeLogFault, AFailedSyncIsForGood) {
  const auto log = open(fs_);
  ASSERT_OK(append(*log, 1));
  ASSERT_OK(log->sync());
  ASSERT_OK(append(*log, 2));
  fs_.fail(FileOp::sync, 1, EIO);
  EXPECT_EQ(log->sync().error().code, Errc::io);
  EXPECT_EQ(log->durable(), Txid(1));
  // The device is fine again, but what the failed sync lost is lost.
  EXPECT_EQ(log->sync().error().code, Errc::io);
  EXPECT_EQ(append(*log, 3).error().code, Errc::io);
  EXPECT_EQ(log->append_base(info_of(9)).error().code, Errc::io);
  EXPECT_EQ(log->durable(), Txid(1));
  EXPECT_EQ(log->find(Txid(2))->info.post, pos_at(2));  // reading goes on
}

TEST_F(ChangeLogFault, AFailedSyncWhileSealingIsForGood) {
  const auto log = open(fs_, 500);
  std::uint64_t txid = 0;
  while (log->size_bytes() < 500) ASSERT_OK(append(*log, ++txid));
  fs_.fail(FileOp::sync, 1, EIO);
  EXPECT_EQ(log->begin_append().error().code, Errc::io);
  EXPECT_EQ(log->sync().error().code, Errc::io);
}

// The kernel marks pages clean that it could not write: the next process would read them and sync them without an error.
TEST_F(ChangeLogFault, AfterAFailedSyncTheNextOpenWritesWhatMayBeMissing) {
  auto log = open(fs_);
  ASSERT_OK(append(*log, 1));
  ASSERT_OK(log->sync());
  ASSERT_OK(append(*log, 2));
  fs_.fail(FileOp::sync, 1, EIO);
  EXPECT_TRUE(log->sync().has_error());
  log = nullptr;
  FaultFileSystem healthy;
  log = open(healthy);
  EXPECT_EQ(healthy.count(FileOp::write), 1);
  std::mt19937_64 random(1);
  healthy.power_loss(random);
  log = nullptr;
  FaultFileSystem again;
  log = open(again);
  expect_holds(*log, 1, 2);
  EXPECT_EQ(again.count(FileOp::write), 0) << "it is synced now";
}

// The file may have its name, and then the next open finds a newer generation than the one that would be appended to.
TEST_F(ChangeLogFault, ABaseThatMayBeThereEndsTheLog) {
  for (const auto& [op, n] : {std::pair(FileOp::sync_directory, 1), std::pair(FileOp::open, 2)}) {
    std::filesystem::remove_all(dir());
    FaultFileSystem fs;
    auto log = open(fs);
    ASSERT_OK(append(*log, 1));
    ASSERT_OK(log->sync());
    fs.fail(op, n, EMFILE);
    EXPECT_TRUE(log->append_base(info_of(7)).has_error());
    EXPECT_EQ(append(*log, 2).error().code, Errc::io) << "the next open would lose it";
    EXPECT_TRUE(log->append_base(info_of(8)).has_error());
    log = open(fs);
    EXPECT_EQ(log->last()->post, pos_at(7));
    ASSERT_OK(append(*log, 8));
    ASSERT_OK(log->append_base(info_of(20)));
    EXPECT_EQ(log->first_readable(), Txid(21));
  }
}

TEST_F(ChangeLogFault, ABaseThatIsNotThereCostsNothing) {
  for (const FileOp op : {FileOp::write, FileOp::sync, FileOp::rename}) {
    std::filesystem::remove_all(dir());
    FaultFileSystem fs;
    auto log = open(fs);
    ASSERT_OK(append(*log, 1));
    fs.fail(op, 1, ENOSPC);
    EXPECT_EQ(log->append_base(info_of(7)).error().code, Errc::no_space);
    ASSERT_OK(append(*log, 2));
    ASSERT_OK(log->sync());
    log = open(fs);
    expect_holds(*log, 1, 2);
  }
}

TEST_F(ChangeLogFault, RetentionThatCannotDeleteLeavesNoGap) {
  auto log = open(fs_, 2000);
  for (std::uint64_t txid = 1; txid <= 100; ++txid) ASSERT_OK(append(*log, txid));
  const RetentionPolicy nothing{.max_age_ms = 0, .max_bytes = 0};
  fs_.fail(FileOp::unlink, 1, EIO);
  EXPECT_TRUE(log->retain(nothing, Txid(30), 1'000'000'000).has_error());
  expect_holds(*log, 1, 100);
  fs_.fail(FileOp::unlink, 2, EIO);
  EXPECT_TRUE(log->retain(nothing, Txid(60), 1'000'000'000).has_error());
  const std::uint64_t first = log->first_readable().value();
  EXPECT_GT(first, 1u);
  expect_holds(*log, first, 100);
  ASSERT_OK(log->retain(nothing, Txid(60), 1'000'000'000));
  const std::uint64_t now = log->first_readable().value();
  log = nullptr;
  log = open(fs_, 2000);
  ASSERT_NE(log, nullptr);
  expect_holds(*log, now, 100);
}

TEST_F(ChangeLogFault, RemovalTakesAlongWhatFailuresLeft) {
  const auto log = open(fs_);
  ASSERT_OK(append(*log, 1));
  fs_.fail(FileOp::write, 1, ENOSPC);
  EXPECT_TRUE(log->append_base(info_of(7)).has_error());
  EXPECT_TRUE(std::filesystem::exists(dir() + "/segment.tmp"));
  ASSERT_OK(log->remove_all());
  EXPECT_FALSE(std::filesystem::exists(dir()));
  // Somebody who still has it cannot write into the log that takes its place.
  const auto next = open(fs_);
  ASSERT_OK(append(*next, 1));
  EXPECT_EQ(append(*log, 1).error().code, Errc::not_found);
  EXPECT_EQ(log->append_base(info_of(9)).error().code, Errc::not_found);
  expect_holds(*next, 1, 1);
}

TEST_F(ChangeLogFault, ADirectoryThatWasNotSureToStayIsMadeSure) {
  std::filesystem::create_directories(dir());
  const auto log = open(fs_);
  EXPECT_GE(fs_.count(FileOp::sync_directory), 1);
}

/// One history with everything in it; stops at the first error. What was durable, and what was appended at
/// most.
struct Reached {
  std::uint64_t durable = 0;
  std::uint64_t appended = 0;
  bool complete = false;
};

Reached run_history(FileSystem& fs, const std::string& dir) {
  Reached reached;
  auto log = ChangeLog::open(fs, dir, {1500});
  if (log.has_error()) return reached;
  for (std::uint64_t txid = 1; txid <= 30; ++txid) {
    if (txid == 12) {
      if ((*log)->begin_append().has_error()) return reached;
      if ((*log)->append_bytes(image_of(99, 2u << 20)).has_error()) return reached;
      (*log)->abort_append();
    }
    if (append(**log, txid).has_error()) return reached;
    reached.appended = txid;
    if (txid % 4 == 0) {
      const auto synced = (*log)->sync();
      if (synced.has_error()) return reached;
      reached.durable = synced->value();
    }
    // What append made durable on its own, by sealing, counts as well.
    reached.durable = std::max(reached.durable, (*log)->durable().value());
  }
  reached.complete = true;
  return reached;
}

TEST_F(ChangeLogFault, CutOffAtAnyOperationTheSyncedRecordsAreThere) {
  for (int n = 1;; ++n) {
    std::filesystem::remove_all(dir());
    FaultFileSystem fs;
    fs.fail_changes_from(n);
    const Reached reached = run_history(fs, dir());
    FaultFileSystem healthy;
    auto log = ChangeLog::open(healthy, dir(), {1500});
    ASSERT_OK(log);
    const auto last = (*log)->last();
    const std::uint64_t have = last ? last->post.txid.value() : 0;
    ASSERT_GE(have, reached.durable) << n;
    ASSERT_LE(have, reached.appended + 1) << n;
    if (have > 0) expect_holds(**log, 1, have);
    for (std::uint64_t txid = have + 1; txid <= have + 3; ++txid) ASSERT_OK(append(**log, txid));
    if (reached.complete) break;
  }
}

class ChangeLogPowerLoss : public ChangeLogFault, public testing::WithParamInterface<int> {};

TEST_P(ChangeLogPowerLoss, WhatWasDurableSurvivesAndTheRestIsAPrefix) {
  std::mt19937_64 random(static_cast<std::uint64_t>(GetParam()));
  std::uint64_t have = 0;
  for (int life = 0; life < 25; ++life) {
    FaultFileSystem fs;
    const auto log = open(fs, 3000 + random() % 3000);
    ASSERT_NE(log, nullptr);
    ASSERT_EQ(log->last() ? log->last()->post.txid.value() : 0, have);
    if (have > 0) expect_holds(*log, 1, have);
    std::uint64_t durable = have;
    std::uint64_t txid = have;
    for (std::uint64_t n = random() % 40; n > 0; --n) {
      ASSERT_OK(append(*log, ++txid));
      if (random() % 5 == 0) ASSERT_OK(log->sync());
      durable = log->durable().value();
    }
    fs.power_loss(random);
    FaultFileSystem restarted;
    auto after = ChangeLog::open(restarted, dir(), {4000});
    ASSERT_OK(after);
    have = (*after)->last() ? (*after)->last()->post.txid.value() : 0;
    ASSERT_GE(have, durable);
    ASSERT_LE(have, txid);
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, ChangeLogPowerLoss, testing::Range(1, 11));

}  // namespace
}  // namespace sluice::storage::test
