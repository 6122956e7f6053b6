// Copies a database at a position while writers and readers go on (DESIGN §4): pages are read in small batches under
// the commit lock, pages that changed meanwhile are sent again, and the last, small round is taken with the position
// standing still. Self-checking: a page counts as sent only with the checksum it has at the final position.
#pragma once

#include <functional>

#include "storage/database.h"
#include "storage/resync.h"

namespace sluice::storage {

struct SnapshotEnd {
  Pos pos;
  Epoch epoch;
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;  ///< pages
  std::int64_t timestamp_ms = 0;
};

/// Receives pages. A page may come more than once: the last one counts. Pages above the final commit are to be dropped.
class SnapshotSink {
 public:
  virtual ~SnapshotSink() = default;
  /// Before begin(), when the receiver's pages were compared: about so many differ.
  virtual void differing(std::uint32_t pages) { static_cast<void>(pages); }
  /// Before the first page, and again (start over) if the page size changed meanwhile. `pages`: size now, for progress.
  virtual Result<void> begin(std::uint32_t page_size, std::uint32_t pages) = 0;
  /// May block for flow control (called without the commit lock).
  virtual Result<void> page(Pgno pgno, ByteView content) = 0;
  virtual Result<void> end(const SnapshotEnd& end) = 0;
};

struct SnapshotOptions {
  std::string tmp_dir;                     ///< for the table of sent checksums (8 bytes a page, unlinked at once)
  std::function<bool()> cancelled;         ///< polled between batches
  int busy_timeout_ms = 60'000;            ///< for an open rollback transaction that holds pages
  /// What the receiver already has, or nullptr. Pages that match are not sent. Asked once, before the first page.
  ReceiverPages* receiver = nullptr;
};

/// Runs on a disk-pool thread until done. Errc::cancelled, Errc::busy (a rollback transaction stayed open), the sink's
/// error, or a read error.
Result<SnapshotEnd> copy_database(Database& database, const SnapshotOptions& options, SnapshotSink& sink);

}  // namespace sluice::storage
