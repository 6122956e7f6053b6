#include "storage/sqlite/wal_copy.h"

#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"
#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace sluice::sqlite {
namespace {

using sluice::test::MemoryFile;
using sluice::test::TempDir;
using sluice::test::WalBuilder;

constexpr std::uint32_t kPage = 512;

// The header that a writer publishes after `frame`.
WalIndexHeader published(const WalBuilder& wal, std::uint32_t frame) {
  const FrameHeader last = parse_frame_header(ByteView(wal.bytes).subspan(wal.at(frame), kWalFrameHeaderSize));
  WalIndexHeader header;
  header.mx_frame = frame;
  header.frame_checksum = last.checksum;
  header.salts = last.salts;
  return header;
}

Bytes copy(const WalBuilder& wal, std::uint32_t frames) {
  const TempDir dir;
  MemoryFile from(wal.bytes);
  auto to = real_file_system().open(dir.file("copy"), {.write = true, .create = true});
  EXPECT_TRUE(to.has_value());
  const auto header = read_wal_header(from);
  EXPECT_TRUE(header.has_value());
  const auto copied = copy_committed(from, *header, frames, **to);
  EXPECT_TRUE(copied.has_value()) << copied.error().message;
  const auto all = read_file(real_file_system(), dir.file("copy"), 16 << 20);
  EXPECT_TRUE(all.has_value());
  return *all;
}

TEST(WalCopy, TheIndexSaysWhatIsPublishedTheChainWhatIsComplete) {
  WalBuilder wal(kPage, false);
  wal.frame(1, 0).frame(2, 2).frame(1, 2).frame(2, 0);
  MemoryFile file(wal.bytes);
  const WalIndexHeader index = published(wal, 2);
  const auto cut = find_committed(file, &index);
  ASSERT_TRUE(cut.has_value());
  EXPECT_FALSE(cut->empty);
  EXPECT_TRUE(cut->index_counts);
  EXPECT_EQ(cut->published, 2u);
  EXPECT_EQ(cut->complete, 3u);  // frame 4 belongs to a transaction that has no end
}

TEST(WalCopy, AnIndexOfAnotherWalDoesNotCount) {
  WalBuilder wal(kPage, true);
  wal.frame(1, 1).frame(1, 1);
  MemoryFile file(wal.bytes);
  WalIndexHeader other = published(wal, 2);
  other.salts.raw1 ^= 1;
  WalIndexHeader overwritten = published(wal, 1);
  overwritten.frame_checksum.s0 ^= 1;
  for (const WalIndexHeader* index : {&other, &overwritten, static_cast<WalIndexHeader*>(nullptr)}) {
    const auto cut = find_committed(file, index);
    ASSERT_TRUE(cut.has_value());
    EXPECT_FALSE(cut->index_counts);
    EXPECT_EQ(cut->published, 0u);
    EXPECT_EQ(cut->complete, 2u);
  }
}

TEST(WalCopy, WithoutAHeaderNothingIsThere) {
  for (const Bytes& bytes : {Bytes(), Bytes(100)}) {
    MemoryFile file(bytes);
    const auto cut = find_committed(file, nullptr);
    ASSERT_TRUE(cut.has_value());
    EXPECT_TRUE(cut->empty);
    EXPECT_EQ(cut->complete, 0u);
  }
}

TEST(WalCopy, CopiesFramesAsTheyAre) {
  for (const bool big_endian : {false, true}) {
    WalBuilder wal(kPage, big_endian);
    for (std::uint32_t n = 1; n <= 5000; ++n) wal.frame(n % 7 + 1, 7);
    const Bytes whole = copy(wal, 5000);
    EXPECT_EQ(whole, wal.bytes);
    Bytes part = wal.bytes;
    part.resize(wal.at(3001));
    EXPECT_EQ(copy(wal, 3000), part);
  }
}

// SQLite's savepoint bug leaves committed frames without salt and checksum, and goes on behind them from nothing.
TEST(WalCopy, GivesFramesWithoutSaltWhatTheyShouldHaveHad) {
  WalBuilder wal(kPage, false);
  wal.frame(1, 2).frame(2, 0);
  const std::size_t unsalted = wal.at(2);
  wal.s0 = wal.s1 = 0;
  wal.frame(1, 2).frame(2, 2);
  for (std::size_t i = 8; i < 24; ++i) wal.bytes[unsalted + i] = std::byte{0};
  MemoryFile broken(wal.bytes);
  ASSERT_EQ(find_committed(broken, nullptr)->complete, 1u);
  const WalIndexHeader index = published(wal, 4);
  ASSERT_EQ(find_committed(broken, &index)->published, 4u);

  const Bytes copied = copy(wal, 4);
  MemoryFile whole(copied);
  EXPECT_EQ(find_committed(whole, nullptr)->complete, 4u);
  for (std::uint32_t frame = 1; frame <= 4; ++frame) {
    const std::size_t page = wal.at(frame) + kWalFrameHeaderSize;
    EXPECT_TRUE(std::equal(&copied[page], &copied[page] + kPage, &wal.bytes[page])) << frame;
  }
}

TEST(WalCopy, RefusesADamagedFrame) {
  WalBuilder wal(kPage, false);
  wal.frame(1, 1).frame(1, 1);
  wal.bytes[wal.at(1) + 100] ^= std::byte{1};
  const TempDir dir;
  MemoryFile from(wal.bytes);
  auto to = real_file_system().open(dir.file("copy"), {.write = true, .create = true});
  const auto copied = copy_committed(from, *read_wal_header(from), 2, **to);
  ASSERT_TRUE(copied.has_error());
  EXPECT_EQ(copied.error().code, Errc::corrupt);
}

TEST(WalIndexPoison, KeepsWhatTheHeaderSaysAndIsNoSQLiteVersion) {
  Bytes index(kWalIndexBlockSize);
  WalIndexHeader header;
  header.mx_frame = 17;
  header.salts = {3, 4};
  publish_header(index.data(), header);
  poison_header(index.data());
  WalIndexHeader read;
  ASSERT_EQ(read_header(index.data(), read), HeaderState::valid);
  EXPECT_EQ(read.version, kPoisonedVersion);
  EXPECT_EQ(read.mx_frame, 17u);
  EXPECT_EQ(read.salts, header.salts);
  std::fill(index.begin(), index.end(), std::byte{0});
  poison_header(index.data());
  ASSERT_EQ(read_header(index.data(), read), HeaderState::valid);
  EXPECT_EQ(read.mx_frame, 0u);
}

}  // namespace
}  // namespace sluice::sqlite
