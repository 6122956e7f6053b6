// Pages of a transaction that is not committed yet, compressed while it is being written: SQLite writes what does not fit into its
// cache to the WAL before the commit, and the checkpoint after the commit waits for the capture (docs/PERFORMANCE.md). Nothing here
// is believed: a block counts only for a page whose content has the same checksum when the transaction is captured.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/function_ref.h"
#include "base/mutex.h"
#include "base/os.h"
#include "storage/packed_pages.h"
#include "storage/sqlite/wal_format.h"

namespace sluice::fuse {

/// Of one database. Thread-safe, but for clear(), before which the blocks that find() gave must be done with.
class PagesAhead final : public storage::PackedPages {
 public:
  /// `used`: bytes of all databases' blocks together, kept under `limit`. `hits` counts blocks that find() gave.
  PagesAhead(std::atomic<std::uint64_t>& used, std::uint64_t limit, std::atomic<std::uint64_t>& hits)
      : used_(used), limit_(limit), hits_(hits) {}
  ~PagesAhead() override { clear(); }

  /// Are there many frames behind those captured (and those already compressed)? A cheap look.
  bool worth_it(const File& wal, const sqlite::WalPosition& captured) EXCLUDES(mutex_);
  /// Compresses frames behind `captured` while there are some and `go_on`. Reads without any lock: SQLite may be writing them.
  void prepare(const File& wal, const sqlite::WalPosition& captured, FunctionRef<bool()> go_on) EXCLUDES(mutex_);
  ByteView find(Pgno pgno, Checksum content) EXCLUDES(mutex_) override;
  void clear() EXCLUDES(mutex_);

 private:
  struct Block {
    Checksum content;
    std::unique_ptr<std::byte[]> bytes;
    std::size_t size = 0;
  };
  /// Where to go on, for a WAL whose header is as it is now; 0: nowhere.
  std::uint32_t next_frame(const File& wal, const sqlite::WalPosition& captured, sqlite::WalHeader& header)
      EXCLUDES(mutex_);
  bool keep(Pgno pgno, Checksum content, ByteView block, std::uint32_t frame) EXCLUDES(mutex_);

  std::atomic<std::uint64_t>& used_;
  const std::uint64_t limit_;
  std::atomic<std::uint64_t>& hits_;
  Mutex mutex_;
  std::unordered_map<std::uint32_t, Block> blocks_ GUARDED_BY(mutex_);
  std::vector<std::unique_ptr<std::byte[]>> replaced_ GUARDED_BY(mutex_);  ///< may be in somebody's hands
  std::uint64_t bytes_ GUARDED_BY(mutex_) = 0;
  sqlite::Salts salts_ GUARDED_BY(mutex_){};
  std::uint32_t last_ GUARDED_BY(mutex_) = 0;  ///< frame of that generation
  bool full_ GUARDED_BY(mutex_) = false;
};

}  // namespace sluice::fuse
