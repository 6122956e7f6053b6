// Bytes of the change log's segments: segment header, record header. All integers little-endian; byte tables
// and a worked example stand in docs/FORMATS.md. Used by change_log*.cc, its tests and its fuzzer.
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "base/errors.h"
#include "storage/change_log.h"

namespace sluice::storage::log_format {

inline constexpr std::size_t kSegmentHeaderSize = 192;
inline constexpr std::size_t kRecordHeaderSize = 128;
inline constexpr std::size_t kAlignment = 16;  ///< every record starts at a multiple of this
inline constexpr std::uint32_t kVersion = 1;

/// At the start of each segment file; written and synced before the file gets its name.
struct SegmentHeader {
  std::uint64_t generation = 0;  ///< grows with every base record: files of an older generation are leftovers
  std::uint64_t salt = 0;        ///< random; part of every record header's checksum
  Txid first;  ///< min TXID of the first record; of a base record its TXID. Also the file's name
  bool starts_with_base = false;
  /// The segment before, sealed and synced when this one was made; nothing for the first of a generation.
  struct Previous {
    Txid first;
    std::uint64_t end = 0;  ///< bytes of that file that hold records
    RecordInfo last;
  };
  std::optional<Previous> previous;
};

struct RecordHeader {
  RecordInfo info;
  std::uint64_t image_crc = 0;  ///< CRC-64/ISO of the image's bytes
  std::uint64_t durable_offset =
      0;  ///< everything before it in this file was synced when the record was written
};

void write_segment_header(const SegmentHeader& header, ByteSpan out);
/// Errc::corrupt; Errc::unsupported for another format version.
Result<SegmentHeader> parse_segment_header(ByteView in);

/// `offset`: of the record in its file; it is part of the checksum, so a copy elsewhere is no record.
void write_record_header(const RecordHeader& header, std::uint64_t salt, std::uint64_t offset, ByteSpan out);
/// nullopt unless the bytes are a record header written for this segment and offset.
std::optional<RecordHeader> parse_record_header(ByteView in, std::uint64_t salt, std::uint64_t offset);

constexpr std::uint64_t align_up(std::uint64_t n) {
  return (n + kAlignment - 1) & ~std::uint64_t{kAlignment - 1};
}
/// Offset after a record at `offset` with an image of `length` bytes.
constexpr std::uint64_t record_end(std::uint64_t offset, std::uint64_t length) {
  return align_up(offset + kRecordHeaderSize + length);
}

/// "<16 hex digits>.seg"
std::string segment_name(Txid first);
std::optional<Txid> parse_segment_name(std::string_view name);

}  // namespace sluice::storage::log_format
