// Scrub: reads every page of a database and compares it with what replication believes it is (I3).
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "storage/database.h"

namespace sluice::server {

struct VerifyReport {
  Pos pos;                      ///< position the final sum was compared at
  std::uint32_t pages = 0;      ///< read
  std::vector<Pgno> bad_pages;  ///< content differs from the recorded checksum (at most 65536 are listed)
  std::uint64_t bad_count = 0;
  std::uint64_t unknown = 0;  ///< pages whose checksum was not on record and was computed now
  bool sum_matches = false;   ///< XOR of all page checksums equals pos.checksum
  std::uint64_t repaired = 0;  ///< pages that were damaged before, and are as they should be now
  std::string integrity;      ///< PRAGMA integrity_check: "ok", findings, or empty (not asked for)
  bool ok() const { return bad_count == 0 && sum_matches && (integrity.empty() || integrity == "ok"); }
};

struct VerifyOptions {
  std::function<bool()> cancelled;
  std::uint32_t batch_pages = 64;  ///< read under one hold of the commit lock
  /// Before each batch, without a lock: may wait. The pages from `first` on, of `page_size` bytes each.
  std::function<void(Pgno first, std::uint32_t page_size)> before_batch;
};

/// Errc::cancelled, Errc::busy (a rollback transaction stayed open), Errc::unavailable, read errors.
Result<VerifyReport> verify_database(storage::Database& database, const VerifyOptions& options);

std::string verify_json(const std::string& name, const VerifyReport& report);

}  // namespace sluice::server
