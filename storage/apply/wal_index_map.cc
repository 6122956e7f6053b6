#include "storage/apply/wal_index_map.h"

namespace sluice::storage::apply {

Result<void> WalIndexMap::reserve(std::uint32_t last_frame) {
  const std::size_t wanted = blocks_for(last_frame);
  const std::size_t mapped = blocks_.count();
  if (mapped >= wanted) return {};
  TRY(grow(mapped, wanted));
  return blocks_.map(files_.shm(), wanted);
}

}  // namespace sluice::storage::apply
