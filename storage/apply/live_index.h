// A live database's wal-index (-shm), as the side that applies uses it. Two ways to the memory that clients have mapped: WalIndexMap
// maps the backing file (native path), HelperIndex has another process map the mount (plain path; decisions/0006).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/errors.h"
#include "storage/apply/index_blocks.h"
#include "storage/apply/live_files.h"
#include "storage/sqlite/wal_index.h"

namespace sluice::storage::apply {

class IndexHelper;

/// A word of the checkpoint info.
enum class IndexWord : std::uint32_t { read_mark0, read_mark1, read_mark2, read_mark3, read_mark4, backfilled, backfill_attempted };
struct IndexStore {
  IndexWord word{};
  std::uint32_t value = 0;
};

/// One thread publishes (the one that applies); everything else may run beside it. Errors: the index may be behind by what
/// failed, never half-way in what readers trust.
class LiveIndex {
 public:
  /// `helper` is needed unless -shm is passthrough; it outlives the index. `files` have -wal and -shm open.
  static Result<std::unique_ptr<LiveIndex>> create(LiveFiles& files, IndexHelper* helper);
  virtual ~LiveIndex() = default;

  /// Makes room for frames up to `last_frame`: grows the file through the mount (a FUSE request, never under the commit
  /// lock), allocates and maps what is new. The header's block is always there afterwards. Errc::no_space before a store
  /// could meet a full disk.
  virtual Result<void> reserve(std::uint32_t last_frame) = 0;
  /// Somebody else has entered frames.
  virtual Result<void> reload() = 0;

  virtual Result<sqlite::HeaderState> read_header(sqlite::WalIndexHeader& out) const = 0;
  virtual Result<sqlite::CheckpointInfo> checkpoint_info() const = 0;

  /// Enters pages of frames first, first + 1, … (reserved), then publishes the header, then stores the words, in this order.
  virtual Result<void> publish(std::uint32_t first, std::span<const std::uint32_t> pages,
                               const sqlite::WalIndexHeader& header, std::span<const IndexStore> stores) = 0;
  virtual Result<void> store(std::span<const IndexStore> stores) = 0;
  /// Makes the header invalid: all locks are held.
  virtual Result<void> erase_header() = 0;

  std::uint32_t page_of(std::uint32_t frame) const { return blocks_.page_of(frame); }
  std::uint32_t find(Pgno pgno, std::uint32_t mx_frame) const { return blocks_.find(pgno, mx_frame); }

 protected:
  explicit LiveIndex(LiveFiles& files) : files_(files) {}
  /// Grows the file to hold `blocks` blocks, and allocates those from `from` on.
  Result<void> grow(std::size_t from, std::size_t blocks) const;

  LiveFiles& files_;
  IndexBlocks blocks_;  ///< the file itself, or what we have stored there
};

inline std::size_t blocks_for(std::uint32_t last_frame) {
  return sqlite::block_of(last_frame == 0 ? 1 : last_frame) + std::size_t{1};
}
/// What publish(), store() and erase_header() do, on mapped blocks (block 0 is there).
Result<void> publish_in(IndexBlocks& blocks, std::uint32_t first, std::span<const std::uint32_t> pages,
                        const sqlite::WalIndexHeader& header, std::span<const IndexStore> stores);
void store_in(IndexBlocks& blocks, std::span<const IndexStore> stores);
void erase_header_in(IndexBlocks& blocks);

}  // namespace sluice::storage::apply
