// Which frame of the WAL holds the newest captured version of a page. Built on demand (export, snapshot, verify, pages that
// grow the database), forgotten when the WAL starts over.
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>

#include "base/os.h"
#include "fuse/capture/shm_view.h"
#include "storage/sqlite/wal_format.h"

namespace sluice::fuse {

/// Not thread-safe.
class WalOverlay {
 public:
  void clear();
  /// Makes the overlay cover frames 1…`upto`; page numbers from the live wal-index if given, else from the WAL itself.
  Result<void> extend(const File& wal, std::uint32_t page_size, std::uint32_t upto, const ShmView* live);
  std::optional<std::uint32_t> frame_of(Pgno pgno) const;
  const std::unordered_map<std::uint32_t, std::uint32_t>& pages() const { return frame_of_; }

 private:
  std::unordered_map<std::uint32_t, std::uint32_t> frame_of_;
  std::uint32_t upto_ = 0;
};

}  // namespace sluice::fuse
