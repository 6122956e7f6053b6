// WAL and journal images made by hand, byte for byte by the format's description and not with the code under
// test.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace sluice::test {

/// A page whose bytes depend on `seed`.
inline Bytes pattern_page(std::uint32_t page_size, std::uint32_t seed) {
  Bytes page(page_size);
  std::uint32_t x = seed * 2654435761u + 1;
  for (auto& b : page) {
    x = x * 1664525u + 1013904223u;
    b = static_cast<std::byte>(x >> 24);
  }
  return page;
}

inline void append(Bytes& out, ByteView more) {
  out.insert(out.end(), more.begin(), more.end());
}
inline void append_be32(Bytes& out, std::uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(static_cast<std::byte>(v >> shift));
}

class WalBuilder {
 public:
  WalBuilder(std::uint32_t page_size, bool big_endian, std::uint32_t salt0 = 0x01020304,
             std::uint32_t salt1 = 0x05060708)
      : page_size_(page_size), big_endian_(big_endian), salt0_(salt0), salt1_(salt1) {
    append_be32(bytes, big_endian ? 0x377f0683 : 0x377f0682);
    append_be32(bytes, 3007000);
    append_be32(bytes, page_size);
    append_be32(bytes, 7);
    append_be32(bytes, salt0);
    append_be32(bytes, salt1);
    add_sums(ByteView(bytes));
  }

  WalBuilder& frame(std::uint32_t pgno, std::uint32_t commit, ByteView page) {
    Bytes head;
    append_be32(head, pgno);
    append_be32(head, commit);
    sum(head);
    sum(page);
    append_be32(head, salt0_);
    append_be32(head, salt1_);
    append_be32(head, s0);
    append_be32(head, s1);
    append(bytes, head);
    append(bytes, page);
    return *this;
  }
  WalBuilder& frame(std::uint32_t pgno, std::uint32_t commit) {
    return frame(pgno, commit,
                 pattern_page(page_size_, pgno * 31 + static_cast<std::uint32_t>(bytes.size())));
  }
  /// Offset of frame `n` (from 1).
  std::size_t at(std::uint32_t n) const { return 32 + std::size_t{n - 1} * (24 + page_size_); }

  Bytes bytes;
  std::uint32_t s0 = 0, s1 = 0;

 private:
  void sum(ByteView data) {
    for (std::size_t i = 0; i < data.size(); i += 8) {
      s0 += word(&data[i]) + s1;
      s1 += word(&data[i + 4]) + s0;
    }
  }
  std::uint32_t word(const std::byte* p) const {
    return big_endian_ ? load_be<std::uint32_t>(p) : load_le<std::uint32_t>(p);
  }
  void add_sums(ByteView data) {
    sum(data);
    append_be32(bytes, s0);
    append_be32(bytes, s1);
  }

  std::uint32_t page_size_;
  bool big_endian_;
  std::uint32_t salt0_, salt1_;
};

class JournalBuilder {
 public:
  JournalBuilder(std::uint32_t page_size, std::uint32_t sector_size, std::uint32_t original_pages)
      : page_size_(page_size), sector_size_(sector_size), original_pages_(original_pages) {}

  /// Starts a segment at the next sector.
  JournalBuilder& header(std::uint32_t record_count, std::uint32_t nonce) {
    bytes.resize((bytes.size() + sector_size_ - 1) / sector_size_ * sector_size_);
    const std::size_t start = bytes.size();
    for (const unsigned v : {0xd9u, 0xd5u, 0x05u, 0xf9u, 0x20u, 0xa1u, 0x63u, 0xd7u})
      bytes.push_back(static_cast<std::byte>(v));
    append_be32(bytes, record_count);
    append_be32(bytes, nonce);
    append_be32(bytes, original_pages_);
    append_be32(bytes, sector_size_);
    append_be32(bytes, page_size_);
    if (sector_size_ > 28) bytes.resize(start + sector_size_);
    nonce_ = nonce;
    return *this;
  }
  JournalBuilder& record(std::uint32_t pgno, ByteView page) {
    append_be32(bytes, pgno);
    append(bytes, page);
    std::uint32_t sum = nonce_;
    for (int i = static_cast<int>(page_size_) - 200; i > 0; i -= 200)
      sum += std::to_integer<std::uint32_t>(page[static_cast<std::size_t>(i)]);
    append_be32(bytes, sum);
    return *this;
  }
  JournalBuilder& record(std::uint32_t pgno) { return record(pgno, pattern_page(page_size_, pgno)); }
  JournalBuilder& super_journal(const std::string& name) {
    append_be32(bytes, 0x40000000 / page_size_ + 1);
    append(bytes, as_bytes(name));
    append_be32(bytes, static_cast<std::uint32_t>(name.size()));
    std::uint32_t sum = 0;
    for (const char c : name) sum += static_cast<std::uint32_t>(static_cast<signed char>(c));
    append_be32(bytes, sum);
    for (const unsigned v : {0xd9u, 0xd5u, 0x05u, 0xf9u, 0x20u, 0xa1u, 0x63u, 0xd7u})
      bytes.push_back(static_cast<std::byte>(v));
    return *this;
  }

  Bytes bytes;

 private:
  std::uint32_t page_size_, sector_size_, original_pages_;
  std::uint32_t nonce_ = 0;
};

}  // namespace sluice::test
