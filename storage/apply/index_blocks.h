// The 32 KiB blocks of a wal-index in somebody's memory: of the file, mapped, or a copy of it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/errors.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "storage/ids.h"

namespace sluice::storage::apply {

/// One thread appends; everything else may run beside it.
class IndexBlocks {
 public:
  /// Maps blocks up to `count` of the file `fd`; -1: memory of our own.
  Result<void> map(int fd, std::size_t count) EXCLUDES(mutex_);
  void clear() EXCLUDES(mutex_);
  std::size_t count() const EXCLUDES(mutex_);
  /// nullptr: not mapped.
  std::byte* block(std::uint32_t number) const EXCLUDES(mutex_);

  /// Enters pages of frames first, first + 1, … Leftovers of an append that was never published go away. Doing it
  /// again does no harm. Errc::corrupt, Errc::internal: blocks are not mapped.
  Result<void> append(std::uint32_t first, std::span<const std::uint32_t> pages);
  /// Page number of a frame, 0 if the block is not mapped or the slot is empty.
  std::uint32_t page_of(std::uint32_t frame) const;
  /// Last frame in 1…mx_frame that holds `pgno`, 0 if none does.
  std::uint32_t find(Pgno pgno, std::uint32_t mx_frame) const;

 private:
  mutable Mutex mutex_;
  std::vector<Mapping> blocks_ GUARDED_BY(mutex_);
};

}  // namespace sluice::storage::apply
