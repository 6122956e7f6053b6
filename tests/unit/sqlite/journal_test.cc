#include "storage/sqlite/journal.h"

#include <gtest/gtest.h>

#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace sluice::sqlite {
namespace {

using test::JournalBuilder;
using test::MemoryFile;
using test::pattern_page;

struct Scanned {
  JournalSummary summary;
  std::vector<std::uint32_t> pages;
  std::string error;  ///< name of the Errc, empty if none
};

Scanned scan(const Bytes& bytes) {
  Scanned out;
  const auto result = scan_journal(MemoryFile(bytes), [&](Pgno pgno) { out.pages.push_back(pgno.value()); });
  if (result.has_value()) {
    out.summary = *result;
  } else {
    out.error = errc_name(result.error().code);
  }
  return out;
}

using Pages = std::vector<std::uint32_t>;

TEST(Journal, ReadsTheHeader) {
  JournalBuilder journal(1024, 512, 20);
  journal.header(2, 0xdeadbeef).record(3).record(1);
  const Scanned got = scan(journal.bytes);
  ASSERT_EQ(got.error, "");
  EXPECT_EQ(got.summary.first.record_count, 2u);
  EXPECT_EQ(got.summary.first.nonce, 0xdeadbeefu);
  EXPECT_EQ(got.summary.first.original_pages, 20u);
  EXPECT_EQ(got.summary.first.sector_size, 512u);
  EXPECT_EQ(got.summary.first.page_size, 1024u);
  EXPECT_EQ(got.summary.segments, 1u);
  EXPECT_EQ(got.summary.records, 2u);
  EXPECT_EQ(got.summary.super_journal, "");
  EXPECT_EQ(got.pages, (Pages{3, 1}));
}

TEST(Journal, EveryPageAndSectorSize) {
  for (std::uint32_t page = 512; page <= 65536; page *= 2) {
    for (std::uint32_t sector = 32; sector <= 65536; sector *= 4) {
      JournalBuilder journal(page, sector, 100);
      journal.header(3, 5)
          .record(1)
          .record(2)
          .record(3)
          .header(1, 6)
          .record(50)
          .header(2, 7)
          .record(7)
          .record(8);
      journal.bytes.resize(std::max<std::size_t>(journal.bytes.size(), 512));
      const Scanned got = scan(journal.bytes);
      ASSERT_EQ(got.error, "") << page << " " << sector;
      EXPECT_EQ(got.pages, (Pages{1, 2, 3, 50, 7, 8})) << page << " " << sector;
      EXPECT_EQ(got.summary.segments, 3u);
    }
  }
}

TEST(Journal, UnsyncedCountReadsToTheEnd) {
  JournalBuilder journal(512, 512, 9);
  journal.header(kJournalCountUnsynced, 1);
  for (std::uint32_t i = 1; i <= 9; ++i) journal.record(i);
  EXPECT_EQ(scan(journal.bytes).summary.records, 9u);
  Bytes torn = journal.bytes;
  torn.resize(512 + 520 * 4 + 519);
  EXPECT_EQ(scan(torn).pages, (Pages{1, 2, 3, 4}));
  Bytes damaged = journal.bytes;
  damaged[512 + 520 * 6 + 4 + 112] ^= std::byte{1};  // a byte that the checksum covers
  EXPECT_EQ(scan(damaged).pages, (Pages{1, 2, 3, 4, 5, 6}));
}

// A header with count 0 is of a segment that was never synced: the pages in it were not yet written to the
// database.
TEST(Journal, CountZeroHoldsNothing) {
  JournalBuilder journal(512, 512, 9);
  journal.header(2, 1).record(1).record(2).header(0, 2).record(3);
  const Scanned got = scan(journal.bytes);
  EXPECT_EQ(got.pages, (Pages{1, 2}));
  EXPECT_EQ(got.summary.segments, 2u);

  JournalBuilder only(512, 512, 9);
  only.header(0, 1).record(4);
  const Scanned nothing = scan(only.bytes);
  EXPECT_EQ(nothing.error, "");
  EXPECT_TRUE(nothing.pages.empty());
}

TEST(Journal, ChecksumIsOverEvery200thByteFromTheEnd) {
  JournalBuilder journal(1024, 512, 9);
  journal.header(1, 77).record(5);
  for (std::size_t i = 0; i < 1024; ++i) {
    Bytes bytes = journal.bytes;
    bytes[512 + 4 + i] ^= std::byte{0x80};
    const bool covered = i == 824 || i == 624 || i == 424 || i == 224 || i == 24;
    EXPECT_EQ(scan(bytes).pages.size(), covered ? 0u : 1u) << i;
  }
  Bytes nonce = journal.bytes;
  nonce[15] ^= std::byte{1};
  EXPECT_TRUE(scan(nonce).pages.empty());
}

TEST(Journal, WrongChecksumEndsTheWholeScan) {
  JournalBuilder journal(512, 512, 9);
  journal.header(2, 1).record(1).record(2).header(1, 2).record(3);
  Bytes bytes = journal.bytes;
  bytes[512 + 520 + 4 + 312] ^= std::byte{1};
  const Scanned got = scan(bytes);
  EXPECT_EQ(got.pages, (Pages{1}));
  EXPECT_EQ(got.summary.segments, 1u);
}

TEST(Journal, PagesThatPlaybackSkips) {
  JournalBuilder journal(512, 512, 4);
  journal.header(5, 1).record(2).record(5).record(2, pattern_page(512, 99)).record(4).record(1);
  const Scanned got = scan(journal.bytes);
  EXPECT_EQ(got.pages, (Pages{2, 4, 1})) << "beyond the old end, and the second copy of page 2, are skipped";
  EXPECT_EQ(got.summary.records, 3u);
  // Skipped without a look at the checksum.
  Bytes bytes = journal.bytes;
  bytes[512 + 520 + 516] ^= std::byte{1};
  bytes[512 + 2 * 520 + 516] ^= std::byte{1};
  EXPECT_EQ(scan(bytes).pages, (Pages{2, 4, 1}));
}

TEST(Journal, PageZeroAndTheLockPageEndTheScan) {
  for (const std::uint32_t pgno : {0u, 0x40000000u / 512 + 1}) {
    JournalBuilder journal(512, 512, 0xffffffff);
    journal.header(3, 1).record(1).record(pgno).record(2);
    EXPECT_EQ(scan(journal.bytes).pages, (Pages{1})) << pgno;
  }
}

TEST(Journal, LaterHeaderWithoutMagicEndsTheScan) {
  JournalBuilder journal(512, 4096, 9);
  journal.header(1, 1).record(1).header(1, 2).record(2);
  Bytes bytes = journal.bytes;
  bytes[8192] = std::byte{0};
  EXPECT_EQ(scan(bytes).pages, (Pages{1}));
  bytes = journal.bytes;
  bytes.resize(8192 + 4095);  // not a whole sector
  EXPECT_EQ(scan(bytes).pages, (Pages{1}));
  EXPECT_EQ(scan(journal.bytes).pages, (Pages{1, 2}));
}

TEST(Journal, NothingToPlayBack) {
  EXPECT_EQ(scan({}).error, "not found");
  EXPECT_EQ(scan(Bytes(28)).error, "not found");
  EXPECT_EQ(scan(Bytes(4096)).error, "not found");
  JournalBuilder journal(512, 512, 9);
  journal.header(1, 1).record(1);
  for (std::size_t i = 0; i < 8; ++i) {
    Bytes bytes = journal.bytes;
    bytes[i] ^= std::byte{1};
    EXPECT_EQ(scan(bytes).error, "not found") << i;
  }
  Bytes short_file = journal.bytes;
  short_file.resize(511);
  EXPECT_EQ(scan(short_file).error, "not found");
}

TEST(Journal, ImpossibleSizes) {
  for (const std::uint32_t page : {256u, 513u, 131072u, 0xffffffffu}) {
    JournalBuilder journal(512, 512, 9);
    journal.header(1, 1).record(1);
    store_be<std::uint32_t>(&journal.bytes[24], page);
    EXPECT_EQ(scan(journal.bytes).error, "not found") << page;
  }
  for (const std::uint32_t sector : {0u, 16u, 513u, 131072u, 0xffffffffu}) {
    JournalBuilder journal(512, 512, 9);
    journal.header(1, 1).record(1);
    store_be<std::uint32_t>(&journal.bytes[20], sector);
    EXPECT_EQ(scan(journal.bytes).error, "not found") << sector;
  }
  JournalBuilder old(512, 512, 9);
  old.header(1, 1).record(1);
  store_be<std::uint32_t>(&old.bytes[24], 0);
  EXPECT_EQ(scan(old.bytes).error, "unsupported");
}

TEST(Journal, ClaimsAreNotBelieved) {
  JournalBuilder journal(512, 512, 0xfffffffe);
  journal.header(0xfffffffe, 1).record(1).record(0xfffffff0).record(0x80000000);
  const Scanned got = scan(journal.bytes);
  EXPECT_EQ(got.pages, (Pages{1, 0xfffffff0, 0x80000000}));
}

TEST(Journal, Content) {
  EXPECT_FALSE(*journal_has_content(MemoryFile({})));
  EXPECT_FALSE(*journal_has_content(MemoryFile(Bytes(1000))));
  EXPECT_TRUE(*journal_has_content(MemoryFile(Bytes{std::byte{1}})));
  MemoryFile broken({});
  broken.fail_reads();
  EXPECT_EQ(journal_has_content(broken).error().code, Errc::io);
  EXPECT_EQ(read_super_journal_name(MemoryFile({}))->has_value(), false);
}

TEST(SuperJournal, NameIsRead) {
  for (const std::string& name :
       {std::string("/tmp/a-mj12345678"), std::string("/t/\xc3\xa4\xff-mj"), std::string(512, 'x')}) {
    JournalBuilder journal(512, 512, 9);
    journal.header(1, 1).record(1).super_journal(name);
    const auto got = read_super_journal_name(MemoryFile(journal.bytes));
    ASSERT_TRUE(got.has_value());
    EXPECT_EQ(*got, name);
    const Scanned scanned = scan(journal.bytes);
    EXPECT_EQ(scanned.summary.super_journal, name);
    EXPECT_EQ(scanned.pages, (Pages{1}));
  }
}

TEST(SuperJournal, DamagedTrailerIsNone) {
  JournalBuilder journal(512, 512, 9);
  journal.header(1, 1).record(1).super_journal("/tmp/x-mj1");
  const std::size_t trailer = journal.bytes.size() - 26;
  for (std::size_t i = trailer; i < journal.bytes.size(); ++i) {
    Bytes bytes = journal.bytes;
    bytes[i] ^= std::byte{2};
    EXPECT_FALSE(read_super_journal_name(MemoryFile(bytes))->has_value()) << i;
  }
  for (const std::string& name : {std::string(), std::string(513, 'y'), std::string("\0abc", 4)}) {
    JournalBuilder other(512, 512, 9);
    other.header(1, 1).record(1).super_journal(name);
    EXPECT_FALSE(read_super_journal_name(MemoryFile(other.bytes))->has_value()) << name.size();
  }
  // A length beyond the file.
  Bytes bytes = journal.bytes;
  bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(bytes.size() - 16));
  EXPECT_FALSE(read_super_journal_name(MemoryFile(bytes))->has_value());
}

}  // namespace
}  // namespace sluice::sqlite
