#include "storage/sqlite/freelist.h"

#include <fmt/format.h>

#include <unordered_map>
#include <unordered_set>

namespace sluice::sqlite {
namespace {

// https://sqlite.org/fileformat2.html, sections 1.3 and 1.5
constexpr std::size_t kFirstTrunkAt = 32;
constexpr std::size_t kTrunkHeader = 8;  // next trunk, number of leaves

class PagesBefore {
 public:
  PagesBefore(const File& database, const File& journal) : database_(database), journal_(journal) {}

  Result<JournalHeader> load() {
    TRY_ASSIGN(const JournalSummary summary, scan_journal_content(journal_, [this](Pgno pgno, std::uint64_t at) {
                 saved_.emplace(pgno.value(), at);
               }));
    page_.resize(summary.first.page_size);
    return summary.first;
  }
  /// Valid until the next call.
  Result<ByteView> read(std::uint32_t pgno) {
    const auto saved = saved_.find(pgno);
    const File& file = saved != saved_.end() ? journal_ : database_;
    const std::uint64_t at = saved != saved_.end() ? saved->second : std::uint64_t{pgno - 1} * page_.size();
    TRY_ASSIGN(const std::size_t n, file.read_at(at, page_));
    if (n != page_.size()) return make_error(Errc::corrupt, fmt::format("{}: page {} is missing", file.path(), pgno));
    return ByteView(page_);
  }

 private:
  const File& database_;
  const File& journal_;
  std::unordered_map<std::uint32_t, std::uint64_t> saved_;  // page -> offset of its content in the journal
  Bytes page_;
};

}  // namespace

Result<void> visit_free_leaves_before(const File& database, const File& journal, FunctionRef<void(Pgno)> visit) {
  PagesBefore pages(database, journal);
  TRY_ASSIGN(const JournalHeader header, pages.load());
  if (header.original_pages == 0) return {};
  const auto bad = [&](std::uint32_t trunk) {
    return make_error(Errc::corrupt, fmt::format("{}: freelist page {} is not one", database.path(), trunk));
  };
  TRY_ASSIGN(const ByteView first, pages.read(1));
  auto trunk = load_be<std::uint32_t>(&first[kFirstTrunkAt]);
  std::unordered_set<std::uint32_t> seen;
  while (trunk != 0) {
    if (trunk > header.original_pages || !seen.insert(trunk).second) return bad(trunk);
    TRY_ASSIGN(const ByteView page, pages.read(trunk));
    const auto leaves = load_be<std::uint32_t>(&page[4]);
    if (leaves > (page.size() - kTrunkHeader) / 4) return bad(trunk);
    for (std::uint32_t i = 0; i < leaves; ++i) {
      const auto leaf = load_be<std::uint32_t>(&page[kTrunkHeader + std::size_t{4} * i]);
      if (leaf == 0 || leaf > header.original_pages) return bad(trunk);
      visit(Pgno(leaf));
    }
    trunk = load_be<std::uint32_t>(page.data());
  }
  return {};
}

}  // namespace sluice::sqlite
