// SQLite's rollback journal (https://sqlite.org/fileformat2.html, section 3; pager.c readJournalHdr, pager_playback,
// readSuperJournal).
#pragma once

#include <optional>
#include <string>

#include "base/function_ref.h"
#include "base/os.h"
#include "storage/ids.h"

namespace sluice::sqlite {

inline constexpr std::size_t kJournalHeaderSize = 28;
inline constexpr std::uint32_t kJournalCountUnsynced = 0xffffffff;  ///< page count of a header that was never synced

struct JournalHeader {
  std::uint32_t record_count = 0;  ///< kJournalCountUnsynced: as many as the file holds
  std::uint32_t nonce = 0;
  std::uint32_t original_pages = 0;  ///< database size before the transaction
  std::uint32_t sector_size = 0;
  std::uint32_t page_size = 0;
};

struct JournalSummary {
  JournalHeader first;
  std::uint32_t segments = 0;
  std::uint32_t records = 0;
  std::string super_journal;  ///< path, empty if none
};

/// True for a journal that SQLite would consider for playback: at least one byte and the first byte not zero.
Result<bool> journal_has_content(const File& journal);

/// Reads every segment as the rollback of a hot journal would, and calls `visit` once with each page that it would play
/// back. The first wrong checksum, page number 0 or the lock page ends the scan; pages beyond the old size and second
/// records of a page are passed over. A segment with count 0 was never synced, so none of its pages has been written to
/// the database: nothing is visited. Whether a super-journal exists is the caller's to find out. Errc::not_found: no
/// valid header (nothing to play back). Errc::unsupported: without a page size (SQLite before 3.5.8). Impossible sizes
/// end the scan as they end playback; nothing is allocated by what the file claims.
Result<JournalSummary> scan_journal(const File& journal, FunctionRef<void(Pgno)> visit);

/// The same; `visit` is also told where in the file the page's old content stands.
Result<JournalSummary> scan_journal_content(const File& journal, FunctionRef<void(Pgno, std::uint64_t)> visit);

/// The super-journal's name at the end of the journal, if a valid one is there.
Result<std::optional<std::string>> read_super_journal_name(const File& journal);

}  // namespace sluice::sqlite
