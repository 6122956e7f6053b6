// A look at a database's wal-index from outside: read with pread, never mapped, because another process may truncate the
// file at any time (SQLite does when it is first to open it) and a mapping would then kill us.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/fd.h"
#include "base/os.h"
#include "storage/sqlite/wal_index.h"

namespace sluice::fuse {

struct IndexState {
  sqlite::HeaderState state = sqlite::HeaderState::invalid;
  sqlite::WalIndexHeader header;
  sqlite::CheckpointInfo checkpoint;
};

/// Is anybody connected in WAL mode? Decided by SQLite's DMS lock on the current -shm inode.
enum class Liveness { dead, live, unknown };

/// The backing -shm file and our descriptor on it through the mount (where the locks are). Immutable and thread-safe after
/// construction.
class ShmView {
 public:
  ShmView(std::shared_ptr<const File> backing, UniqueFd probe) : backing_(std::move(backing)), probe_(std::move(probe)) {}

  /// Reads header and checkpoint info; a torn header is read again a few times.
  Result<IndexState> read() const;
  /// No FUSE request: the kernel keeps the locks of the mount itself.
  Liveness liveness() const;
  /// Page numbers of frames first…last.
  Result<void> frame_pages(std::uint32_t first, std::uint32_t last, std::uint32_t* out) const;

 private:
  std::shared_ptr<const File> backing_;
  UniqueFd probe_;
};

}  // namespace sluice::fuse
