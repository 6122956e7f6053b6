// Rollback journals of real SQLite, copied while the transaction is open (what a killed process leaves),
// undamaged and damaged: scan_journal must see exactly the pages that SQLite's hot-journal rollback plays
// back.
#include <gtest/gtest.h>

#include <filesystem>
#include <set>

#include "storage/sqlite/database_header.h"
#include "storage/sqlite/journal.h"
#include "tests/golden/sqlite_process.h"
#include "tests/golden/wal_support.h"
#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace sluice::test {
namespace {

using namespace sqlite;

struct ScannedJournal {
  explicit ScannedJournal(const Bytes& bytes) {
    const auto result = scan_journal(MemoryFile(bytes), [&](Pgno pgno) { pages.insert(pgno.value()); });
    if (result.has_value()) {
      summary = *result;
    } else {
      error = result.error().to_string();
    }
  }
  JournalSummary summary;
  std::set<std::uint32_t> pages;
  std::string error;
};

// Pages in which two images of a database differ, up to the size of `before`.
std::set<std::uint32_t> changed_pages(const Bytes& before, const Bytes& after, std::uint32_t page_size) {
  std::set<std::uint32_t> out;
  for (std::size_t at = 0; at < before.size(); at += page_size) {
    if (at + page_size > after.size() || std::memcmp(&before[at], &after[at], page_size) != 0) {
      out.insert(static_cast<std::uint32_t>(at / page_size + 1));
    }
  }
  return out;
}

class JournalGolden : public testing::Test {
 protected:
  void create(SqliteProcess& db, const std::string& mode, std::uint32_t page_size) {
    db.sql("PRAGMA page_size=" + std::to_string(page_size) + "; PRAGMA journal_mode=" + mode +
           "; PRAGMA cache_size=5; PRAGMA synchronous=OFF;");
    db.sql("CREATE TABLE t(a INTEGER PRIMARY KEY, b); " +
           insert_rows(1, 80, static_cast<int>(page_size / 2)));
    db.sql("UPDATE t SET b=randomblob(length(b)) WHERE a<70;");  // leaves a long old journal in mode PERSIST
    db.sql("PRAGMA synchronous=FULL;");
  }
  // Copies the database and its journal to a place where nobody has them open.
  void copy_crashed(const std::string& suffix = "") {
    for (const char* old : {"-journal", "-wal", "-shm"}) std::filesystem::remove(copy_ + old);
    copy_files(path_ + suffix, copy_, {"", "-journal"});
  }
  // Lets SQLite roll back the copy; pages played back by its own count.
  std::uint32_t roll_back(Bytes& database) {
    SqliteProcess db(copy_);
    EXPECT_EQ(db.value("PRAGMA integrity_check"), "ok");
    db.close();
    database = read_bytes(copy_);
    return db.recovered();
  }
  void expect_same(const std::string& what, const Bytes& database, const Bytes& journal) {
    for (const char* old : {"-journal", "-wal", "-shm"}) std::filesystem::remove(copy_ + old);
    write_bytes(copy_, database);
    write_bytes(copy_ + "-journal", journal);
    SqliteProcess db(copy_);
    db.sql("PRAGMA schema_version;");
    const ScannedJournal ours(journal);
    EXPECT_EQ(ours.summary.records, db.recovered()) << what << " " << ours.error;
  }

  TempDir dir_;
  const std::string path_ = dir_.path("a.db");
  const std::string copy_ = dir_.path("b.db");
};

struct JournalCase {
  std::string mode;
  std::uint32_t page_size;
  std::string synchronous;
};

class JournalModes : public JournalGolden, public testing::WithParamInterface<JournalCase> {};

TEST_P(JournalModes, SpilledTransactionKilledMidway) {
  const JournalCase& c = GetParam();
  SqliteProcess db(path_);
  create(db, c.mode, c.page_size);
  const Bytes before = read_bytes(path_);
  db.sql("PRAGMA synchronous=" + c.synchronous + "; BEGIN; UPDATE t SET b=randomblob(length(b)); " +
         insert_rows(500, 20, 600));
  copy_crashed();
  const Bytes journal = read_bytes(copy_ + "-journal");
  EXPECT_TRUE(*journal_has_content(MemoryFile(journal)));
  const ScannedJournal ours(journal);
  ASSERT_EQ(ours.error, "");
  EXPECT_EQ(ours.summary.first.page_size, c.page_size);
  EXPECT_EQ(ours.summary.first.original_pages, before.size() / c.page_size);
  EXPECT_EQ(ours.summary.super_journal, "");
  if (c.synchronous == "OFF") {
    EXPECT_EQ(ours.summary.first.record_count, kJournalCountUnsynced);
    EXPECT_EQ(ours.summary.segments, 1u);
  } else {
    EXPECT_GT(ours.summary.segments, 2u) << "every spill syncs the journal and begins a segment";
  }

  const Bytes dirty = read_bytes(copy_);
  const auto changed = changed_pages(before, dirty, c.page_size);
  EXPECT_GT(changed.size(), 10u);
  EXPECT_TRUE(std::includes(ours.pages.begin(), ours.pages.end(), changed.begin(), changed.end()));
  Bytes rolled_back;
  const std::uint32_t played_back = roll_back(rolled_back);
  EXPECT_EQ(rolled_back, before);
  if (c.mode == "PERSIST" && c.synchronous == "OFF") {
    // The old journal's records that lie behind may happen to fit; SQLite counts those it skips, too.
    EXPECT_GE(played_back, ours.summary.records);
  } else {
    EXPECT_EQ(played_back, ours.summary.records);
  }

  db.sql("COMMIT;");
  if (c.mode == "DELETE") {
    EXPECT_FALSE(std::filesystem::exists(path_ + "-journal"));
  } else {
    const MemoryFile after(read_bytes(path_ + "-journal"));
    EXPECT_FALSE(*journal_has_content(after));
    EXPECT_EQ(ScannedJournal(read_bytes(path_ + "-journal")).error.substr(0, 9), "not found");
  }
}

std::vector<JournalCase> journal_cases() {
  std::vector<JournalCase> out;
  for (const std::uint32_t page_size : {512u, 1024u, 2048u, 4096u, 8192u, 16384u, 32768u, 65536u}) {
    out.push_back({"DELETE", page_size, "FULL"});
    out.push_back({"TRUNCATE", page_size, "NORMAL"});
    out.push_back({"PERSIST", page_size, "FULL"});
    out.push_back({"PERSIST", page_size, "OFF"});
  }
  return out;
}
INSTANTIATE_TEST_SUITE_P(All, JournalModes, testing::ValuesIn(journal_cases()), [](const auto& p) {
  return p.param.mode + "_" + std::to_string(p.param.page_size) + "_" + p.param.synchronous;
});

TEST_F(JournalGolden, TransactionThatHasNotSpilledHasNothingToPlayBack) {
  SqliteProcess db(path_);
  create(db, "DELETE", 4096);
  const Bytes before = read_bytes(path_);
  db.sql("PRAGMA cache_size=1000; BEGIN; UPDATE t SET b=randomblob(10) WHERE a<10;");
  copy_crashed();
  const Bytes journal = read_bytes(copy_ + "-journal");
  EXPECT_FALSE(*journal_has_content(MemoryFile(journal)))
      << "magic and count are written when the journal is synced";
  EXPECT_EQ(ScannedJournal(journal).error.substr(0, 9), "not found");
  EXPECT_EQ(read_bytes(path_), before);
}

TEST_F(JournalGolden, DamagedJournals) {
  SqliteProcess db(path_);
  create(db, "DELETE", 1024);
  db.sql("BEGIN; UPDATE t SET b=randomblob(length(b));");
  const Bytes database = read_bytes(path_);
  const Bytes journal = read_bytes(path_ + "-journal");
  const std::uint32_t records = ScannedJournal(journal).summary.records;
  ASSERT_GT(records, 30u);
  expect_same("undamaged", database, journal);
  std::uint32_t seed = 7;
  const auto random = [&](std::size_t below) {
    seed = seed * 1664525u + 1013904223u;
    return seed / 7 % below;
  };
  for (int i = 0; i < 25; ++i) {
    Bytes cut = journal;
    cut.resize(random(journal.size()));
    expect_same("cut at " + std::to_string(cut.size()), database, cut);
    Bytes flipped = journal;
    const std::size_t record = 512 + random(5) * 1032;
    const std::size_t at = record + 4 + random(1028);  // page or checksum of an early record
    flipped[at] ^= std::byte{8};
    expect_same("flipped at " + std::to_string(at), database, flipped);
  }
  for (std::size_t at = 0; at < 16; ++at) {
    Bytes header = journal;
    header[at] ^= std::byte{1};
    expect_same("header byte " + std::to_string(at), database, header);
  }
  for (const std::uint32_t count : {0u, 1u, 7u, 1000u, 0xfffffffeu, 0xffffffffu}) {
    Bytes counted = journal;
    store_be<std::uint32_t>(&counted[8], count);
    expect_same("record count " + std::to_string(count), database, counted);
  }
  for (const std::uint32_t size : {0u, 16u, 31u, 48u, 131072u}) {
    Bytes sector = journal;
    store_be<std::uint32_t>(&sector[20], size);
    expect_same("sector size " + std::to_string(size), database, sector);
  }
  for (const std::uint32_t size : {1u, 256u, 1000u, 131072u}) {
    Bytes page = journal;
    store_be<std::uint32_t>(&page[24], size);
    expect_same("page size " + std::to_string(size), database, page);
  }
  for (const std::uint32_t pgno : {0u, 0x40000000u / 1024 + 1}) {
    Bytes end = journal;
    store_be<std::uint32_t>(&end[512 + 1032], pgno);
    expect_same("page number " + std::to_string(pgno), database, end);
  }
}

// Sector sizes that this machine's SQLite does not use itself; it plays them back all the same.
TEST_F(JournalGolden, SectorSizesMadeByHand) {
  SqliteProcess db(path_);
  create(db, "DELETE", 1024);
  const Bytes original = read_bytes(path_);
  const auto page_of = [&](std::uint32_t pgno) {
    return ByteView(original).subspan((pgno - 1) * 1024, 1024);
  };
  for (const std::uint32_t sector : {32u, 128u, 512u, 1024u, 4096u, 65536u}) {
    Bytes dirty = original;
    JournalBuilder journal(1024, sector, static_cast<std::uint32_t>(original.size() / 1024));
    for (std::uint32_t segment = 0; segment < 3; ++segment) {
      journal.header(segment + 3, 1000 + segment);
      for (std::uint32_t i = 0; i < segment + 3; ++i) {
        const std::uint32_t pgno = segment * 6 + i + 2;
        journal.record(pgno, page_of(pgno));
        std::memset(&dirty[(pgno - 1) * 1024], 0xaa, 1024);
      }
    }
    dirty.resize(dirty.size() + 2048);
    const ScannedJournal ours(journal.bytes);
    EXPECT_EQ(ours.summary.records, 12u) << sector;
    EXPECT_EQ(ours.summary.segments, 3u) << sector;
    write_bytes(copy_, dirty);
    write_bytes(copy_ + "-journal", journal.bytes);
    Bytes rolled_back;
    EXPECT_EQ(roll_back(rolled_back), 12u) << sector;
    EXPECT_EQ(rolled_back, original) << sector;
  }
}

TEST_F(JournalGolden, SuperJournalOfAnAttachedTransaction) {
  const std::string second = dir_.path("second.db");
  SqliteProcess db(path_);
  create(db, "DELETE", 4096);
  db.sql("ATTACH '" + second + "' AS s; CREATE TABLE s.u(x); INSERT INTO s.u VALUES(1);");
  const Bytes before = read_bytes(path_);
  db.sql(".hold -mj");
  db.send("BEGIN; UPDATE t SET b=randomblob(length(b)); UPDATE s.u SET x=2; COMMIT;");
  const std::string super_journal = db.held();  // written, and about to be deleted: the commit point
  EXPECT_NE(super_journal.find("-mj"), std::string::npos);
  for (const std::string& journal : {path_ + "-journal", second + "-journal"}) {
    const Bytes bytes = read_bytes(journal);
    const auto name = read_super_journal_name(MemoryFile(bytes));
    ASSERT_TRUE(name.has_value());
    EXPECT_EQ(*name, super_journal);
    EXPECT_EQ(ScannedJournal(bytes).summary.super_journal, super_journal);
  }
  copy_crashed();
  const std::uint32_t records = ScannedJournal(read_bytes(copy_ + "-journal")).summary.records;
  EXPECT_GT(records, 10u);
  Bytes rolled_back;
  EXPECT_EQ(roll_back(rolled_back), records) << "the super-journal exists: not committed";
  EXPECT_EQ(rolled_back, before);

  copy_crashed();
  std::filesystem::remove(super_journal);
  EXPECT_EQ(roll_back(rolled_back), 0u) << "the super-journal is gone: committed";
  EXPECT_NE(rolled_back, before);
}

}  // namespace
}  // namespace sluice::test
