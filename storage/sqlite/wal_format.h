// SQLite's write-ahead log file (https://sqlite.org/walformat.html, section 1; wal.c's opening comment).
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/errors.h"
#include "storage/ids.h"

namespace sluice::sqlite {

inline constexpr std::size_t kWalHeaderSize = 32;
inline constexpr std::size_t kWalFrameHeaderSize = 24;
inline constexpr std::uint32_t kWalMagicLittle = 0x377f0682;  ///< checksums over little-endian words
inline constexpr std::uint32_t kWalMagicBig = 0x377f0683;
inline constexpr std::uint32_t kWalVersion = 3007000;

/// The two running 32-bit sums of WAL and wal-index.
struct WalChecksum {
  std::uint32_t s0 = 0;
  std::uint32_t s1 = 0;
  bool operator==(const WalChecksum&) const = default;
};

/// Adds `data` (a multiple of 8 bytes, else CHECK) to `sum`, words read big-endian or little-endian.
WalChecksum wal_checksum(bool big_endian_words, ByteView data, WalChecksum sum);

/// Salts exactly as the eight bytes in the file (not as integers), so that wal-index and WAL compare by memcmp.
struct Salts {
  std::uint32_t raw0 = 0;  ///< bytes 0-3 as loaded natively
  std::uint32_t raw1 = 0;
  bool operator==(const Salts&) const = default;
};

struct WalHeader {
  bool big_endian_checksums = false;
  std::uint32_t page_size = 0;
  std::uint32_t checkpoint_sequence = 0;
  Salts salts;
  WalChecksum checksum;  ///< of the header's first 24 bytes: where frame 1's chain starts
};

struct FrameHeader {
  std::uint32_t pgno = 0;
  std::uint32_t commit = 0;  ///< database size in pages if this frame ends a transaction, else 0
  Salts salts;
  WalChecksum checksum;
  /// SQLite before the fix of savepoint rollback over a spilled page leaves such frames committed with bytes 8…23
  /// zero; only a live wal-index vouches for them.
  bool zero_salt = false;
};

/// Errc::corrupt unless magic, version, page size and checksum are right. Needs kWalHeaderSize bytes.
Result<WalHeader> parse_wal_header(ByteView in);
void write_wal_header(const WalHeader& header, ByteSpan out);  ///< computes and stores the checksum
/// Only splits the 24 bytes; verifies nothing.
FrameHeader parse_frame_header(ByteView in);
/// Checksum of a frame: first 8 header bytes and the page, continued from the frame before.
WalChecksum frame_checksum(bool big_endian_words, ByteView frame_header, ByteView page, WalChecksum previous);
/// Writes a 24-byte frame header with its checksum and returns the checksum for the next.
WalChecksum write_frame_header(std::uint32_t pgno, std::uint32_t commit, const WalHeader& wal, ByteView page,
                               WalChecksum previous, ByteSpan out);

/// File offset of frame `frame` (from 1).
constexpr std::uint64_t frame_offset(std::uint32_t page_size, std::uint32_t frame) {
  return kWalHeaderSize + std::uint64_t{frame - 1} * (page_size + kWalFrameHeaderSize);
}

/// Where a reader stands in a WAL. nCkpt changes can reuse the same salts for a new frame 1, so salts and frame alone do
/// not name a position; the running checksum does.
struct WalPosition {
  Salts salts;
  std::uint32_t frame = 0;  ///< frames consumed
  WalChecksum checksum;     ///< running checksum after `frame` (of the header when 0)
  bool operator==(const WalPosition&) const = default;
};

}  // namespace sluice::sqlite
