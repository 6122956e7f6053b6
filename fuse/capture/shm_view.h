// A look at a database's wal-index from outside: read with pread, never mapped, because another process may truncate the
// file at any time (SQLite does when it is first to open it) and a mapping would then kill us.
//
// On the native path it is read from the backing file, whose page cache the clients have mapped. On the plain path they have mapped
// the mount's page cache: there it is read through the mount, which agrees with their stores as any two processes' read(2)
// and mmap(2) of one file do. What the kernel has dropped from that cache it fetches by a READ request, so on the plain path
// nothing here may run on a FUSE worker, nor may a worker wait for whoever calls it.
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

/// The -shm file and our descriptor on it through the mount (where the locks are). Immutable and thread-safe after
/// construction.
class ShmView {
 public:
  /// `backing`: nullptr on the plain path.
  ShmView(std::shared_ptr<const File> backing, UniqueFd probe) : backing_(std::move(backing)), probe_(std::move(probe)) {}

  /// Reading may take a request through our own mount.
  bool through_mount() const { return backing_ == nullptr; }

  /// Reads header and checkpoint info; a torn header is read again a few times.
  Result<IndexState> read() const;
  /// No FUSE request: the kernel keeps the locks of the mount itself.
  Liveness liveness() const;
  /// Page numbers of frames first…last.
  Result<void> frame_pages(std::uint32_t first, std::uint32_t last, std::uint32_t* out) const;

 private:
  Result<std::size_t> read_at(std::uint64_t offset, ByteSpan out) const;

  std::shared_ptr<const File> backing_;
  UniqueFd probe_;
};

}  // namespace sluice::fuse
