// A database's wal-index (-shm): the backing file mapped block by block, as SQLite maps it (native path).
#pragma once

#include "storage/apply/live_index.h"

namespace sluice::storage::apply {

class WalIndexMap final : public LiveIndex {
 public:
  explicit WalIndexMap(LiveFiles& files) : LiveIndex(files) {}

  Result<void> reserve(std::uint32_t last_frame) override;
  Result<void> reload() override { return {}; }
  Result<sqlite::HeaderState> read_header(sqlite::WalIndexHeader& out) const override {
    return sqlite::read_header(blocks_.block(0), out);
  }
  Result<sqlite::CheckpointInfo> checkpoint_info() const override {
    return sqlite::read_checkpoint_info(blocks_.block(0));
  }
  Result<void> publish(std::uint32_t first, std::span<const std::uint32_t> pages, const sqlite::WalIndexHeader& header,
                       std::span<const IndexStore> stores) override {
    return publish_in(blocks_, first, pages, header, stores);
  }
  Result<void> store(std::span<const IndexStore> stores) override {
    store_in(blocks_, stores);
    return {};
  }
  Result<void> erase_header() override {
    erase_header_in(blocks_);
    return {};
  }
  /// Enters frames without publishing them.
  Result<void> append(std::uint32_t first, std::span<const std::uint32_t> pages) { return blocks_.append(first, pages); }
};

}  // namespace sluice::storage::apply
