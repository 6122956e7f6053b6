#include "storage/sqlite/database_header.h"

#include <gtest/gtest.h>

namespace sluice::sqlite {
namespace {

Bytes valid_header() {
  Bytes h(100);
  std::memcpy(h.data(), kMagic.data(), kMagic.size());
  h[16] = std::byte{0x10};  // 4096
  h[18] = std::byte{2};
  h[19] = std::byte{2};
  h[21] = std::byte{64};
  h[22] = std::byte{32};
  h[23] = std::byte{32};
  store_be<std::uint32_t>(&h[24], 77);
  store_be<std::uint32_t>(&h[28], 12);
  store_be<std::uint32_t>(&h[52], 5);
  store_be<std::uint32_t>(&h[92], 77);
  store_be<std::uint32_t>(&h[96], 3040001);
  return h;
}

TEST(DatabaseHeader, ReadsEveryField) {
  const auto header = parse_database_header(valid_header());
  ASSERT_TRUE(header.has_value()) << header.error().to_string();
  EXPECT_EQ(header->page_size, 4096u);
  EXPECT_EQ(header->write_version, 2);
  EXPECT_EQ(header->read_version, 2);
  EXPECT_TRUE(header->is_wal());
  EXPECT_EQ(header->change_counter, 77u);
  EXPECT_EQ(header->page_count, 12u);
  EXPECT_EQ(header->version_valid_for, 77u);
  EXPECT_EQ(header->auto_vacuum_root, 5u);
  EXPECT_EQ(header->sqlite_version, 3040001u);
  EXPECT_TRUE(header->count_valid());
  EXPECT_EQ(header->pages(4096 * 99), 12u);
}

TEST(DatabaseHeader, SizeComesFromTheFileWhenTheCountIsStale) {
  Bytes h = valid_header();
  store_be<std::uint32_t>(&h[92], 76);  // written by a SQLite before 3.7.0 since
  auto header = parse_database_header(h);
  ASSERT_TRUE(header.has_value());
  EXPECT_FALSE(header->count_valid());
  EXPECT_EQ(header->pages(4096 * 99 + 5), 99u);
  h = valid_header();
  store_be<std::uint32_t>(&h[28], 0);
  header = parse_database_header(h);
  ASSERT_TRUE(header.has_value());
  EXPECT_FALSE(header->count_valid());
}

TEST(DatabaseHeader, EveryPageSize) {
  for (std::uint32_t field = 0; field <= 0xffff; ++field) {
    Bytes h = valid_header();
    store_be<std::uint16_t>(&h[16], static_cast<std::uint16_t>(field));
    const auto header = parse_database_header(h);
    const bool possible = field == 1 || (field >= 512 && field <= 32768 && (field & (field - 1)) == 0);
    ASSERT_EQ(header.has_value(), possible) << field;
    if (possible) {
      EXPECT_EQ(header->page_size, field == 1 ? 65536u : field);
    } else {
      EXPECT_EQ(header.error().code, Errc::corrupt);
    }
  }
}

TEST(DatabaseHeader, RefusesWhatSQLiteRefuses) {
  const auto code = [](Bytes h) {
    const auto header = parse_database_header(h);
    return header.has_value() ? "accepted" : std::string(errc_name(header.error().code));
  };
  for (const std::size_t size : {0, 1, 15, 16, 99}) {
    Bytes h = valid_header();
    h.resize(size);
    EXPECT_EQ(code(h), "corrupt") << size;
  }
  for (std::size_t i = 0; i < 16; ++i) {
    Bytes h = valid_header();
    h[i] ^= std::byte{1};
    EXPECT_EQ(code(h), "corrupt") << i;
    EXPECT_FALSE(looks_like_database(h));
  }
  for (const std::size_t i : {18u, 19u, 21u, 22u, 23u}) {
    Bytes h = valid_header();
    h[i] = std::byte{3};
    EXPECT_EQ(code(h), "corrupt") << i;
  }
  Bytes h = valid_header();
  store_be<std::uint16_t>(&h[16], 512);
  h[20] = std::byte{32};
  EXPECT_EQ(code(h), "accepted");
  h[20] = std::byte{33};  // usable size under 480
  EXPECT_EQ(code(h), "corrupt");
}

TEST(DatabaseHeader, LooksLikeDatabase) {
  EXPECT_TRUE(looks_like_database(as_bytes(kMagic)));
  EXPECT_TRUE(looks_like_database(valid_header()));
  EXPECT_FALSE(looks_like_database(as_bytes(kMagic.substr(0, 15))));
  EXPECT_FALSE(looks_like_database({}));
}

}  // namespace
}  // namespace sluice::sqlite
