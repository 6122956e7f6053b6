// Making change sets: what WAL and rollback capture share.
#pragma once

#include <optional>

#include "fuse/capture/capture.h"
#include "storage/database.h"

namespace sluice::fuse {

/// What the database file itself says.
struct FileSummary {
  bool is_database = false;     ///< valid header
  bool wal_mode = false;        ///< header says so
  std::uint64_t size = 0;       ///< bytes
  std::uint32_t page_size = 0;
  std::uint32_t pages = 0;      ///< header's count if valid, else by size
};
/// `file` may be nullptr: all zero.
Result<FileSummary> summarise(const File* file);

/// database.commit(input); but the log starts over at the new content (a base record, so replicas are sent a snapshot) where
/// a new database is over options.base_bytes, or where an old checksum is unknown and the old content is gone. Commit lock
/// held.
Result<std::optional<Pos>> commit_or_rebase(storage::Database& database, const storage::CommitInput& input,
                                            const CaptureOptions& options, NodeId node);

}  // namespace sluice::fuse
