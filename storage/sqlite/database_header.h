// The 100-byte header of a SQLite database file (https://sqlite.org/fileformat2.html, section 1.3).
#pragma once

#include <cstdint>
#include <string_view>

#include "base/bytes.h"
#include "base/errors.h"
#include "storage/ids.h"

namespace sluice::sqlite {

inline constexpr std::size_t kDatabaseHeaderSize = 100;
inline constexpr std::string_view kMagic{"SQLite format 3\0", 16};

struct DatabaseHeader {
  std::uint32_t page_size = 0;     ///< bytes
  std::uint8_t write_version = 0;  ///< 1 rollback journal, 2 WAL
  std::uint8_t read_version = 0;
  std::uint8_t reserved_bytes = 0;
  std::uint32_t change_counter = 0;
  std::uint32_t page_count = 0;         ///< the header's own count; trust it only when count_valid()
  std::uint32_t version_valid_for = 0;  ///< change counter at which page_count was written
  std::uint32_t auto_vacuum_root = 0;
  std::uint32_t sqlite_version = 0;

  bool is_wal() const { return read_version == 2; }
  bool count_valid() const { return page_count != 0 && change_counter == version_valid_for; }
  /// Size in pages: the header's count when valid, else from the file's size.
  std::uint32_t pages(std::uint64_t file_size) const {
    return count_valid() ? page_count : static_cast<std::uint32_t>(file_size / page_size);
  }
};

/// True when `in` begins with SQLite's magic string.
bool looks_like_database(ByteView in);
/// Errc::corrupt: shorter than 100 bytes, wrong magic, impossible page size, versions over 2, payload fractions that are
/// not 64/32/32, reserved bytes that leave less than 480 of a page.
Result<DatabaseHeader> parse_database_header(ByteView in);

}  // namespace sluice::sqlite
