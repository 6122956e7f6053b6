// What the change log's tests share: records that follow each other, with images that name their TXID.
#pragma once

#include <gtest/gtest.h>

#include "storage/change_log.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

namespace sluice::storage::test {

using sluice::test::FaultFileSystem;
using sluice::test::FileOp;
using sluice::test::TempDir;

/// Position after TXID `txid` in every test's history.
inline Pos pos_at(std::uint64_t txid) {
  return txid == 0 ? Pos{} : Pos{Txid(txid), Checksum(kEmptyChecksum.value() | txid * 0x9e3779b97f4a7c15u)};
}

inline RecordInfo info_of(std::uint64_t min, std::uint64_t max) {
  RecordInfo info;
  info.epoch = Epoch(1 + max / 10);
  info.pre = pos_at(min - 1);
  info.min_txid = Txid(min);
  info.post = pos_at(max);
  info.page_size = 4096;
  info.commit = static_cast<std::uint32_t>(max);
  info.timestamp_ms = static_cast<std::int64_t>(1000 * max);
  info.wal.salts = {static_cast<std::uint32_t>(max), 2};
  info.wal.frame = static_cast<std::uint32_t>(max * 3);
  info.wal.checksum = {4, static_cast<std::uint32_t>(max)};
  return info;
}
inline RecordInfo info_of(std::uint64_t txid) {
  return info_of(txid, txid);
}

inline Bytes image_of(std::uint64_t txid, std::size_t size) {
  Bytes image(size);
  for (std::size_t i = 0; i < size; ++i) image[i] = static_cast<std::byte>(txid * 31 + i * 7 + i / 251);
  return image;
}
/// Sizes that are no multiple of anything.
inline std::size_t image_size(std::uint64_t txid) {
  return 100 + static_cast<std::size_t>(txid * 37 % 91);
}

inline Result<void> append(ChangeLog& log, const RecordInfo& info, ByteView image) {
  TRY(log.begin_append());
  TRY(log.append_bytes(image));
  return log.finish_append(info);
}
inline Result<void> append(ChangeLog& log, std::uint64_t txid) {
  return append(log, info_of(txid), image_of(txid, image_size(txid)));
}

inline Bytes read_image(const ChangeLog::Handle& handle) {
  Bytes image(static_cast<std::size_t>(handle.info.length));
  const auto n = handle.file->read_at(handle.offset, image);
  EXPECT_TRUE(n.has_value() && *n == image.size());
  return image;
}

inline void expect_same(const RecordInfo& actual, RecordInfo expected, std::uint64_t length) {
  EXPECT_EQ(actual.length, length);
  EXPECT_EQ(actual.epoch, expected.epoch);
  EXPECT_EQ(actual.pre, expected.pre);
  EXPECT_EQ(actual.post, expected.post);
  EXPECT_EQ(actual.min_txid, expected.min_txid);
  EXPECT_EQ(actual.page_size, expected.page_size);
  EXPECT_EQ(actual.commit, expected.commit);
  EXPECT_EQ(actual.timestamp_ms, expected.timestamp_ms);
  EXPECT_EQ(actual.base, expected.base);
  EXPECT_EQ(actual.wal, expected.wal);
}

/// The log holds exactly first…last, each with its content, however one asks.
inline void expect_holds(const ChangeLog& log, std::uint64_t first, std::uint64_t last) {
  EXPECT_EQ(log.first_readable(), Txid(first));
  ASSERT_TRUE(log.last().has_value());
  EXPECT_EQ(log.last()->post, pos_at(last));
  std::uint64_t next = first;
  const auto visited = log.for_each(Txid(first), [&](const ChangeLog::Handle& handle) {
    expect_same(handle.info, info_of(next), image_size(next));
    EXPECT_EQ(read_image(handle), image_of(next, image_size(next))) << next;
    ++next;
    return true;
  });
  EXPECT_TRUE(visited.has_value()) << visited.error().to_string();
  EXPECT_EQ(next, last + 1);
  for (std::uint64_t txid = first; txid <= last; ++txid) {
    const auto found = log.find(Txid(txid));
    ASSERT_TRUE(found.has_value()) << txid << ": " << found.error().to_string();
    ASSERT_EQ(found->info.post, pos_at(txid));
    ASSERT_EQ(read_image(*found), image_of(txid, image_size(txid))) << txid;
    ASSERT_EQ(log.position_at(Txid(txid)), pos_at(txid));
  }
  EXPECT_EQ(log.find(Txid(last + 1)).error().code, Errc::not_found);
  EXPECT_EQ(log.find(Txid(first - 1)).error().code, Errc::not_found);
}

#define ASSERT_OK(expression)                                                                     \
  do {                                                                                            \
    const auto& ok_result_ = (expression);                                                        \
    ASSERT_TRUE(ok_result_.has_value()) << #expression << ": " << ok_result_.error().to_string(); \
  } while (false)

}  // namespace sluice::storage::test
