// What opening makes of a change log that a crash or a bad disk has left.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "storage/change_log_format.h"
#include "tests/unit/storage/log_support.h"

namespace sluice::storage::test {
namespace {

using testing::HasSubstr;

class ChangeLogRecovery : public testing::Test {
 protected:
  std::string dir() const { return temp_.file("log"); }
  std::string first_segment() const { return dir() + "/0000000000000001.seg"; }
  Result<std::unique_ptr<ChangeLog>> open(std::uint64_t segment_size = 64u << 20) {
    return ChangeLog::open(fs_, dir(), {segment_size});
  }
  static Bytes load(const std::string& path) { return *read_file(real_file_system(), path, 64u << 20); }
  static void store(const std::string& path, ByteView bytes) {
    const auto file = real_file_system().open(path, {.write = true, .create = true});
    ASSERT_OK(file);
    ASSERT_OK((*file)->truncate(0));
    ASSERT_OK((*file)->write_at(0, bytes));
  }
  /// A log of `records` records of which the first `synced` were synced before the next was written. Returns
  /// the bytes of its only segment without the zeros behind, and the offset of each record and of the end.
  Bytes make(std::uint64_t records, std::uint64_t synced) {
    std::filesystem::remove_all(dir());
    auto log = open();
    EXPECT_TRUE(log.has_value());
    offsets_.assign(1, log_format::kSegmentHeaderSize);
    for (std::uint64_t txid = 1; txid <= records; ++txid) {
      EXPECT_TRUE(append(**log, txid).has_value());
      offsets_.push_back((*log)->size_bytes());
      if (txid == synced) {
        EXPECT_TRUE((*log)->sync().has_value());
      }
    }
    log->reset();
    Bytes bytes = load(first_segment());
    bytes.resize(static_cast<std::size_t>(offsets_.back()));
    return bytes;
  }
  std::uint64_t offset(std::uint64_t txid) const { return offsets_[txid - 1]; }

  TempDir temp_;
  FaultFileSystem fs_;
  std::vector<std::uint64_t> offsets_;
};

// There can be thousands of logs: who starts does not wait for the disk, and claims nothing that is not known to be on it.
TEST_F(ChangeLogRecovery, OpeningSyncsNothingAndClaimsNothing) {
  make(5, 3);
  const int syncs = fs_.count(FileOp::sync);
  auto log = open();
  ASSERT_OK(log);
  EXPECT_EQ(fs_.count(FileOp::sync), syncs);
  EXPECT_EQ((*log)->last()->post.txid, Txid(5));
  EXPECT_EQ((*log)->synced(), Txid(3)) << "record 4 says so";
  EXPECT_EQ((*log)->durable(), Txid(3));
  ASSERT_OK((*log)->sync());
  EXPECT_EQ(fs_.count(FileOp::sync), syncs + 1);
  EXPECT_EQ((*log)->durable(), Txid(5));
  expect_holds(**log, 1, 5);
}

TEST_F(ChangeLogRecovery, WhatIsKnownToBeDurableIsNotReadAgain) {
  Bytes bytes = make(5, 3);
  bytes[offset(2) + log_format::kRecordHeaderSize + 10] ^= std::byte{1};
  store(first_segment(), bytes);
  EXPECT_TRUE(open().has_error()) << "read, and found damaged";
  ChangeLogOptions options;
  options.known_durable = Txid(5);
  auto log = ChangeLog::open(fs_, dir(), options);
  ASSERT_OK(log);
  EXPECT_EQ((*log)->synced(), Txid(5));
  EXPECT_EQ((*log)->last()->post.txid, Txid(5));
}

TEST_F(ChangeLogRecovery, RestingGivesBackWhatWasAllocatedAhead) {
  auto log = open();
  ASSERT_OK(log);
  ASSERT_OK(append(**log, 1));
  EXPECT_GT(std::filesystem::file_size(first_segment()), (*log)->size_bytes());
  ASSERT_OK((*log)->rest());
  EXPECT_GT(std::filesystem::file_size(first_segment()), (*log)->size_bytes()) << "not synced yet";
  ASSERT_OK((*log)->sync());
  ASSERT_OK((*log)->rest());
  EXPECT_EQ(std::filesystem::file_size(first_segment()), (*log)->size_bytes());
  ASSERT_OK(append(**log, 2));
  expect_holds(**log, 1, 2);
}

TEST_F(ChangeLogRecovery, TornTailAtEveryByteIsCutAndTheLogGoesOn) {
  const Bytes whole = make(3, 0);
  for (std::size_t size = log_format::kSegmentHeaderSize; size < whole.size(); ++size) {
    store(first_segment(), ByteView(whole).first(size));
    std::uint64_t last = 0;
    for (std::uint64_t txid = 1; txid <= 3; ++txid) {
      // The padding behind an image is not part of the record.
      if (size >= offset(txid) + log_format::kRecordHeaderSize + image_size(txid)) last = txid;
    }
    auto log = open();
    ASSERT_OK(log);
    ASSERT_EQ((*log)->last().has_value(), last != 0) << size;
    for (std::uint64_t txid = last + 1; txid <= 4; ++txid) ASSERT_OK(append(**log, txid));
    log->reset();
    log = open();
    ASSERT_OK(log);
    expect_holds(**log, 1, 4);
  }
}

TEST_F(ChangeLogRecovery, TailOfZerosOrGarbageAtEveryByteIsCut) {
  const Bytes whole = make(3, 2);
  for (const std::byte fill : {std::byte{0}, std::byte{0xa5}}) {
    for (std::size_t at = static_cast<std::size_t>(offset(3)); at < offset(3) + 128 + image_size(3); ++at) {
      Bytes torn = whole;
      std::fill(torn.begin() + static_cast<std::ptrdiff_t>(at), torn.end(), fill);
      if (torn == whole) continue;
      store(first_segment(), torn);
      auto log = open();
      ASSERT_OK(log);
      if ((*log)->last()->post == pos_at(3)) {  // only the last byte's padding was hit
        expect_holds(**log, 1, 3);
      } else {
        expect_holds(**log, 1, 2);
        // Nothing but zeros: those that were written ahead, and stay.
        const bool only_zeros = fill == std::byte{0} && at == offset(3);
        EXPECT_EQ(std::filesystem::file_size(first_segment()), only_zeros ? torn.size() : offset(3));
      }
    }
  }
}

TEST_F(ChangeLogRecovery, DamageBeforeASyncedPointIsAnErrorAtEveryByte) {
  const Bytes whole = make(4, 3);  // record 4 says that 1…3 were on disk
  const std::uint64_t size = offset(3) + 128 + image_size(3);
  for (std::size_t at = log_format::kSegmentHeaderSize; at < size; ++at) {
    const bool padding = [&] {
      for (std::uint64_t txid = 1; txid <= 3; ++txid) {
        if (at >= offset(txid) + 128 + image_size(txid) && at < offset(txid + 1)) return true;
      }
      return false;
    }();
    if (padding) continue;
    Bytes damaged = whole;
    damaged[at] ^= std::byte{0x10};
    store(first_segment(), damaged);
    const auto log = open();
    ASSERT_TRUE(log.has_error()) << at;
    ASSERT_EQ(log.error().code, Errc::corrupt);
    EXPECT_THAT(log.error().message, HasSubstr(first_segment()));
    EXPECT_THAT(log.error().message, HasSubstr("damaged at byte"));
    EXPECT_EQ(load(first_segment()), damaged);  // nothing was cut
  }
}

TEST_F(ChangeLogRecovery, UnsyncedRecordsBehindATornOneAreCutWithIt) {
  // 2 and 3 were never synced: the disk may have 3 without 2.
  Bytes torn = make(3, 1);
  torn[static_cast<std::size_t>(offset(2)) + 130] ^= std::byte{1};
  store(first_segment(), torn);
  const auto log = open();
  ASSERT_OK(log);
  expect_holds(**log, 1, 1);
}

TEST_F(ChangeLogRecovery, DamageFarBehindIsFoundAcrossPieces) {
  // The record that tells of the sync lies more than one read of the search away.
  {
    auto log = open();
    ASSERT_OK(log);
    ASSERT_OK(append(**log, 1));
    ASSERT_OK((*log)->sync());
    ASSERT_OK(append(**log, info_of(2), image_of(2, (3u << 20) + 5)));
    ASSERT_OK((*log)->sync());
    ASSERT_OK(append(**log, 3));
  }
  Bytes bytes = load(first_segment());
  bytes[log_format::kSegmentHeaderSize + 200] ^= std::byte{1};
  store(first_segment(), bytes);
  EXPECT_EQ(open().error().code, Errc::corrupt);
}

TEST_F(ChangeLogRecovery, ARecordOfAnotherPlaceOrFileIsNone) {
  const Bytes whole = make(2, 0);
  Bytes moved = whole;
  moved.resize(static_cast<std::size_t>(offset(2)));
  const ByteView first = ByteView(whole).subspan(offset(1), offset(2) - offset(1));
  moved.insert(moved.end(), first.begin(), first.end());
  store(first_segment(), moved);
  auto log = open();
  ASSERT_OK(log);
  EXPECT_EQ((*log)->last()->post, pos_at(1));
}

TEST_F(ChangeLogRecovery, TheSegmentHeaderIsCheckedAtEveryByte) {
  const Bytes whole = make(2, 2);
  for (std::size_t at = 0; at < log_format::kSegmentHeaderSize; ++at) {
    Bytes damaged = whole;
    damaged[at] ^= std::byte{0x40};
    store(first_segment(), damaged);
    const auto log = open();
    ASSERT_TRUE(log.has_error()) << at;
    const bool version = at >= 8 && at < 12;
    EXPECT_EQ(log.error().code, version ? Errc::unsupported : Errc::corrupt) << at;
  }
  store(first_segment(), {});
  EXPECT_EQ(open().error().code, Errc::corrupt);
}

TEST_F(ChangeLogRecovery, ARenamedSegmentIsRefused) {
  make(2, 2);
  std::filesystem::rename(first_segment(), dir() + "/0000000000000002.seg");
  EXPECT_THAT(open().error().message, HasSubstr("holds the segment of TXID 0000000000000001"));
}

class ChangeLogSegments : public ChangeLogRecovery {
 protected:
  void SetUp() override {
    auto log = open(1000);
    ASSERT_OK(log);
    for (std::uint64_t txid = 1; txid <= 40; ++txid) ASSERT_OK(append(**log, txid));
    log->reset();
    for (const auto& entry : std::filesystem::directory_iterator(dir())) paths_.push_back(entry.path());
    std::sort(paths_.begin(), paths_.end());
    ASSERT_GT(paths_.size(), 4u);
  }
  std::vector<std::string> paths_;
};

TEST_F(ChangeLogSegments, AMissingSegmentIsAnError) {
  std::filesystem::remove(paths_[2]);
  const auto log = open(1000);
  ASSERT_TRUE(log.has_error());
  EXPECT_EQ(log.error().code, Errc::corrupt);
  EXPECT_THAT(log.error().message, HasSubstr("a file is missing or cut short"));
}

TEST_F(ChangeLogSegments, ASealedSegmentCutShortIsAnError) {
  std::filesystem::resize_file(paths_[1], std::filesystem::file_size(paths_[1]) - 1);
  EXPECT_EQ(open(1000).error().code, Errc::corrupt);
}

TEST_F(ChangeLogSegments, DamageInASealedSegmentIsFoundWhenItIsRead) {
  Bytes bytes = load(paths_[1]);
  bytes[log_format::kSegmentHeaderSize + 3] ^= std::byte{1};
  store(paths_[1], bytes);
  auto log = open(1000);
  ASSERT_OK(log);
  const auto first = log_format::parse_segment_name(std::filesystem::path(paths_[1]).filename().string());
  const auto found = (*log)->find(*first);
  ASSERT_TRUE(found.has_error());
  EXPECT_EQ(found.error().code, Errc::corrupt);
  EXPECT_THAT(found.error().message, HasSubstr(paths_[1]));
  EXPECT_EQ((*log)->for_each(Txid(1), [](const ChangeLog::Handle&) { return true; }).error().code,
            Errc::corrupt);
  EXPECT_EQ((*log)->last()->post, pos_at(40));
}

TEST_F(ChangeLogSegments, LeftoversOfAnInterruptedCreationAreRemoved) {
  store(dir() + "/segment.tmp", Bytes(100));
  store(dir() + "/unrelated", Bytes(3));
  auto log = open(1000);
  ASSERT_OK(log);
  expect_holds(**log, 1, 40);
  EXPECT_FALSE(std::filesystem::exists(dir() + "/segment.tmp"));
  EXPECT_TRUE(std::filesystem::exists(dir() + "/unrelated"));
}

}  // namespace
}  // namespace sluice::storage::test
