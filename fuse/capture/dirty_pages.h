// The pages of a database file that were written since the last commit event of a rollback journal: a bitmap, or "all".
#pragma once

#include <cstdint>
#include <vector>

#include "storage/ids.h"

namespace sluice::fuse {

/// Not thread-safe.
class DirtyPages {
 public:
  /// Pages first…last, from 1.
  void add(std::uint32_t first, std::uint32_t last);
  /// Anything may have changed: the page size is unknown, or nobody saw the writes.
  void add_all() { all_ = true; }
  void clear();
  bool any() const { return all_ || count_ != 0; }
  bool all() const { return all_; }
  bool contains(Pgno pgno) const;
  /// Ascending, up to `page_count`.
  std::vector<Pgno> list(std::uint32_t page_count) const;

 private:
  std::vector<std::uint64_t> bits_;
  std::uint64_t count_ = 0;
  bool all_ = false;
};

}  // namespace sluice::fuse
