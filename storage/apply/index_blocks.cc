#include "storage/apply/index_blocks.h"

#include <sys/mman.h>

#include <cerrno>

#include "storage/sqlite/wal_index.h"

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

Result<void> IndexBlocks::map(int fd, std::size_t count) {
  MutexLock lock(mutex_);
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  while (blocks_.size() < count) {
    const auto offset = fd < 0 ? 0 : static_cast<off_t>(blocks_.size() * kWalIndexBlockSize);
    void* address = ::mmap(nullptr, kWalIndexBlockSize, PROT_READ | PROT_WRITE, flags, fd, offset);
    if (address == MAP_FAILED) return errno_error("mmap a wal-index", errno);
    blocks_.emplace_back(address, kWalIndexBlockSize);
  }
  return {};
}

void IndexBlocks::clear() {
  MutexLock lock(mutex_);
  blocks_.clear();
}

std::size_t IndexBlocks::count() const {
  MutexLock lock(mutex_);
  return blocks_.size();
}

std::byte* IndexBlocks::block(std::uint32_t number) const {
  MutexLock lock(mutex_);
  return number < blocks_.size() ? blocks_[number].data() : nullptr;
}

Result<void> IndexBlocks::append(std::uint32_t first, std::span<const std::uint32_t> pages) {
  if (pages.empty()) return {};
  std::uint32_t frame = first;
  std::uint32_t current = sqlite::block_of(first);
  std::byte* memory = block(current);
  if (memory == nullptr || block(sqlite::block_of(first + static_cast<std::uint32_t>(pages.size()) - 1)) == nullptr) {
    return make_error(Errc::internal, "wal-index: no room was made for frame " + std::to_string(first));
  }
  const bool continues_block = frame - 1 > frames_before(current);
  if (continues_block && sqlite::frame_slot_used(memory, frame)) sqlite::remove_frames_above(memory, frame - 1);
  for (const std::uint32_t pgno : pages) {
    if (sqlite::block_of(frame) != current) {
      current = sqlite::block_of(frame);
      memory = block(current);
    }
    TRY(sqlite::append_frame(memory, frame, pgno));
    ++frame;
  }
  return {};
}

std::uint32_t IndexBlocks::page_of(std::uint32_t frame) const {
  const std::byte* memory = block(sqlite::block_of(frame));
  return memory == nullptr ? 0 : sqlite::frame_page(memory, frame);
}

std::uint32_t IndexBlocks::find(Pgno pgno, std::uint32_t mx_frame) const {
  if (mx_frame == 0) return 0;
  for (std::uint32_t number = sqlite::block_of(mx_frame) + 1; number-- > 0;) {
    const std::byte* memory = block(number);
    if (memory == nullptr) continue;
    if (const std::uint32_t frame = find_in_block(memory, number, pgno.value(), mx_frame); frame != 0) return frame;
  }
  return 0;
}

}  // namespace sluice::storage::apply
