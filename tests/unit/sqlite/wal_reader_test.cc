#include "storage/sqlite/wal_reader.h"

#include <gtest/gtest.h>

#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace sluice::sqlite {
namespace {

using test::MemoryFile;
using test::WalBuilder;

struct Scanned {
  WalScan scan;
  std::vector<ScannedFrame> frames;
};

Scanned scan(const MemoryFile& file, const WalHeader& header, const WalPosition& start) {
  Scanned out;
  const auto result = scan_wal(file, header, start, [&](const ScannedFrame& frame) -> Result<void> {
    out.frames.push_back(frame);
    return {};
  });
  EXPECT_TRUE(result.has_value()) << result.error().to_string();
  if (result.has_value()) out.scan = *result;
  return out;
}

Scanned scan_all(const Bytes& bytes) {
  const MemoryFile file(bytes);
  const auto header = read_wal_header(file);
  EXPECT_TRUE(header.has_value());
  return scan(file, *header, {header->salts, 0, header->checksum});
}

TEST(ReadWalHeader, EmptyAndZeroFilesHaveNone) {
  const WalBuilder wal(512, false);
  for (std::size_t size = 0; size < kWalHeaderSize; ++size) {
    Bytes bytes = wal.bytes;
    bytes.resize(size);
    EXPECT_EQ(read_wal_header(MemoryFile(bytes)).error().code, Errc::not_found) << size;
  }
  EXPECT_EQ(read_wal_header(MemoryFile(Bytes(5000))).error().code, Errc::not_found);
  EXPECT_TRUE(read_wal_header(MemoryFile(wal.bytes)).has_value());
  Bytes bad = wal.bytes;
  bad[20] ^= std::byte{4};
  const auto error = read_wal_header(MemoryFile(bad)).error();
  EXPECT_EQ(error.code, Errc::corrupt);
  EXPECT_NE(error.message.find("memory"), std::string::npos) << "names the file: " << error.message;
}

TEST(ScanWal, VisitsCommittedFramesInOrder) {
  for (const bool big_endian : {false, true}) {
    WalBuilder wal(512, big_endian);
    wal.frame(1, 0).frame(2, 0).frame(5, 5).frame(2, 6).frame(9, 0).frame(3, 0);
    const Scanned got = scan_all(wal.bytes);
    ASSERT_EQ(got.frames.size(), 4u);
    const std::vector<std::uint32_t> pages = {1, 2, 5, 2};
    const std::vector<std::uint32_t> commits = {0, 0, 5, 6};
    for (std::uint32_t i = 0; i < 4; ++i) {
      EXPECT_EQ(got.frames[i].frame, i + 1);
      EXPECT_EQ(got.frames[i].pgno, pages[i]);
      EXPECT_EQ(got.frames[i].commit, commits[i]);
    }
    EXPECT_EQ(got.scan.end.frame, 4u);
    EXPECT_EQ(got.scan.commit, 6u);
    EXPECT_EQ(got.scan.valid_frames, 6u);
    const FrameHeader last = parse_frame_header(ByteView(wal.bytes).subspan(wal.at(4)));
    EXPECT_EQ(got.scan.end.checksum, last.checksum);
  }
}

TEST(ScanWal, GoesOnFromAPosition) {
  WalBuilder wal(1024, false);
  wal.frame(1, 1).frame(2, 0).frame(3, 3).frame(1, 3);
  const MemoryFile file(wal.bytes);
  const auto header = read_wal_header(file);
  ASSERT_TRUE(header.has_value());
  const WalPosition begin{header->salts, 0, header->checksum};
  const WalPosition end = scan(file, *header, begin).scan.end;
  ASSERT_EQ(end.frame, 4u);

  const Scanned none = scan(file, *header, end);
  EXPECT_EQ(none.scan.end, end) << "nothing new: the position stays";
  EXPECT_EQ(none.scan.commit, 0u);
  EXPECT_EQ(none.scan.valid_frames, 4u);
  EXPECT_TRUE(none.frames.empty());

  wal.frame(7, 0).frame(8, 8);
  const Scanned more = scan(MemoryFile(wal.bytes), *header, end);
  ASSERT_EQ(more.frames.size(), 2u);
  EXPECT_EQ(more.frames[0].frame, 5u);
  EXPECT_EQ(more.frames[1].commit, 8u);
  EXPECT_EQ(more.scan.end.frame, 6u);

  WalPosition wrong_sum = end;
  wrong_sum.checksum.s1 ^= 1;
  EXPECT_TRUE(scan(MemoryFile(wal.bytes), *header, wrong_sum).frames.empty());
  WalPosition other_generation = end;
  other_generation.salts.raw0 ^= 1;
  const auto refused =
      scan_wal(file, *header, other_generation, [](const ScannedFrame&) -> Result<void> { return {}; });
  EXPECT_EQ(refused.error().code, Errc::position);
}

TEST(ScanWal, EveryTruncationEndsAtTheLastWholeTransaction) {
  WalBuilder wal(512, false);
  wal.frame(1, 1).frame(2, 0).frame(3, 3).frame(4, 4);
  const std::size_t frame = 536;
  for (std::size_t size = 32; size <= wal.bytes.size(); ++size) {
    Bytes bytes = wal.bytes;
    bytes.resize(size);
    const std::size_t whole = (size - 32) / frame;
    const std::uint32_t committed = whole == 2 ? 1 : static_cast<std::uint32_t>(whole);
    const Scanned got = scan_all(bytes);
    ASSERT_EQ(got.scan.end.frame, committed) << size;
    ASSERT_EQ(got.frames.size(), committed) << size;
    ASSERT_EQ(got.scan.valid_frames, whole) << size;
  }
}

TEST(ScanWal, AnyChangedByteEndsTheChain) {
  WalBuilder wal(512, true);
  wal.frame(1, 1).frame(2, 0).frame(3, 3).frame(4, 4);
  for (std::size_t at = wal.at(2); at < wal.bytes.size(); ++at) {
    Bytes bytes = wal.bytes;
    bytes[at] ^= std::byte{0x40};
    const auto damaged = static_cast<std::uint32_t>((at - 32) / 536) + 1;
    const std::uint32_t committed = damaged == 4 ? 3 : 1;
    const Scanned got = scan_all(bytes);
    ASSERT_EQ(got.scan.end.frame, committed) << at;
    ASSERT_EQ(got.scan.valid_frames, damaged - 1) << at;
  }
}

TEST(ScanWal, OldGenerationAndZeroSaltFramesEndTheChain) {
  WalBuilder old(512, false, 1, 2);
  for (std::uint32_t i = 1; i <= 10; ++i) old.frame(i, i);
  WalBuilder fresh(512, false, 2, 99);
  fresh.frame(1, 3).frame(2, 3);
  Bytes bytes = fresh.bytes;
  test::append(bytes, ByteView(old.bytes).subspan(old.at(3)));
  EXPECT_EQ(scan_all(bytes).scan.end.frame, 2u);

  WalBuilder zero(512, false);
  zero.frame(1, 1).frame(2, 2).frame(3, 3);
  std::memset(zero.bytes.data() + zero.at(2) + 8, 0, 16);
  EXPECT_EQ(scan_all(zero.bytes).scan.end.frame, 1u);
  EXPECT_EQ(scan_all(zero.bytes).scan.valid_frames, 1u);
}

TEST(ScanWal, PageNumberZeroEndsTheChain) {
  WalBuilder wal(512, false);
  wal.frame(1, 1).frame(0, 2).frame(2, 2);
  EXPECT_EQ(scan_all(wal.bytes).scan.end.frame, 1u);
}

TEST(ScanWal, LongTransactionsAcrossPieces) {
  for (const std::uint32_t page_size : {512u, 4096u, 65536u}) {
    WalBuilder wal(page_size, false);
    const std::uint32_t frames = page_size == 65536 ? 70 : 5 * (1u << 20) / page_size / 2;
    for (std::uint32_t i = 1; i <= frames; ++i) wal.frame(i, i == frames ? frames : 0);
    wal.frame(1, 0);
    MemoryFile file(wal.bytes);
    const auto header = read_wal_header(file);
    ASSERT_TRUE(header.has_value());
    const Scanned got = scan(file, *header, {header->salts, 0, header->checksum});
    EXPECT_EQ(got.scan.end.frame, frames);
    EXPECT_EQ(got.frames.size(), frames);
    EXPECT_EQ(got.frames.back().commit, frames);
    EXPECT_EQ(got.scan.valid_frames, frames + 1);
    EXPECT_LE(file.largest_read(), std::size_t{1} << 20);
  }
}

TEST(ScanWal, ErrorsOfTheVisitorAndTheFileComeBack) {
  WalBuilder wal(512, false);
  wal.frame(1, 1).frame(2, 2);
  MemoryFile file(wal.bytes);
  const auto header = read_wal_header(file);
  ASSERT_TRUE(header.has_value());
  const WalPosition begin{header->salts, 0, header->checksum};
  int visits = 0;
  const auto stop = [&](const ScannedFrame&) -> Result<void> {
    ++visits;
    return make_error(Errc::cancelled, "stop");
  };
  EXPECT_EQ(scan_wal(file, *header, begin, stop).error().code, Errc::cancelled);
  EXPECT_EQ(visits, 1);
  file.fail_reads();
  EXPECT_EQ(scan_wal(file, *header, begin, stop).error().code, Errc::io);
  EXPECT_EQ(read_wal_header(file).error().code, Errc::io);
}

}  // namespace
}  // namespace sluice::sqlite
