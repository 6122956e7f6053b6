#include "base/bytes.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(Bytes, ByteOrderOfEveryWidth) {
  Bytes b(9);
  store_be<std::uint32_t>(&b[1], 0x01020304);  // unaligned on purpose
  EXPECT_EQ(b[1], std::byte{1});
  EXPECT_EQ(b[4], std::byte{4});
  EXPECT_EQ(load_be<std::uint32_t>(&b[1]), 0x01020304u);
  EXPECT_EQ(load_le<std::uint32_t>(&b[1]), 0x04030201u);
  store_le<std::uint32_t>(&b[1], 0x01020304);
  EXPECT_EQ(b[1], std::byte{4});
  store_be<std::uint16_t>(&b[1], 0xabcd);
  EXPECT_EQ(load_be<std::uint16_t>(&b[1]), 0xabcd);
  EXPECT_EQ(load_le<std::uint16_t>(&b[1]), 0xcdab);
  store_be<std::uint64_t>(&b[1], 0x0102030405060708);
  EXPECT_EQ(b[1], std::byte{1});
  EXPECT_EQ(b[8], std::byte{8});
  EXPECT_EQ(load_be<std::uint64_t>(&b[1]), 0x0102030405060708u);
  EXPECT_EQ(b[0], std::byte{0});
}

TEST(Bytes, TextAndBytes) {
  const std::string_view text("ab\0c", 4);
  EXPECT_EQ(as_bytes(text).size(), 4u);
  EXPECT_EQ(as_text(as_bytes(text)), text);
}

TEST(Bytes, AllZero) {
  Bytes b(100);
  EXPECT_TRUE(all_zero(b));
  EXPECT_TRUE(all_zero({}));
  for (std::size_t i = 0; i < b.size(); ++i) {
    b[i] = std::byte{1};
    EXPECT_FALSE(all_zero(b)) << i;
    b[i] = std::byte{0};
  }
}

}  // namespace
}  // namespace sluice
