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

/// Reads every segment; calls `visit` with the page number of each record whose checksum is right (all of them, in an
/// unsynced segment up to the first wrong one: as playback would). Errc::not_found: no valid header (nothing to play
/// back). Impossible sizes end the scan as they end playback; nothing is allocated by what the file claims.
Result<JournalSummary> scan_journal(const File& journal, FunctionRef<void(Pgno)> visit);

/// The super-journal's name at the end of the journal, if a valid one is there.
Result<std::optional<std::string>> read_super_journal_name(const File& journal);

}  // namespace sluice::sqlite
