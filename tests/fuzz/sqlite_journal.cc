// Fuzzes scan_journal and read_super_journal_name. First byte even: the rest is the file. Odd: a program that
// builds a journal with right checksums and then damages it.
#include <set>

#include "base/check.h"
#include "storage/sqlite/freelist.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace {

using namespace sluice;
using namespace sluice::sqlite;

Bytes build(fuzz::Input in) {
  const std::uint8_t kind = in.byte();
  const std::uint32_t sector_size = 32u << (kind >> 4 & 7);
  test::JournalBuilder journal(512u << (kind & 1), sector_size, in.byte());
  for (std::uint8_t segments = kind >> 1 & 7; segments > 0; --segments) {
    const std::uint8_t records = in.byte() % 8;
    const std::uint8_t claim = in.byte();
    journal.header(claim == 255 ? kJournalCountUnsynced : claim > 250 ? claim : records, in.word16());
    for (std::uint8_t i = 0; i < records; ++i) journal.record(in.byte());
  }
  if (kind >= 128) journal.super_journal(std::string(in.byte(), 's'));
  if (journal.bytes.empty()) return {};
  while (!in.empty()) {
    const std::size_t at = in.word16() % journal.bytes.size();
    const auto what = in.byte();
    if (what == 0) {
      journal.bytes.resize(at + 1);
    } else {
      journal.bytes[at] ^= static_cast<std::byte>(what);
    }
  }
  return std::move(journal.bytes);
}

void check_scan(const Bytes& bytes) {
  const test::MemoryFile file(bytes);
  CHECK(journal_has_content(file).has_value());
  const auto name = read_super_journal_name(file);
  CHECK(name.has_value() && (!name->has_value() || (!(*name)->empty() && (*name)->size() <= 512)));
  std::set<std::uint32_t> pages;
  std::uint32_t visits = 0;
  const auto summary = scan_journal(file, [&](Pgno pgno) {
    ++visits;
    CHECK(pgno.value() != 0 && pages.insert(pgno.value()).second);
  });
  if (summary.has_error()) {
    CHECK(summary.error().code == Errc::not_found || summary.error().code == Errc::unsupported);
    CHECK(visits == 0);
    return;
  }
  CHECK(summary->records == visits && summary->segments >= 1);
  CHECK(pages.empty() || *pages.rbegin() <= summary->first.original_pages);
  CHECK(std::uint64_t{visits} * (summary->first.page_size + 8) <= bytes.size());
  CHECK(summary->super_journal == name->value_or(""));
  const auto free = visit_free_leaves_before(file, file, [&](Pgno pgno) {
    CHECK(pgno.value() != 0 && pgno.value() <= summary->first.original_pages);
  });
  CHECK(free.has_value() || free.error().code == Errc::corrupt);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input in(data, size);
  if ((in.byte() & 1) != 0) {
    check_scan(build(in));
  } else {
    check_scan(Bytes(in.rest().begin(), in.rest().end()));
  }
  return 0;
}
