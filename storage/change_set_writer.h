// Makes one change set from what capture found: compares pages with their checksums, encodes the changed ones, keeps the
// rolling checksum. A part of Database::commit.
#pragma once

#include <vector>

#include "storage/database.h"

namespace sluice::storage {

/// One use: construct, write(). The database's commit lock is held throughout.
class ChangeSetWriter {
 public:
  ChangeSetWriter(Database& database, const CommitInput& input, Epoch epoch, NodeId node);

  /// Appends the record's image to the log, unfinished. False: nothing changed and nothing was appended.
  Result<bool> write() NO_THREAD_SAFETY_ANALYSIS;
  /// For finish_append.
  const RecordInfo& info() const { return info_; }
  std::span<const Database::PageSum> sums() const { return sums_; }

 private:
  Result<void> begin() NO_THREAD_SAFETY_ANALYSIS;
  Result<void> add(Pgno pgno) NO_THREAD_SAFETY_ANALYSIS;
  Result<void> add_range(std::uint32_t first, std::uint32_t last);
  Result<void> remove_tail();
  Result<Checksum> old_checksum(Pgno pgno) NO_THREAD_SAFETY_ANALYSIS;

  Database& database_;
  const CommitInput& input_;
  const NodeId node_;
  const std::uint32_t old_pages_;  ///< 0 when the page size changes: everything is new
  const bool replaces_;
  bool begun_ = false;
  Checksum rolling_;
  RecordInfo info_;
  std::vector<Database::PageSum> sums_;
};

}  // namespace sluice::storage
