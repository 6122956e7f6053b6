// Looks at WAL files of real SQLite with the code under test.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "storage/sqlite/wal_reader.h"
#include "tests/unit/sqlite/memory_file.h"

namespace sluice::test {

inline std::string insert_rows(int first, int count, int bytes) {
  return "WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM c WHERE i+1<" + std::to_string(count) +
         ") INSERT INTO t SELECT i+" + std::to_string(first) + ", randomblob(" + std::to_string(bytes) +
         ") FROM c;";
}

struct ScanEnd {
  std::uint32_t frame = 0;
  std::string error;
};
/// Last committed frame, 0 with the error's text if there is no valid header.
inline ScanEnd scan_bytes(const Bytes& bytes) {
  const MemoryFile file(bytes);
  const auto header = sqlite::read_wal_header(file);
  if (header.has_error()) return {0, header.error().to_string()};
  const auto scan = sqlite::scan_wal(file, *header, {header->salts, 0, header->checksum},
                                     [](const sqlite::ScannedFrame&) -> Result<void> { return {}; });
  if (scan.has_error()) return {0, scan.error().to_string()};
  return {scan->end.frame, ""};
}

/// A WAL that must have a valid header, with its committed frames.
struct ScannedWal {
  explicit ScannedWal(Bytes content) : bytes(std::move(content)) {
    const MemoryFile file(bytes);
    const auto head = sqlite::read_wal_header(file);
    EXPECT_TRUE(head.has_value()) << head.error().to_string();
    if (head.has_error()) return;
    header = *head;
    const auto result = sqlite::scan_wal(file, header, {header.salts, 0, header.checksum},
                                         [&](const sqlite::ScannedFrame& frame) -> Result<void> {
                                           frames.push_back(frame);
                                           return {};
                                         });
    EXPECT_TRUE(result.has_value());
    if (result.has_value()) scan = *result;
  }

  ByteView page(const sqlite::ScannedFrame& frame) const {
    return ByteView(bytes).subspan(sqlite::frame_offset(header.page_size, frame.frame) + 24,
                                   header.page_size);
  }
  std::size_t commits() const {
    std::size_t n = 0;
    for (const auto& frame : frames) n += frame.commit != 0;
    return n;
  }
  /// Writes the committed frames into a database image.
  void apply(Bytes& database) const {
    for (const auto& frame : frames) {
      const std::size_t end = std::size_t{frame.pgno} * header.page_size;
      if (database.size() < end) database.resize(end);
      const ByteView content = page(frame);
      std::copy(content.begin(), content.end(),
                database.begin() + static_cast<std::ptrdiff_t>(end - content.size()));
    }
    database.resize(std::size_t{scan.commit} * header.page_size);
  }
  /// The same transactions, written anew with the given checksum byte order.
  Bytes reencoded(bool big_endian) const {
    sqlite::WalHeader head = header;
    head.big_endian_checksums = big_endian;
    Bytes out(sqlite::kWalHeaderSize);
    sqlite::write_wal_header(head, out);
    sqlite::WalChecksum sum = sqlite::parse_wal_header(out)->checksum;
    for (const auto& frame : frames) {
      std::array<std::byte, sqlite::kWalFrameHeaderSize> bytes_of_head{};
      const ByteView content = page(frame);
      sum = sqlite::write_frame_header(frame.pgno, frame.commit, head, content, sum, bytes_of_head);
      out.insert(out.end(), bytes_of_head.begin(), bytes_of_head.end());
      out.insert(out.end(), content.begin(), content.end());
    }
    return out;
  }

  Bytes bytes;
  sqlite::WalHeader header;
  sqlite::WalScan scan;
  std::vector<sqlite::ScannedFrame> frames;
};

}  // namespace sluice::test
