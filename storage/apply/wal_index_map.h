// A database's wal-index (-shm): the backing file mapped block by block, as SQLite maps it.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "base/mutex.h"
#include "storage/apply/live_files.h"

namespace sluice::storage::apply {

/// One thread appends (the one that applies); find(), page_of() and block() may run beside it.
class WalIndexMap {
 public:
  explicit WalIndexMap(LiveFiles& files) : files_(files) {}

  /// Makes room for frames up to `last_frame`: grows the file through the mount (a FUSE request, never under the commit
  /// lock), allocates and maps what is new. The header's block is always there afterwards. Errc::no_space before a store
  /// could meet a full disk.
  Result<void> reserve(std::uint32_t last_frame) EXCLUDES(mutex_);
  /// First block, with the header; valid after the first reserve().
  std::byte* header() const { return header_; }
  std::byte* block(std::uint32_t number) const EXCLUDES(mutex_);

  /// Enters pages of frames first, first + 1, … (reserved). Leftovers of an append that was never published go away.
  Result<void> append(std::uint32_t first, const std::vector<std::uint32_t>& pages);
  /// Page number of a frame, 0 if the block is not mapped or the slot is empty.
  std::uint32_t page_of(std::uint32_t frame) const;
  /// Last frame in 1…mx_frame that holds `pgno`, 0 if none does.
  std::uint32_t find(Pgno pgno, std::uint32_t mx_frame) const;

 private:
  Result<void> allocate(std::uint64_t from, std::uint64_t to) const;

  LiveFiles& files_;
  std::byte* header_ = nullptr;
  mutable Mutex mutex_;
  std::vector<Mapping> blocks_ GUARDED_BY(mutex_);
};

}  // namespace sluice::storage::apply
