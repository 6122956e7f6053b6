// Per-page checksums of one database in a memory-mapped side file: what makes the rolling checksum of a
// change set cheap and what resync and scrub compare. Format: docs/FORMATS.md.
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/os.h"
#include "storage/ids.h"

namespace sluice::storage {

/// What the side file knows besides the checksums. `checkpoint` is the TXID up to which *all* of the file's
/// entries were synced: after a crash the log's change sets above it are replayed into the file (entries are
/// absolute, so replaying is idempotent and any mixture of older and newer entries is repaired). After a
/// restart of the machine, which may have lost log records whose entries survived, opening keeps the entries
/// only if they are exactly those of the checkpoint; else all become unknown.
struct ChecksumsState {
  Pos checkpoint;
  std::uint32_t page_size = 0;
  std::uint32_t page_count = 0;  ///< at `checkpoint`
  bool operator==(const ChecksumsState&) const = default;
};

/// Not thread-safe for writers (the database's commit lock covers them); get() may race with set(), and
/// checkpoint() with both: entries set meanwhile are newer than its state, which replaying the log repairs.
class PageChecksums {
 public:
  /// Opens or creates. Errc::corrupt: header damaged (the caller removes the file and rebuilds);
  /// Errc::unsupported: made by a newer version.
  static Result<std::unique_ptr<PageChecksums>> open(FileSystem& fs, const std::string& path);

  /// Thread-safe.
  ChecksumsState state() const EXCLUDES(state_mutex_);
  /// 0 = unknown. A few nanoseconds.
  Checksum get(Pgno pgno) const;
  /// Grows the file as needed (in large, sparse steps). Errc::no_space before any entry could be lost to a
  /// full disk.
  Result<void> set(Pgno pgno, Checksum checksum);
  /// Makes room for set() of this page, which then cannot fail: for what must not fail half-way. A few
  /// nanoseconds when there is room.
  Result<void> prepare(Pgno pgno);
  /// Forgets pages above `page_count`. Not beside get().
  Result<void> truncate(std::uint32_t page_count);
  /// Makes every entry durable, then records `state` durably. Blocks on the disk: not under a lock that
  /// handlers take.
  Result<void> checkpoint(const ChecksumsState& state) EXCLUDES(state_mutex_);
  /// Forgets everything, durably: new page size, or rebuild. Not beside get().
  Result<void> reset() EXCLUDES(state_mutex_);

 private:
  explicit PageChecksums(std::unique_ptr<File> file);
  Result<void> load();
  Result<void> distrust(const ChecksumsState& state);
  bool matches(const ChecksumsState& state) const;
  Result<void> reserve(std::uint64_t entries);
  Result<void> allocate_block(std::uint64_t block);
  Result<void> sync() EXCLUDES(state_mutex_);
  Result<void> write_state(const ChecksumsState& state) EXCLUDES(state_mutex_);

  std::unique_ptr<File> file_;
  /// Larger ones come as the file grows; the smaller ones stay for a get() that is still in them.
  std::vector<Mapping> mappings_;
  std::atomic<std::uint64_t*> entries_{nullptr};  ///< entry of page 1, in the newest mapping
  std::atomic<std::uint64_t> capacity_{0};        ///< entries that the file has room for; set after entries_
  std::vector<bool> allocated_;                   ///< by block: a store cannot meet a full disk (SIGBUS)

  mutable Mutex state_mutex_;
  ChecksumsState state_ GUARDED_BY(state_mutex_);
  std::uint64_t sequence_ GUARDED_BY(state_mutex_) = 0;
  std::optional<Error> sync_failed_ GUARDED_BY(state_mutex_);
};

}  // namespace sluice::storage
