#include "storage/sqlite/wal_format.h"

#include <gtest/gtest.h>

#include "tests/unit/sqlite/builders.h"

namespace sluice::sqlite {
namespace {

using test::pattern_page;
using test::WalBuilder;

// wal.c's definition, word by word.
WalChecksum reference_checksum(bool big_endian, ByteView data, WalChecksum sum) {
  for (std::size_t i = 0; i < data.size(); i += 8) {
    const auto word = [&](std::size_t at) {
      std::uint32_t v = 0;
      for (std::size_t k = 0; k < 4; ++k) {
        const auto b = std::to_integer<std::uint32_t>(data[at + k]);
        v |= b << (big_endian ? 24 - 8 * k : 8 * k);
      }
      return v;
    };
    sum.s0 += word(i) + sum.s1;
    sum.s1 += word(i + 4) + sum.s0;
  }
  return sum;
}

TEST(WalChecksum, MatchesTheDefinitionAtEveryLengthAndAlignment) {
  const Bytes data = pattern_page(4096, 3);
  for (const bool big_endian : {false, true}) {
    for (std::size_t start = 0; start < 9; ++start) {
      for (std::size_t length = 0; length <= 200; length += 8) {
        const ByteView view = ByteView(data).subspan(start, length);
        const WalChecksum from{0x12345678, 0x9abcdef0};
        EXPECT_EQ(wal_checksum(big_endian, view, from), reference_checksum(big_endian, view, from))
            << start << " " << length;
      }
    }
  }
}

TEST(WalChecksum, ContinuesWhereItStopped) {
  const Bytes data = pattern_page(1024, 9);
  for (std::size_t split = 0; split <= data.size(); split += 8) {
    const auto head = wal_checksum(true, ByteView(data).first(split), {});
    EXPECT_EQ(wal_checksum(true, ByteView(data).subspan(split), head), wal_checksum(true, data, {}));
  }
}

TEST(WalChecksum, ByteOrderMatters) {
  const Bytes data = pattern_page(64, 1);
  EXPECT_NE(wal_checksum(true, data, {}), wal_checksum(false, data, {}));
}

TEST(WalChecksumDeathTest, LengthIsAMultipleOfEight) {
  const Bytes data(12);
  EXPECT_DEATH((void)wal_checksum(false, data, {}), "CHECK failed");
}

TEST(WalHeader, ReadsBothByteOrders) {
  for (const bool big_endian : {false, true}) {
    const WalBuilder wal(8192, big_endian, 0xaabbccdd, 0x11223344);
    const auto header = parse_wal_header(wal.bytes);
    ASSERT_TRUE(header.has_value()) << header.error().to_string();
    EXPECT_EQ(header->big_endian_checksums, big_endian);
    EXPECT_EQ(header->page_size, 8192u);
    EXPECT_EQ(header->checkpoint_sequence, 7u);
    EXPECT_EQ(std::memcmp(&header->salts, wal.bytes.data() + 16, 8), 0);
    EXPECT_EQ(header->checksum, (WalChecksum{wal.s0, wal.s1}));
    Bytes again(kWalHeaderSize);
    write_wal_header(*header, again);
    EXPECT_EQ(again, wal.bytes);
  }
}

TEST(WalHeader, AnyChangedBitIsNoticed) {
  const WalBuilder wal(512, false);
  for (std::size_t bit = 0; bit < kWalHeaderSize * 8; ++bit) {
    Bytes bytes = wal.bytes;
    bytes[bit / 8] ^= static_cast<std::byte>(1u << (bit % 8));
    const auto header = parse_wal_header(bytes);
    ASSERT_FALSE(header.has_value()) << bit;
    EXPECT_EQ(header.error().code, Errc::corrupt);
  }
  for (std::size_t size = 0; size < kWalHeaderSize; ++size) {
    EXPECT_EQ(parse_wal_header(ByteView(wal.bytes).first(size)).error().code, Errc::corrupt);
  }
}

TEST(WalHeader, PageSizeIsCheckedEvenWithARightChecksum) {
  for (const std::uint32_t size : {0u, 1u, 256u, 513u, 131072u, 0x80000000u}) {
    const WalBuilder wal(size, false);
    EXPECT_EQ(parse_wal_header(wal.bytes).error().code, Errc::corrupt) << size;
  }
}

TEST(WalFrame, WritesWhatTheFormatSays) {
  for (const bool big_endian : {false, true}) {
    WalBuilder wal(1024, big_endian);
    const auto header = parse_wal_header(wal.bytes);
    ASSERT_TRUE(header.has_value());
    WalChecksum sum = header->checksum;
    for (std::uint32_t i = 1; i <= 5; ++i) {
      const Bytes page = pattern_page(1024, i);
      wal.frame(i * 3, i == 5 ? 15 : 0, page);
      Bytes head(kWalFrameHeaderSize);
      sum = write_frame_header(i * 3, i == 5 ? 15 : 0, *header, page, sum, head);
      const ByteView expected = ByteView(wal.bytes).subspan(frame_offset(1024, i), kWalFrameHeaderSize);
      EXPECT_TRUE(std::equal(head.begin(), head.end(), expected.begin(), expected.end())) << i;
      const FrameHeader parsed = parse_frame_header(expected);
      EXPECT_EQ(parsed.pgno, i * 3);
      EXPECT_EQ(parsed.commit, i == 5 ? 15u : 0u);
      EXPECT_EQ(parsed.salts, header->salts);
      EXPECT_EQ(parsed.checksum, sum);
      EXPECT_FALSE(parsed.zero_salt);
    }
  }
}

TEST(WalFrame, ZeroSaltFrame) {
  Bytes head(kWalFrameHeaderSize);
  store_be<std::uint32_t>(head.data(), 9);
  EXPECT_TRUE(parse_frame_header(head).zero_salt);
  for (std::size_t i = 8; i < 24; ++i) {
    Bytes other = head;
    other[i] = std::byte{1};
    EXPECT_FALSE(parse_frame_header(other).zero_salt) << i;
  }
}

TEST(WalFrame, Offsets) {
  EXPECT_EQ(frame_offset(4096, 1), 32u);
  EXPECT_EQ(frame_offset(4096, 2), 32u + 4120u);
  EXPECT_EQ(frame_offset(65536, 0xffffffff), 32u + std::uint64_t{0xfffffffe} * 65560u);
}

}  // namespace
}  // namespace sluice::sqlite
