#include "storage/apply/live_index.h"

#include <fcntl.h>

#include <cerrno>

#include "base/check.h"
#include "storage/apply/helper_index.h"
#include "storage/apply/io.h"
#include "storage/apply/wal_index_map.h"

namespace sluice::storage::apply {

Result<std::unique_ptr<LiveIndex>> LiveIndex::create(LiveFiles& files, IndexHelper* helper) {
  if (files.access().passthrough()) return std::unique_ptr<LiveIndex>(std::make_unique<WalIndexMap>(files));
  if (helper == nullptr) return make_error(Errc::internal, "no process to map wal-indexes was configured");
  return std::unique_ptr<LiveIndex>(std::make_unique<HelperIndex>(files, *helper));
}

// A store through a mapping into a hole would raise SIGBUS on a full disk, or, on the plain path, get lost when the kernel
// writes the page back. Zeros cannot be written instead: a client may be making the index at this moment.
Result<void> LiveIndex::grow(std::size_t from, std::size_t blocks) const {
  const std::uint64_t wanted = blocks * sqlite::kWalIndexBlockSize;
  TRY_ASSIGN(const std::uint64_t size, file_size(files_.shm(), files_.shm_name()));
  if (size < wanted) TRY(files_.resize_shm(wanted));
  const std::uint64_t begin = from * sqlite::kWalIndexBlockSize;
  int rc = 0;
  do {
    rc = ::fallocate(files_.shm(), 0, static_cast<off_t>(begin), static_cast<off_t>(wanted - begin));
  } while (rc != 0 && errno == EINTR);
  if (rc == 0 || errno == EOPNOTSUPP) return {};  // a file system that cannot promise room
  return errno_error("allocate " + files_.shm_name(), errno);
}

Result<void> publish_in(IndexBlocks& blocks, std::uint32_t first, std::span<const std::uint32_t> pages,
                        const sqlite::WalIndexHeader& header, std::span<const IndexStore> stores) {
  TRY(blocks.append(first, pages));
  sqlite::publish_header(blocks.block(0), header);
  store_in(blocks, stores);
  return {};
}

void store_in(IndexBlocks& blocks, std::span<const IndexStore> stores) {
  std::byte* const index = blocks.block(0);
  CHECK(index != nullptr);
  for (const IndexStore& store : stores) {
    switch (store.word) {
      case IndexWord::backfilled: sqlite::store_backfilled(index, store.value); break;
      case IndexWord::backfill_attempted: sqlite::store_backfill_attempted(index, store.value); break;
      default: sqlite::store_read_mark(index, static_cast<unsigned>(store.word), store.value); break;
    }
  }
}

void erase_header_in(IndexBlocks& blocks) {
  using Word32 [[gnu::may_alias]] = std::uint32_t;
  std::byte* const index = blocks.block(0);
  CHECK(index != nullptr);
  auto* words = reinterpret_cast<Word32*>(index);
  for (std::size_t i = 0; i < 2 * sizeof(sqlite::WalIndexHeader) / sizeof(Word32); ++i) {
    __atomic_store_n(&words[i], 0u, __ATOMIC_SEQ_CST);
  }
}

}  // namespace sluice::storage::apply
