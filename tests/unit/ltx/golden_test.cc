// Vectors by two encoders that are not ours: golden/make_vectors.py (byte-exact) and golden/official (the LTX
// library that Litestream uses).
#include <gtest/gtest.h>

#include "base/os.h"
#include "tests/unit/ltx/ltx_support.h"

namespace sluice::ltx::test {
namespace {

Bytes load(const std::string& name) {
  const auto bytes = read_file(real_file_system(), std::string(LTX_GOLDEN_DIR) + "/" + name, 1 << 20);
  EXPECT_TRUE(bytes.has_value()) << name;
  return bytes.has_value() ? *bytes : Bytes{};
}

/// make_vectors.py's noise_page.
Bytes noise_page(std::uint32_t pgno, std::uint64_t seed) {
  Bytes page(512);
  std::uint64_t x = pgno * std::uint64_t{2654435761} + seed;
  for (std::byte& b : page) {
    x = x * 6364136223846793005u + 1442695040888963407u;
    b = static_cast<std::byte>(x >> 56);
  }
  return page;
}

/// official/main.go's textPage.
Bytes text_page(std::uint32_t pgno, std::uint32_t seed) {
  Bytes page(4096);
  for (std::uint32_t i = 0; i < 4096; ++i) {
    const auto letter = static_cast<std::uint32_t>("a row of text, "[i % 15]);
    page[i] = static_cast<std::byte>(i % 97 == 0 ? i / 97 : letter + pgno + seed);
  }
  return page;
}

Header python_header(std::uint32_t commit, std::uint64_t min, std::uint64_t max) {
  Header header;
  header.page_size = 512;
  header.commit = commit;
  header.min_txid = Txid(min);
  header.max_txid = Txid(max);
  header.timestamp_ms = 1700000000123;
  return header;
}

void expect_exact(const std::string& name, const Header& header, const Pages& pages, Checksum post) {
  const Bytes golden = load(name);
  const auto decoded = decode_all(golden);
  ASSERT_TRUE(decoded.has_value()) << name << ": " << decoded.error().to_string();
  EXPECT_EQ(decoded->summary.header, header) << name;
  EXPECT_EQ(decoded->summary.trailer.post_apply_checksum, post.value()) << name;
  EXPECT_EQ(decoded->pages, pages) << name;
  const auto encoded = encode(header, pages, post);
  ASSERT_TRUE(encoded.has_value()) << name << ": " << encoded.error().to_string();
  EXPECT_EQ(*encoded, golden) << name;
}

TEST(LtxGolden, Snapshot) {
  Header header = python_header(3, 1, 1);
  header.node_id = 0xabcdef;
  const Pages pages{{1, noise_page(1, 1)}, {2, noise_page(2, 1)}, {3, noise_page(3, 1)}};
  expect_exact("python-snapshot.ltx", header, pages, database_checksum(pages));
}

TEST(LtxGolden, ChangesWithWalFields) {
  Header header = python_header(300, 2, 4);
  header.pre_apply_checksum = 0x8000000000fedcbau;
  header.wal_offset = 32;
  header.wal_size = 1072;
  header.wal_salt1 = 0xa1a2a3a4;
  header.wal_salt2 = 0xb1b2b3b4;
  header.node_id = 0xabcdef;
  expect_exact("python-changes.ltx", header, {{2, noise_page(2, 2)}, {300, noise_page(300, 2)}},
               Checksum(0x8123456789abcdefu));
}

TEST(LtxGolden, Deletion) {
  Header header = python_header(0, 5, 5);
  header.page_size = 4096;
  header.pre_apply_checksum = 0x8123456789abcdefu;
  expect_exact("python-delete.ltx", header, {}, kEmptyChecksum);
}

TEST(LtxGolden, WithoutChecksums) {
  Header header = python_header(3, 2, 2);
  header.flags = kFlagNoChecksum;
  expect_exact("python-nochecksum.ltx", header, {{2, noise_page(2, 2)}}, Checksum{});
}

TEST(LtxGolden, OfficialLibrarysSnapshot) {
  const auto decoded = decode_all(load("official-snapshot.ltx"));
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  Pages pages;
  for (std::uint32_t pgno = 1; pgno <= 4; ++pgno) pages[pgno] = text_page(pgno, 0);
  EXPECT_EQ(decoded->pages, pages);
  EXPECT_EQ(decoded->summary.header.max_txid, Txid(3));
  EXPECT_EQ(decoded->summary.header.node_id, 7u);
  EXPECT_EQ(decoded->summary.trailer.post_apply_checksum, database_checksum(pages).value());
}

TEST(LtxGolden, OfficialLibrarysChanges) {
  const auto decoded = decode_all(load("official-changes.ltx"));
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_EQ(decoded->pages, (Pages{{2, text_page(2, 1)}, {5, text_page(5, 1)}}));
  EXPECT_EQ(decoded->summary.header.min_txid, Txid(4));
  EXPECT_EQ(decoded->summary.trailer.post_apply_checksum, kEmptyChecksum.value() | 99);
}

}  // namespace
}  // namespace sluice::ltx::test
