#include "storage/sqlite/freelist.h"

#include <gtest/gtest.h>

#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace sluice::sqlite {
namespace {

using test::JournalBuilder;
using test::MemoryFile;

constexpr std::uint32_t kPageSize = 512;

/// A database of ten pages with whatever freelist the test gives it.
struct Database {
  Bytes bytes = Bytes(10 * kPageSize);
  void put(std::uint32_t page, std::size_t at, std::uint32_t value) {
    store_be(&bytes[(page - 1) * kPageSize + at], value);
  }
  void trunk(std::uint32_t page, std::uint32_t next, const std::vector<std::uint32_t>& leaves) {
    put(page, 0, next);
    put(page, 4, static_cast<std::uint32_t>(leaves.size()));
    for (std::size_t i = 0; i < leaves.size(); ++i) put(page, 8 + 4 * i, leaves[i]);
  }
};

std::vector<std::uint32_t> leaves(const Database& database, const JournalBuilder& journal, std::string* error = nullptr) {
  std::vector<std::uint32_t> found;
  const auto visited = visit_free_leaves_before(MemoryFile(database.bytes), MemoryFile(journal.bytes),
                                                [&](Pgno pgno) { found.push_back(pgno.value()); });
  if (error != nullptr) *error = visited.has_error() ? errc_name(visited.error().code) : "";
  return found;
}

JournalBuilder journal_of(std::uint32_t original_pages) {
  JournalBuilder journal(kPageSize, 512, original_pages);
  journal.header(1, 7).record(9);
  return journal;
}

TEST(Freelist, FollowsTheTrunks) {
  Database database;
  database.put(1, 32, 4);
  database.trunk(4, 6, {2, 3});
  database.trunk(6, 0, {8});
  std::string error;
  EXPECT_EQ(leaves(database, journal_of(10), &error), (std::vector<std::uint32_t>{2, 3, 8}));
  EXPECT_EQ(error, "");
}

TEST(Freelist, NoneIsNoError) {
  std::string error;
  EXPECT_TRUE(leaves(Database{}, journal_of(10), &error).empty());
  EXPECT_EQ(error, "");
}

TEST(Freelist, EndsWhereItLeadsNowhere) {
  Database loop;
  loop.put(1, 32, 4);
  loop.trunk(4, 4, {2});
  Database outside;
  outside.put(1, 32, 4);
  outside.trunk(4, 0, {11});
  Database crowded;
  crowded.put(1, 32, 4);
  crowded.put(4, 4, 0x10000000);
  for (const Database& database : {loop, outside, crowded}) {
    std::string error;
    (void)leaves(database, journal_of(10), &error);
    EXPECT_EQ(error, "corrupt");
  }
}

}  // namespace
}  // namespace sluice::sqlite
