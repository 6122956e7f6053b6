#include "storage/apply/helper_index.h"

#include <algorithm>
#include <array>

#include "storage/apply/io.h"

namespace sluice::storage::apply {
namespace {

struct alignas(8) Head {  // it is looked at in words
  std::array<std::byte, sqlite::kWalIndexHeaderSize> bytes{};
};

Result<Head> read_head(LiveFiles& files) {
  Head head;
  TRY(read_full(files.mount_shm(), 0, head.bytes, files.shm_name()));
  return head;
}

}  // namespace

Result<void> HelperIndex::reserve(std::uint32_t last_frame) {
  const std::size_t wanted = blocks_for(last_frame);
  const std::size_t have = blocks_.count();
  if (have >= wanted) return {};
  TRY(grow(have, wanted));
  TRY(helper_.map(id_, static_cast<std::uint32_t>(wanted)));
  TRY(blocks_.map(-1, wanted));
  return load(have, wanted);
}

Result<void> HelperIndex::reload() { return load(0, blocks_.count()); }

Result<void> HelperIndex::load(std::size_t from, std::size_t to) {
  for (std::size_t i = from; i < to; ++i) {
    const ByteSpan block(blocks_.block(static_cast<std::uint32_t>(i)), sqlite::kWalIndexBlockSize);
    TRY(read_full(files_.mount_shm(), i * sqlite::kWalIndexBlockSize, block, files_.shm_name()));
  }
  return {};
}

// A client that recovers may be between its two copies: as in SQLite, it is looked at again.
Result<sqlite::HeaderState> HelperIndex::read_header(sqlite::WalIndexHeader& out) const {
  constexpr int kAttempts = 8;
  auto state = sqlite::HeaderState::invalid;
  for (int attempt = 0; attempt < kAttempts && state != sqlite::HeaderState::valid; ++attempt) {
    TRY_ASSIGN(const Head head, read_head(files_));
    state = sqlite::read_header(head.bytes.data(), out);
  }
  return state;
}

Result<sqlite::CheckpointInfo> HelperIndex::checkpoint_info() const {
  TRY_ASSIGN(const Head head, read_head(files_));
  return sqlite::read_checkpoint_info(head.bytes.data());
}

Result<void> HelperIndex::publish(std::uint32_t first, std::span<const std::uint32_t> pages,
                                  const sqlite::WalIndexHeader& header, std::span<const IndexStore> stores) {
  TRY(blocks_.append(first, pages));
  return helper_.publish(id_, first, pages, header, stores);
}

}  // namespace sluice::storage::apply
