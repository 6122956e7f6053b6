// LTX version 3 with block-compressed pages: header, trailer, limits. All integers big-endian. Byte tables and a worked
// example stand in docs/FORMATS.md.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/errors.h"
#include "storage/ids.h"

namespace sluice::ltx {

inline constexpr std::size_t kHeaderSize = 100;
inline constexpr std::size_t kTrailerSize = 16;
inline constexpr std::size_t kPageHeaderSize = 6;  ///< u32 pgno, u16 flags
inline constexpr std::uint32_t kFlagNoChecksum = 0x2;
inline constexpr std::uint16_t kPageFlagSized = 0x1;  ///< u32 compressed size and an LZ4 block follow

struct Header {
  std::uint32_t flags = 0;
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;  ///< database size in pages after this change set
  Txid min_txid;
  Txid max_txid;
  std::int64_t timestamp_ms = 0;
  std::uint64_t pre_apply_checksum = 0;
  std::int64_t wal_offset = 0;
  std::int64_t wal_size = 0;
  std::uint32_t wal_salt1 = 0;
  std::uint32_t wal_salt2 = 0;
  std::uint64_t node_id = 0;

  bool is_snapshot() const { return min_txid == Txid(1); }
  bool no_checksum() const { return (flags & kFlagNoChecksum) != 0; }
  bool operator==(const Header&) const = default;
};

struct Trailer {
  std::uint64_t post_apply_checksum = 0;
  std::uint64_t file_checksum = 0;
};

/// The specification's Header.Validate; Errc::corrupt with the broken rule.
Result<void> validate(const Header& header);
void write_header(const Header& header, ByteSpan out);  ///< out.size() == kHeaderSize
Result<Header> parse_header(ByteView in);               ///< at least kHeaderSize bytes; validates
void write_trailer(const Trailer& trailer, ByteSpan out);
Trailer parse_trailer(ByteView in);

/// "MinTXID-MaxTXID.ltx", 16 lower-case hex digits each.
std::string file_name(Txid min, Txid max);

}  // namespace sluice::ltx
