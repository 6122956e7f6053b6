// The committed golden files (data/make_data.py), and the byte tables of docs/FORMATS.md against the code.
#include <gtest/gtest.h>

#include <cstddef>
#include <filesystem>

#include "storage/sqlite/database_header.h"
#include "storage/sqlite/journal.h"
#include "storage/sqlite/wal_index.h"
#include "tests/golden/sqlite_process.h"
#include "tests/golden/wal_support.h"

namespace sluice::test {
namespace {

using namespace sqlite;

Bytes golden(const std::string& name) {
  return read_bytes(std::string(SLUICE_GOLDEN_DATA) + "/" + name);
}

Salts salts(std::uint32_t s0, std::uint32_t s1) {
  return {byte_swap(s0), byte_swap(s1)};
}

TEST(GoldenData, DatabaseHeaders) {
  const auto wal = parse_database_header(golden("t.db"));
  ASSERT_TRUE(wal.has_value());
  EXPECT_EQ(wal->page_size, 512u);
  EXPECT_TRUE(wal->is_wal());
  EXPECT_EQ(wal->pages(0), 2u);
  const auto rollback = parse_database_header(golden("j.db"));
  ASSERT_TRUE(rollback.has_value());
  EXPECT_FALSE(rollback->is_wal());
  EXPECT_EQ(rollback->pages(0), 14u);
}

TEST(GoldenData, LittleEndianWal) {
  const ScannedWal wal(golden("t.db-wal"));
  EXPECT_FALSE(wal.header.big_endian_checksums);
  EXPECT_EQ(wal.header.page_size, 512u);
  EXPECT_EQ(wal.header.checkpoint_sequence, 0u);
  EXPECT_EQ(wal.header.salts, salts(0x0e74272f, 0x8dc327fe));
  EXPECT_EQ(wal.header.checksum, (WalChecksum{0x03f27721, 0xb9f41253}));
  ASSERT_EQ(wal.frames.size(), 4u);
  const std::vector<std::pair<std::uint32_t, std::uint32_t>> expected = {{2, 2}, {2, 2}, {1, 0}, {3, 3}};
  for (std::size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(wal.frames[i].pgno, expected[i].first) << i;
    EXPECT_EQ(wal.frames[i].commit, expected[i].second) << i;
  }
  EXPECT_EQ(wal.scan.end.checksum, (WalChecksum{0x46660097, 0xe1660c15}));
  EXPECT_EQ(wal.scan.commit, 3u);
}

TEST(GoldenData, BigEndianWal) {
  const ScannedWal little(golden("t.db-wal"));
  const ScannedWal big(golden("t-big.wal"));
  EXPECT_TRUE(big.header.big_endian_checksums);
  EXPECT_EQ(big.header.checksum, (WalChecksum{0x2478f206, 0x5914f3bd}));
  EXPECT_EQ(big.scan.end.frame, 4u);
  EXPECT_EQ(big.scan.end.checksum, (WalChecksum{0x7598d7f1, 0x8db1139f}));
  EXPECT_EQ(little.reencoded(true), big.bytes);
  EXPECT_EQ(big.reencoded(false), little.bytes);
}

TEST(GoldenData, WalIndex) {
  struct alignas(4096) Block {
    std::array<std::byte, kWalIndexBlockSize> bytes{};
  } block;
  const Bytes shm = golden("t.db-shm");
  ASSERT_EQ(shm.size(), kWalIndexBlockSize);
  std::copy(shm.begin(), shm.end(), block.bytes.begin());
  const ScannedWal wal(golden("t.db-wal"));
  WalIndexHeader header;
  ASSERT_EQ(read_header(block.bytes.data(), header), HeaderState::valid);
  EXPECT_EQ(header.change, 3u);
  EXPECT_EQ(header.page_size(), 512u);
  EXPECT_EQ(header.mx_frame, 4u);
  EXPECT_EQ(header.page_count, 3u);
  EXPECT_EQ(header.salts, wal.header.salts);
  EXPECT_EQ(header.frame_checksum, wal.scan.end.checksum);
  for (std::uint32_t i = 0; i < 4; ++i) EXPECT_EQ(frame_page(block.bytes.data(), i + 1), wal.frames[i].pgno);
  EXPECT_FALSE(frame_slot_used(block.bytes.data(), 5));
  const CheckpointInfo info = read_checkpoint_info(block.bytes.data());
  EXPECT_EQ(info.backfilled, 0u);
  EXPECT_EQ(info.read_marks,
            (std::array<std::uint32_t, 5>{0, 2, kReadMarkNotUsed, kReadMarkNotUsed, kReadMarkNotUsed}));
  Block ours;
  for (std::uint32_t i = 0; i < 4; ++i) {
    ASSERT_TRUE(append_frame(ours.bytes.data(), i + 1, wal.frames[i].pgno).has_value());
  }
  publish_header(ours.bytes.data(), header);
  for (unsigned i = 1; i < 5; ++i) store_read_mark(ours.bytes.data(), i, info.read_marks[i]);
  EXPECT_EQ(ours.bytes, block.bytes);
}

TEST(GoldenData, Journal) {
  const MemoryFile journal(golden("j.db-journal"));
  std::vector<std::uint32_t> pages;
  const auto summary = scan_journal(journal, [&](Pgno pgno) { pages.push_back(pgno.value()); });
  ASSERT_TRUE(summary.has_value());
  EXPECT_EQ(summary->first.nonce, 0xd2bba9bdu);
  EXPECT_EQ(summary->first.original_pages, 14u);
  EXPECT_EQ(summary->first.sector_size, 512u);
  EXPECT_EQ(summary->first.page_size, 512u);
  EXPECT_EQ(summary->first.record_count, 1u);
  EXPECT_EQ(summary->segments, 11u);
  EXPECT_EQ(summary->records, 11u);
  EXPECT_EQ(summary->super_journal, "");
}

// FORMATS.md
std::string documentation() {
  const std::string docs = SLUICE_DOCS;
  for (const char* name : {"/FORMATS.md"}) {
    if (!std::filesystem::exists(docs + name)) continue;
    std::string text(as_text(read_bytes(docs + name)));
    if (text.find("SQLite files we read and write") != std::string::npos) return text;
  }
  ADD_FAILURE() << "no documentation of SQLite's files in " << docs;
  return {};
}

TEST(GoldenData, DocumentedTablesAreWhatTheCodeDoes) {
  const std::string text = documentation();
  const auto expect_row = [&](std::size_t offset, std::size_t size, const std::string& field) {
    const std::string row = "| " + std::to_string(offset) + " | " + std::to_string(size) + " | " + field;
    EXPECT_NE(text.find(row), std::string::npos) << row;
  };
  expect_row(offsetof(WalIndexHeader, version), 4, "iVersion " + std::to_string(kWalIndexVersion));
  expect_row(offsetof(WalIndexHeader, change), 4, "iChange");
  expect_row(offsetof(WalIndexHeader, is_init), 1, "isInit");
  expect_row(offsetof(WalIndexHeader, big_endian_checksums), 1, "bigEndCksum");
  expect_row(offsetof(WalIndexHeader, page_size_code), 2, "szPage");
  expect_row(offsetof(WalIndexHeader, mx_frame), 4, "mxFrame");
  expect_row(offsetof(WalIndexHeader, page_count), 4, "nPage");
  expect_row(offsetof(WalIndexHeader, frame_checksum), 8, "aFrameCksum");
  expect_row(offsetof(WalIndexHeader, salts), 8, "aSalt");
  expect_row(offsetof(WalIndexHeader, checksum), 8, "aCksum");
  expect_row(sizeof(WalIndexHeader), 48, "header, second copy");
  expect_row(static_cast<std::size_t>(ShmLock::write), 8, "lock bytes");
  for (const std::string& fact :
       {std::to_string(kFirstBlockFrames) + " in block 0", std::to_string(kBlockFrames) + " in later blocks",
        std::to_string(kWalIndexHeaderSize) + " bytes above", std::string("PENDING byte 0x40000000"),
        std::string("A ") + std::to_string(kWalHeaderSize) + "-byte header, then frames of " +
            std::to_string(kWalFrameHeaderSize) + " + page size bytes",
        "first " + std::to_string(kDatabaseHeaderSize) + " bytes",
        "zeros over its first " + std::to_string(kJournalHeaderSize) + " bytes"}) {
    EXPECT_NE(text.find(fact), std::string::npos) << fact;
  }
}

}  // namespace
}  // namespace sluice::test
