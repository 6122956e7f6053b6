#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/ltx/ltx_support.h"

namespace sluice::ltx::test {
namespace {

Header full_header() {
  Header h = make_header(4096, 77, 5, 9);
  h.wal_offset = 32;
  h.wal_size = 4120;
  h.wal_salt1 = 0xa1a2a3a4;
  h.wal_salt2 = 0xb1b2b3b4;
  return h;
}

TEST(LtxFormat, HeaderRoundTrip) {
  std::byte bytes[kHeaderSize];
  write_header(full_header(), bytes);
  const auto parsed = parse_header(bytes);
  ASSERT_TRUE(parsed.has_value()) << parsed.error().to_string();
  EXPECT_EQ(*parsed, full_header());
}

TEST(LtxFormat, FieldsStandWhereTheSpecificationPutsThem) {
  std::byte b[kHeaderSize];
  write_header(full_header(), b);
  EXPECT_EQ(as_text(ByteView(b, 4)), "LTX1");
  EXPECT_EQ(load_be<std::uint32_t>(b + 4), 0u);
  EXPECT_EQ(load_be<std::uint32_t>(b + 8), 4096u);
  EXPECT_EQ(load_be<std::uint32_t>(b + 12), 77u);
  EXPECT_EQ(load_be<std::uint64_t>(b + 16), 5u);
  EXPECT_EQ(load_be<std::uint64_t>(b + 24), 9u);
  EXPECT_EQ(load_be<std::uint64_t>(b + 32), 1'700'000'000'123u);
  EXPECT_EQ(load_be<std::uint64_t>(b + 40), 0x8000123456789abcu);
  EXPECT_EQ(load_be<std::uint64_t>(b + 48), 32u);
  EXPECT_EQ(load_be<std::uint64_t>(b + 56), 4120u);
  EXPECT_EQ(load_be<std::uint32_t>(b + 64), 0xa1a2a3a4u);
  EXPECT_EQ(load_be<std::uint32_t>(b + 68), 0xb1b2b3b4u);
  EXPECT_EQ(load_be<std::uint64_t>(b + 72), 0x1122334455667788u);
  EXPECT_TRUE(all_zero(ByteView(b, kHeaderSize).subspan(80)));
}

struct BrokenRule {
  const char* message;
  void (*apply)(Header&);
};

class LtxHeaderRule : public testing::TestWithParam<BrokenRule> {};

TEST_P(LtxHeaderRule, IsRefusedByNameInBothDirections) {
  Header h = full_header();
  GetParam().apply(h);
  const auto valid = validate(h);
  ASSERT_TRUE(valid.has_error());
  EXPECT_EQ(valid.error().code, Errc::corrupt);
  EXPECT_THAT(valid.error().message, testing::HasSubstr(GetParam().message));

  std::byte bytes[kHeaderSize];
  write_header(h, bytes);
  EXPECT_TRUE(parse_header(bytes).has_error());

  Encoder encoder;
  const auto begun = encoder.begin(h, [](ByteView) -> Result<void> { return {}; });
  ASSERT_TRUE(begun.has_error());
  EXPECT_EQ(begun.error().code, Errc::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(
    All, LtxHeaderRule,
    testing::Values(
        BrokenRule{"unknown flags 0x1", [](Header& h) { h.flags = 1; }},
        BrokenRule{"unknown flags 0x80000000", [](Header& h) { h.flags = 0x80000000u; }},
        BrokenRule{"page size 0", [](Header& h) { h.page_size = 0; }},
        BrokenRule{"page size 256", [](Header& h) { h.page_size = 256; }},
        BrokenRule{"page size 4097", [](Header& h) { h.page_size = 4097; }},
        BrokenRule{"page size 131072", [](Header& h) { h.page_size = 131072; }},
        BrokenRule{"minimum TXID is zero", [](Header& h) { h.min_txid = Txid(0); }},
        BrokenRule{"maximum TXID is below", [](Header& h) { h.max_txid = Txid(4); }},
        BrokenRule{"WAL offset is negative", [](Header& h) { h.wal_offset = -1; }},
        BrokenRule{"WAL size is negative", [](Header& h) { h.wal_size = -1; }},
        BrokenRule{"WAL salts without",
                   [](Header& h) {
                     h.wal_offset = 0;
                     h.wal_size = 0;
                   }},
        BrokenRule{"WAL size without",
                   [](Header& h) {
                     h.wal_offset = 0;
                     h.wal_salt1 = 0;
                     h.wal_salt2 = 0;
                   }},
        BrokenRule{"a snapshot has a pre-apply", [](Header& h) { h.min_txid = Txid(1); }},
        BrokenRule{"pre-apply checksum where the flags", [](Header& h) { h.flags = kFlagNoChecksum; }},
        BrokenRule{"is missing or lacks its flag", [](Header& h) { h.pre_apply_checksum = 0; }},
        BrokenRule{"is missing or lacks its flag", [](Header& h) { h.pre_apply_checksum = 0x1234; }}));

TEST(LtxFormat, ParseRefusesShortInputMagicAndReservedBytes) {
  std::byte bytes[kHeaderSize];
  write_header(full_header(), bytes);
  EXPECT_EQ(parse_header(ByteView(bytes, kHeaderSize - 1)).error().code, Errc::corrupt);
  std::byte magic[kHeaderSize];
  std::memcpy(magic, bytes, kHeaderSize);
  magic[3] = std::byte{'2'};
  EXPECT_THAT(parse_header(magic).error().message, testing::HasSubstr("magic"));
  for (std::size_t i = 80; i < kHeaderSize; ++i) {
    std::byte reserved[kHeaderSize];
    std::memcpy(reserved, bytes, kHeaderSize);
    reserved[i] = std::byte{1};
    EXPECT_THAT(parse_header(reserved).error().message, testing::HasSubstr("reserved")) << i;
  }
}

TEST(LtxFormat, FileName) {
  EXPECT_EQ(file_name(Txid(1), Txid(0xabcdef)), "0000000000000001-0000000000abcdef.ltx");
}

TEST(LtxFormat, TrailerRoundTrip) {
  std::byte bytes[kTrailerSize];
  write_trailer({0x8000000000000001u, 0x8000000000000002u}, bytes);
  const Trailer t = parse_trailer(bytes);
  EXPECT_EQ(t.post_apply_checksum, 0x8000000000000001u);
  EXPECT_EQ(t.file_checksum, 0x8000000000000002u);
  EXPECT_EQ(std::to_integer<int>(bytes[0]), 0x80);
  EXPECT_EQ(std::to_integer<int>(bytes[7]), 1);
}

}  // namespace
}  // namespace sluice::ltx::test
