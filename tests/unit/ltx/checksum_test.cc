#include "storage/ltx/checksum.h"

#include <gtest/gtest.h>

namespace sluice::ltx {
namespace {

/// Bit by bit, from the polynomial: what ISA-L must agree with.
std::uint64_t reference_crc64(ByteView data) {
  std::uint64_t crc = ~std::uint64_t{0};
  for (const std::byte b : data) {
    crc ^= static_cast<std::uint64_t>(b);
    for (int bit = 0; bit < 8; ++bit) crc = (crc & 1) != 0 ? crc >> 1 ^ 0xD800000000000000u : crc >> 1;
  }
  return ~crc;
}

std::uint64_t crc64(ByteView data) {
  Crc64 crc;
  crc.update(data);
  return crc.value();
}

TEST(LtxChecksum, HasTheCheckValueOfCrc64Iso) {
  EXPECT_EQ(crc64(as_bytes("123456789")), 0xb90956c775a41001u);
}

TEST(LtxChecksum, AgreesWithTheBitwiseDefinitionAtEveryLengthAndSplit) {
  Bytes data(300);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<std::byte>(i * 37 + i / 7);
  for (std::size_t n = 0; n <= data.size(); ++n) {
    const ByteView part(data.data(), n);
    ASSERT_EQ(crc64(part), reference_crc64(part)) << n;
    Crc64 split;
    split.update(part.first(n / 3));
    split.update(part.subspan(n / 3));
    ASSERT_EQ(split.value(), reference_crc64(part)) << n;
  }
}

TEST(LtxChecksum, PageChecksumCoversTheBigEndianPageNumberAndTheContent) {
  const Bytes page(512, std::byte{0x5a});
  Bytes numbered(4 + page.size());
  store_be<std::uint32_t>(numbered.data(), 0x102);
  std::memcpy(numbered.data() + 4, page.data(), page.size());
  EXPECT_EQ(page_checksum(Pgno(0x102), page).value(), (std::uint64_t{1} << 63) | reference_crc64(numbered));
}

TEST(LtxChecksum, TogglingTwiceIsNothingAndTheFlagBitStays) {
  const Checksum a = page_checksum(Pgno(1), Bytes(512));
  const Checksum b = page_checksum(Pgno(2), Bytes(512));
  const Checksum both = toggle(toggle(kEmptyChecksum, a), b);
  EXPECT_EQ(both, toggle(toggle(kEmptyChecksum, b), a));
  EXPECT_NE(both.value() & kEmptyChecksum.value(), 0u);
  EXPECT_EQ(toggle(toggle(both, a), b), kEmptyChecksum);
}

TEST(LtxChecksumDeathTest, TogglingAnUnknownChecksumIsABug) {
  EXPECT_DEATH(toggle(kEmptyChecksum, Checksum{}), "page != Checksum");
}

}  // namespace
}  // namespace sluice::ltx
