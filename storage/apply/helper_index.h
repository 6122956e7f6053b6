// A database's wal-index on the plain path: stores go through the helper process, which maps the mount; header and words
// are read with pread through the mount; page numbers and hash tables, which on a replica nobody but us enters, from a copy.
#pragma once

#include "storage/apply/index_helper.h"
#include "storage/apply/live_index.h"

namespace sluice::storage::apply {

class HelperIndex final : public LiveIndex {
 public:
  HelperIndex(LiveFiles& files, IndexHelper& helper) : LiveIndex(files), helper_(helper), id_(helper.add(files.mount_shm())) {}
  ~HelperIndex() override { helper_.remove(id_); }

  Result<void> reserve(std::uint32_t last_frame) override;
  Result<void> reload() override;
  Result<sqlite::HeaderState> read_header(sqlite::WalIndexHeader& out) const override;
  Result<sqlite::CheckpointInfo> checkpoint_info() const override;
  Result<void> publish(std::uint32_t first, std::span<const std::uint32_t> pages, const sqlite::WalIndexHeader& header,
                       std::span<const IndexStore> stores) override;
  Result<void> store(std::span<const IndexStore> stores) override { return helper_.store(id_, stores); }
  Result<void> erase_header() override { return helper_.erase_header(id_); }

 private:
  Result<void> load(std::size_t from, std::size_t to);

  IndexHelper& helper_;
  const std::uint32_t id_;
};

}  // namespace sluice::storage::apply
