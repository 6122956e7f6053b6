// What the tests of the LTX codecs share: deterministic pages, and encoding to memory.
#pragma once

#include <gtest/gtest.h>

#include <map>

#include "storage/ltx/decoder.h"
#include "storage/ltx/encoder.h"

namespace sluice::ltx::test {

using Pages = std::map<std::uint32_t, Bytes>;

/// Half text, half noise; different for every (pgno, seed).
inline Bytes make_page(std::uint32_t page_size, std::uint32_t pgno, std::uint64_t seed) {
  Bytes page(page_size);
  std::uint64_t x = seed * 0x9e3779b97f4a7c15u + pgno * 0xbf58476d1ce4e5b9u + 1;
  for (std::uint32_t i = 0; i < page_size; ++i) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    page[i] = i < page_size / 2 ? static_cast<std::byte>("row of text "[i % 12] + static_cast<char>(pgno % 3))
                                : static_cast<std::byte>(x);
  }
  return page;
}

inline Checksum database_checksum(const Pages& pages) {
  Checksum sum = kEmptyChecksum;
  for (const auto& [pgno, page] : pages) sum = toggle(sum, page_checksum(Pgno(pgno), page));
  return sum;
}

inline Header make_header(std::uint32_t page_size, std::uint32_t commit, std::uint64_t min,
                          std::uint64_t max) {
  Header header;
  header.page_size = page_size;
  header.commit = commit;
  header.min_txid = Txid(min);
  header.max_txid = Txid(max);
  header.timestamp_ms = 1'700'000'000'123;
  header.pre_apply_checksum = min == 1 ? 0 : 0x8000'1234'5678'9abcu;
  header.node_id = 0x1122'3344'5566'7788u;
  return header;
}

inline Result<Bytes> encode(const Header& header, const Pages& pages, Checksum post) {
  Bytes image;
  Encoder encoder;
  TRY(encoder.begin(header, [&](ByteView piece) -> Result<void> {
    image.insert(image.end(), piece.begin(), piece.end());
    return {};
  }));
  for (const auto& [pgno, page] : pages) TRY(encoder.add_page(Pgno(pgno), page));
  TRY(encoder.finish(post));
  return image;
}

struct DecodedImage {
  Decoded summary;
  Pages pages;
};

inline Result<DecodedImage> decode_all(ByteView image) {
  DecodedImage result;
  TRY_ASSIGN(result.summary,
             decode(memory_source(image), image.size(), [&](Pgno pgno, ByteView page) -> Result<void> {
               EXPECT_TRUE(result.pages.emplace(pgno.value(), Bytes(page.begin(), page.end())).second);
               return {};
             }));
  return result;
}

}  // namespace sluice::ltx::test
