#include "storage/apply/wal_index_map.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>

#include "base/check.h"
#include "storage/apply/io.h"

namespace sluice::storage::apply {
namespace {

using sqlite::kBlockFrames;
using sqlite::kFirstBlockFrames;
using sqlite::kWalIndexBlockSize;

constexpr std::uint32_t kHashSlots = 8192;
constexpr std::uint32_t kHashMultiplier = 383;
constexpr std::size_t kHashOffset = kBlockFrames * sizeof(std::uint32_t);

/// Frames before the block's first.
constexpr std::uint32_t frames_before(std::uint32_t block) {
  return block == 0 ? 0 : kFirstBlockFrames + (block - 1) * kBlockFrames;
}

/// walHashGet over one block: last frame of `pgno` up to mx_frame, or 0.
std::uint32_t find_in_block(const std::byte* block, std::uint32_t number, std::uint32_t pgno, std::uint32_t mx_frame) {
  using Word16 [[gnu::may_alias]] = std::uint16_t;
  const auto* hash = reinterpret_cast<const Word16*>(block + kHashOffset);
  std::uint32_t found = 0;
  std::uint32_t slot = pgno * kHashMultiplier % kHashSlots;
  for (std::uint32_t tries = 0; tries < kHashSlots; ++tries, slot = (slot + 1) % kHashSlots) {
    const std::uint32_t index = __atomic_load_n(&hash[slot], __ATOMIC_ACQUIRE);
    if (index == 0) break;
    if (index > kBlockFrames) continue;
    const std::uint32_t frame = frames_before(number) + index;
    if (frame <= mx_frame && frame > found && sqlite::frame_page(block, frame) == pgno) found = frame;
  }
  return found;
}

}  // namespace

Result<void> WalIndexMap::reserve(std::uint32_t last_frame) {
  const std::size_t wanted = sqlite::block_of(last_frame == 0 ? 1 : last_frame) + std::size_t{1};
  std::size_t mapped = 0;
  {
    MutexLock lock(mutex_);
    mapped = blocks_.size();
  }
  if (mapped >= wanted) return {};
  TRY_ASSIGN(const std::uint64_t size, file_size(files_.shm(), files_.shm_name()));
  if (size < wanted * kWalIndexBlockSize) TRY(files_.resize_shm(wanted * kWalIndexBlockSize));
  TRY(allocate(mapped * kWalIndexBlockSize, wanted * kWalIndexBlockSize));
  MutexLock lock(mutex_);
  while (blocks_.size() < wanted) {
    void* address = ::mmap(nullptr, kWalIndexBlockSize, PROT_READ | PROT_WRITE, MAP_SHARED, files_.shm(),
                           static_cast<off_t>(blocks_.size() * kWalIndexBlockSize));
    if (address == MAP_FAILED) return errno_error("mmap " + files_.shm_name(), errno);
    blocks_.emplace_back(address, kWalIndexBlockSize);
  }
  header_ = blocks_.front().data();
  return {};
}

// A store through the mapping into a hole would raise SIGBUS on a full disk. Zeros cannot be written instead: a client may
// be making the index at this moment.
Result<void> WalIndexMap::allocate(std::uint64_t from, std::uint64_t to) const {
  int rc = 0;
  do {
    rc = ::fallocate(files_.shm(), 0, static_cast<off_t>(from), static_cast<off_t>(to - from));
  } while (rc != 0 && errno == EINTR);
  if (rc == 0 || errno == EOPNOTSUPP) return {};  // a file system that cannot promise room
  return errno_error("allocate " + files_.shm_name(), errno);
}

std::byte* WalIndexMap::block(std::uint32_t number) const {
  MutexLock lock(mutex_);
  return number < blocks_.size() ? blocks_[number].data() : nullptr;
}

Result<void> WalIndexMap::append(std::uint32_t first, const std::vector<std::uint32_t>& pages) {
  std::uint32_t frame = first;
  std::uint32_t current = sqlite::block_of(first);
  std::byte* memory = block(current);
  CHECK(memory != nullptr);
  const bool continues_block = frame - 1 > frames_before(current);
  if (continues_block && sqlite::frame_slot_used(memory, frame)) sqlite::remove_frames_above(memory, frame - 1);
  for (const std::uint32_t pgno : pages) {
    if (sqlite::block_of(frame) != current) {
      current = sqlite::block_of(frame);
      memory = block(current);
      CHECK(memory != nullptr);
    }
    TRY(sqlite::append_frame(memory, frame, pgno));
    ++frame;
  }
  return {};
}

std::uint32_t WalIndexMap::page_of(std::uint32_t frame) const {
  const std::byte* memory = block(sqlite::block_of(frame));
  return memory == nullptr ? 0 : sqlite::frame_page(memory, frame);
}

std::uint32_t WalIndexMap::find(Pgno pgno, std::uint32_t mx_frame) const {
  if (mx_frame == 0) return 0;
  for (std::uint32_t number = sqlite::block_of(mx_frame) + 1; number-- > 0;) {
    const std::byte* memory = block(number);
    if (memory == nullptr) continue;
    if (const std::uint32_t frame = find_in_block(memory, number, pgno.value(), mx_frame); frame != 0) return frame;
  }
  return 0;
}

}  // namespace sluice::storage::apply
