// Per-page checksums of one database in a memory-mapped side file: what makes the rolling checksum of a change set cheap
// and what resync and scrub compare. Format: docs/FORMATS.md.
#pragma once

#include <memory>
#include <string>

#include "base/os.h"
#include "storage/ids.h"

namespace sluice::storage {

/// What the side file knows besides the checksums. `checkpoint` is the TXID up to which *all* of the file's entries were
/// synced: after a crash the log's change sets above it are replayed into the file (entries are absolute, so replaying is
/// idempotent and any mixture of older and newer entries is repaired).
struct ChecksumsState {
  Pos checkpoint;
  std::uint32_t page_size = 0;
  std::uint32_t page_count = 0;  ///< at `checkpoint`
};

/// Not thread-safe for writers (the database's commit lock covers them); get() may race with set() of other pages.
class PageChecksums {
 public:
  /// Opens or creates. Errc::corrupt: header damaged (the caller rebuilds).
  static Result<std::unique_ptr<PageChecksums>> open(FileSystem& fs, const std::string& path);

  const ChecksumsState& state() const { return state_; }
  /// 0 = unknown.
  Checksum get(Pgno pgno) const;
  /// Grows the file as needed (in large steps; sparse).
  Result<void> set(Pgno pgno, Checksum checksum);
  /// Forgets pages above `page_count`.
  Result<void> truncate(std::uint32_t page_count);
  /// Makes every entry durable, then records `state` durably. Blocks on the disk: not under a lock that handlers take.
  Result<void> checkpoint(const ChecksumsState& state);
  /// Forgets everything: new page size, or rebuild.
  Result<void> reset();

 private:
  PageChecksums(FileSystem& fs, std::unique_ptr<File> file);
  Result<void> reserve(std::uint64_t entries);

  FileSystem& fs_;
  std::unique_ptr<File> file_;
  Mapping mapping_;
  ChecksumsState state_;
};

}  // namespace sluice::storage
