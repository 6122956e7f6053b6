// WAL files of real SQLite, undamaged and damaged: scan_wal must see exactly what SQLite's recovery sees.
#include <gtest/gtest.h>

#include <filesystem>

#include "storage/sqlite/database_header.h"
#include "storage/sqlite/wal_reader.h"
#include "tests/golden/sqlite_process.h"
#include "tests/golden/wal_support.h"

namespace sluice::test {
namespace {

using namespace sqlite;

class WalGolden : public testing::TestWithParam<std::uint32_t> {
 protected:
  // Some transactions of different shapes; nothing is checkpointed.
  static void write_some(SqliteProcess& db, std::uint32_t page_size) {
    db.sql("PRAGMA page_size=" + std::to_string(page_size) +
           "; PRAGMA journal_mode=WAL; PRAGMA wal_autocheckpoint=0;");
    db.sql("CREATE TABLE t(a INTEGER PRIMARY KEY, b); CREATE INDEX i ON t(b);");
    db.sql(insert_rows(1, 60, 400));
    db.sql("UPDATE t SET b=randomblob(700) WHERE a%3=0;");
    db.sql("BEGIN; DELETE FROM t WHERE a>30; INSERT INTO t VALUES(1000, zeroblob(100000)); COMMIT;");
    db.sql("BEGIN; PRAGMA cache_size=5; UPDATE t SET b=randomblob(900); COMMIT;");
    db.sql("DELETE FROM t WHERE a=1000;");
    db.sql("VACUUM;");
    db.sql(insert_rows(2000, 3, 10));
  }

  TempDir dir_;
  const std::string path_ = dir_.path("a.db");
  const std::string copy_ = dir_.path("b.db");
};

// What a checkpoint by SQLite makes of the copied files.
Bytes checkpointed(const std::string& path, std::uint32_t expected_frames) {
  SqliteProcess db(path);
  EXPECT_EQ(db.value("PRAGMA integrity_check"), "ok");
  EXPECT_EQ(db.recovered(), expected_frames);
  EXPECT_EQ(db.value("PRAGMA wal_checkpoint(TRUNCATE)").substr(0, 2), "0|");
  db.close();
  return read_bytes(path);
}

TEST_P(WalGolden, FramesMakeTheDatabaseThatSQLiteMakes) {
  SqliteProcess db(path_);
  write_some(db, GetParam());
  copy_files(path_, copy_, {"", "-wal"});
  const ScannedWal wal(read_bytes(copy_ + "-wal"));
  EXPECT_EQ(wal.header.page_size, GetParam());
  EXPECT_FALSE(wal.header.big_endian_checksums);
  EXPECT_GE(wal.commits(), 8u);
  EXPECT_EQ(wal.scan.valid_frames, wal.scan.end.frame);
  EXPECT_EQ(wal.bytes.size(), frame_offset(GetParam(), wal.scan.end.frame + 1));

  Bytes ours = read_bytes(copy_);
  wal.apply(ours);
  const auto header = parse_database_header(ours);
  ASSERT_TRUE(header.has_value()) << header.error().to_string();
  EXPECT_EQ(header->page_size, GetParam());
  EXPECT_TRUE(header->is_wal());
  EXPECT_TRUE(header->count_valid());
  EXPECT_EQ(header->pages(0), wal.scan.commit);
  EXPECT_EQ(ours, checkpointed(copy_, wal.scan.end.frame));
}

TEST_P(WalGolden, BigEndianChecksums) {
  SqliteProcess db(path_);
  write_some(db, GetParam());
  copy_files(path_, copy_, {""});
  const ScannedWal little(read_bytes(path_ + "-wal"));
  const Bytes encoded = little.reencoded(true);
  const ScannedWal big{Bytes(encoded)};
  EXPECT_TRUE(big.header.big_endian_checksums);
  EXPECT_EQ(big.scan.end.frame, little.scan.end.frame);
  write_bytes(copy_ + "-wal", encoded);

  SqliteProcess other(copy_);
  EXPECT_EQ(other.value("PRAGMA integrity_check"), "ok");
  EXPECT_EQ(other.recovered(), little.scan.end.frame) << "SQLite accepts our checksums";
  other.sql("PRAGMA wal_autocheckpoint=0; " + insert_rows(5000, 5, 50));
  const ScannedWal more(read_bytes(copy_ + "-wal"));
  EXPECT_TRUE(more.header.big_endian_checksums);
  EXPECT_GT(more.scan.end.frame, little.scan.end.frame) << "and we SQLite's";
  EXPECT_EQ(more.commits(), little.commits() + 1);
}

TEST_P(WalGolden, ReencodingIsTheIdentity) {
  SqliteProcess db(path_);
  write_some(db, GetParam());
  const ScannedWal wal(read_bytes(path_ + "-wal"));
  EXPECT_EQ(wal.reencoded(false), wal.bytes);
}

TEST_P(WalGolden, RestartedWalEndsWhereTheOldGenerationBegins) {
  SqliteProcess db(path_);
  write_some(db, GetParam());
  const ScannedWal before(read_bytes(path_ + "-wal"));
  db.sql("PRAGMA wal_checkpoint(RESTART);");
  db.sql(insert_rows(7000, 2, 20));
  const ScannedWal after(read_bytes(path_ + "-wal"));
  EXPECT_EQ(after.bytes.size(), before.bytes.size()) << "old frames are still in the file";
  EXPECT_LT(after.scan.end.frame, before.scan.end.frame);
  EXPECT_EQ(after.commits(), 1u);
  EXPECT_NE(after.header.salts, before.header.salts);
  EXPECT_EQ(byte_swap(after.header.salts.raw0), byte_swap(before.header.salts.raw0) + 1);
  EXPECT_EQ(after.header.checkpoint_sequence, before.header.checkpoint_sequence + 1);
  copy_files(path_, copy_, {"", "-wal"});
  Bytes ours = read_bytes(copy_);
  after.apply(ours);
  EXPECT_EQ(ours, checkpointed(copy_, after.scan.end.frame));
}

INSTANTIATE_TEST_SUITE_P(PageSize, WalGolden,
                         testing::Values(512, 1024, 2048, 4096, 8192, 16384, 32768, 65536));

// Each damage is shown to SQLite too.
class WalDamage : public WalGolden {
 protected:
  void expect_same(const std::string& what, const Bytes& damaged) {
    const std::string path = dir_.path("damaged.db");
    copy_files(path_, path, {""});
    write_bytes(path + "-wal", damaged);
    std::filesystem::remove(path + "-shm");
    SqliteProcess db(path);
    db.sql("PRAGMA journal_mode;");
    const auto ours = scan_bytes(damaged);
    EXPECT_EQ(ours.frame, db.recovered()) << what << " (" << ours.error << ")";
  }
};

TEST_P(WalDamage, ScanEndsWhereRecoveryEnds) {
  SqliteProcess db(path_);
  write_some(db, GetParam());
  const ScannedWal wal(read_bytes(path_ + "-wal"));
  const std::uint32_t frames = wal.scan.end.frame;
  expect_same("undamaged", wal.bytes);
  for (const std::size_t size : {std::size_t{0}, std::size_t{31}, std::size_t{32}, std::size_t{33}}) {
    expect_same("short file",
                Bytes(wal.bytes.begin(), wal.bytes.begin() + static_cast<std::ptrdiff_t>(size)));
  }
  std::uint32_t seed = GetParam();
  const auto random = [&](std::size_t below) {
    seed = seed * 1664525u + 1013904223u;
    return seed / 7 % below;
  };
  for (int i = 0; i < 10; ++i) {
    Bytes cut = wal.bytes;
    cut.resize(wal.bytes.size() / 2 + random(wal.bytes.size() / 2));
    expect_same("cut at " + std::to_string(cut.size()), cut);
    Bytes flipped = wal.bytes;
    const std::size_t at = random(wal.bytes.size());
    flipped[at] ^= std::byte{0x20};
    expect_same("bit flipped at " + std::to_string(at), flipped);
    Bytes salted = wal.bytes;
    const auto frame = static_cast<std::uint32_t>(random(frames) + 1);
    const auto offset = static_cast<std::size_t>(frame_offset(GetParam(), frame));
    salted[offset + 8 + random(8)] ^= std::byte{1};
    expect_same("salt of frame " + std::to_string(frame), salted);
    Bytes zeroed = wal.bytes;
    std::memset(&zeroed[offset + 8], 0, 16);
    expect_same("zero salt and checksum in frame " + std::to_string(frame), zeroed);
  }
  for (std::size_t at = 0; at < kWalHeaderSize; ++at) {
    if (at >= 4 && at < 8) continue;  // the version: see below
    Bytes header = wal.bytes;
    header[at] ^= std::byte{1};
    expect_same("header byte " + std::to_string(at), header);
  }
}

TEST_P(WalDamage, SavepointRollbackOverSpilledPages) {
  SqliteProcess db(path_);
  write_some(db, GetParam());
  db.sql(
      "PRAGMA cache_size=3; BEGIN; UPDATE t SET b=randomblob(1000); SAVEPOINT s; UPDATE t SET "
      "b=randomblob(1200); "
      "ROLLBACK TO s; UPDATE t SET b=randomblob(300) WHERE a<5; COMMIT;");
  expect_same("savepoint", read_bytes(path_ + "-wal"));
}

INSTANTIATE_TEST_SUITE_P(PageSize, WalDamage, testing::Values(512, 4096));

}  // namespace
}  // namespace sluice::test
