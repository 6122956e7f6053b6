#include "storage/sqlite/wal_index.h"

#include <atomic>
#include <bit>
#include <string>

#include "base/check.h"

// How the memory is touched. The file is mapped by processes that share no lock with us for reading, so every
// access is an atomic of the size SQLite uses. Headers are copied word by word with release/acquire; together
// with the full barrier between the two copies (walShmBarrier()) that gives SQLite's protocol:
//
//   writer                          reader
//   page numbers, hash slots
//   copy [1]                        copy [0]
//   barrier                         barrier
//   copy [0]                        copy [1]      equal, checksum right -> everything up to mxFrame is
//   visible
namespace sluice::sqlite {
namespace {

// May alias: the same bytes are seen as words of several sizes.
using Word16 [[gnu::may_alias]] = std::uint16_t;
using Word32 [[gnu::may_alias]] = std::uint32_t;
using Word64 [[gnu::may_alias]] = std::uint64_t;

constexpr std::size_t kHeaderCopySize = sizeof(WalIndexHeader);
constexpr std::size_t kHeaderChecksummed = 40;
constexpr std::size_t kBackfilledOffset = 96;
constexpr std::size_t kReadMarksOffset = 100;
constexpr std::size_t kBackfillAttemptedOffset = 128;
constexpr unsigned kReadMarks = 5;

constexpr std::size_t kHashOffset = kBlockFrames * sizeof(std::uint32_t);
constexpr std::uint32_t kHashSlots = 8192;
constexpr std::uint32_t kHashMultiplier = 383;
static_assert(kHashOffset + kHashSlots * sizeof(std::uint16_t) == kWalIndexBlockSize);
static_assert(kWalIndexHeaderSize / sizeof(std::uint32_t) + kFirstBlockFrames == kBlockFrames);

// A writer copies 48 bytes; a reader that has seen this many unequal pairs has met one that died or sleeps
// between them.
constexpr int kHeaderTries = 64;

Word32* word_at(std::byte* p, std::size_t offset) {
  return reinterpret_cast<Word32*>(p + offset);
}
const Word32* word_at(const std::byte* p, std::size_t offset) {
  return reinterpret_cast<const Word32*>(p + offset);
}
std::uint32_t load_acquire(const std::byte* p, std::size_t offset) {
  return __atomic_load_n(word_at(p, offset), __ATOMIC_ACQUIRE);
}
void store_release(std::byte* p, std::size_t offset, std::uint32_t value) {
  __atomic_store_n(word_at(p, offset), value, __ATOMIC_RELEASE);
}

void full_barrier() {
  // gcc warns that TSan does not model fences; the release/acquire words above already order what TSan can
  // see.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wtsan"
#endif
  std::atomic_thread_fence(std::memory_order_seq_cst);
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

WalIndexHeader load_header(const std::byte* from) {
  std::array<std::uint32_t, kHeaderCopySize / 4> words;
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = load_acquire(from, i * 4);
  return std::bit_cast<WalIndexHeader>(words);
}

void store_header(std::byte* to, const WalIndexHeader& header) {
  const auto words = std::bit_cast<std::array<std::uint32_t, kHeaderCopySize / 4>>(header);
  for (std::size_t i = 0; i < words.size(); ++i) store_release(to, i * 4, words[i]);
}

WalChecksum header_checksum(const WalIndexHeader& header) {
  const auto bytes = std::bit_cast<std::array<std::byte, kHeaderCopySize>>(header);
  return wal_checksum(false, ByteView(bytes).first(kHeaderChecksummed), {});  // native words
}

bool header_intact(const WalIndexHeader& header) {
  return header.is_init != 0 && header_checksum(header) == header.checksum;
}

// Index of `frame` within its block, from 1 (the value that hash slots hold).
std::uint32_t index_in_block(std::uint32_t frame) {
  return frame <= kFirstBlockFrames ? frame : (frame - kFirstBlockFrames - 1) % kBlockFrames + 1;
}
// Byte offset of the page number array of the block that holds `frame`.
std::size_t array_offset(std::uint32_t frame) {
  return frame <= kFirstBlockFrames ? kWalIndexHeaderSize : 0;
}
// Byte offset of the page number of `frame`.
std::size_t pgno_offset(std::uint32_t frame) {
  return array_offset(frame) + (index_in_block(frame) - 1) * sizeof(std::uint32_t);
}

Word16* hash_table(std::byte* block) {
  return reinterpret_cast<Word16*>(block + kHashOffset);
}

void zero_block(std::byte* block, std::size_t from) {
  for (std::size_t offset = from; offset < kWalIndexBlockSize; offset += sizeof(Word64)) {
    __atomic_store_n(reinterpret_cast<Word64*>(block + offset), std::uint64_t{0}, __ATOMIC_RELAXED);
  }
}
static_assert(kWalIndexHeaderSize % sizeof(Word64) == 0);

}  // namespace

std::uint16_t encode_page_size(std::uint32_t page_size) {
  return static_cast<std::uint16_t>((page_size & 0xff00u) | (page_size >> 16));
}

HeaderState read_header(const std::byte* index, WalIndexHeader& out) {
  WalIndexHeader first;
  WalIndexHeader second;
  for (int i = 0; i < kHeaderTries; ++i) {
    first = load_header(index);
    full_barrier();
    second = load_header(index + kHeaderCopySize);
    out = first;
    if (first == second && header_intact(first)) return HeaderState::valid;
    if (first == second && first.is_init == 0) return HeaderState::invalid;
    pause_cpu();
  }
  if (header_intact(first)) return HeaderState::torn;
  if (!header_intact(second)) return HeaderState::invalid;
  out = second;
  return HeaderState::torn;
}

void publish_header(std::byte* index, WalIndexHeader header) {
  header.version = kWalIndexVersion;
  header.is_init = 1;
  header.checksum = header_checksum(header);
  store_header(index + kHeaderCopySize, header);
  full_barrier();
  store_header(index, header);
}

void poison_header(std::byte* index) {
  WalIndexHeader header;
  if (read_header(index, header) == HeaderState::invalid) header = WalIndexHeader{};
  header.version = kPoisonedVersion;
  header.is_init = 1;
  header.checksum = header_checksum(header);
  store_header(index + kHeaderCopySize, header);
  full_barrier();
  store_header(index, header);
}

CheckpointInfo read_checkpoint_info(const std::byte* index) {
  CheckpointInfo info;
  info.backfilled = load_backfilled(index);
  for (unsigned i = 0; i < kReadMarks; ++i) info.read_marks[i] = load_read_mark(index, i);
  info.backfill_attempted = load_acquire(index, kBackfillAttemptedOffset);
  return info;
}

std::uint32_t load_backfilled(const std::byte* index) {
  return load_acquire(index, kBackfilledOffset);
}
void store_backfilled(std::byte* index, std::uint32_t frame) {
  store_release(index, kBackfilledOffset, frame);
}
void store_backfill_attempted(std::byte* index, std::uint32_t frame) {
  store_release(index, kBackfillAttemptedOffset, frame);
}
std::uint32_t load_read_mark(const std::byte* index, unsigned mark) {
  CHECK(mark < kReadMarks);
  return load_acquire(index, kReadMarksOffset + mark * sizeof(std::uint32_t));
}
void store_read_mark(std::byte* index, unsigned mark, std::uint32_t frame) {
  CHECK(mark < kReadMarks);
  store_release(index, kReadMarksOffset + mark * sizeof(std::uint32_t), frame);
}

std::uint32_t frame_page(const std::byte* block, std::uint32_t frame) {
  if (frame == 0) return 0;
  return __atomic_load_n(word_at(block, pgno_offset(frame)), __ATOMIC_RELAXED);
}

bool frame_slot_used(const std::byte* block, std::uint32_t frame) {
  return frame_page(block, frame) != 0;
}

Result<void> append_frame(std::byte* block, std::uint32_t frame, std::uint32_t pgno) {
  CHECK(frame != 0 && pgno != 0);
  const std::uint32_t index = index_in_block(frame);
  if (index == 1) {
    zero_block(block, array_offset(frame));
  } else if (frame_slot_used(block, frame)) {
    return make_error(Errc::corrupt, "wal-index: frame " + std::to_string(frame) + " is there already");
  }
  Word16* const hash = hash_table(block);
  std::uint32_t slot = pgno * kHashMultiplier % kHashSlots;
  for (std::uint32_t collisions = 0; __atomic_load_n(&hash[slot], __ATOMIC_RELAXED) != 0; ++collisions) {
    // No more entries than page numbers before this one can be in the way.
    if (collisions == index) {
      return make_error(Errc::corrupt, "wal-index: hash table is full at frame " + std::to_string(frame));
    }
    slot = (slot + 1) % kHashSlots;
  }
  __atomic_store_n(word_at(block, pgno_offset(frame)), pgno, __ATOMIC_RELAXED);
  __atomic_store_n(&hash[slot], static_cast<std::uint16_t>(index), __ATOMIC_RELEASE);
  return {};
}

void remove_frames_above(std::byte* block, std::uint32_t mx_frame) {
  if (mx_frame == 0) return;  // the block is zeroed when frame 1 comes
  const std::uint32_t limit = index_in_block(mx_frame);
  Word16* const hash = hash_table(block);
  for (std::uint32_t slot = 0; slot < kHashSlots; ++slot) {
    if (__atomic_load_n(&hash[slot], __ATOMIC_RELAXED) > limit) {
      __atomic_store_n(&hash[slot], std::uint16_t{0}, __ATOMIC_RELAXED);
    }
  }
  for (std::size_t offset = pgno_offset(mx_frame) + sizeof(std::uint32_t); offset < kHashOffset;
       offset += 4) {
    __atomic_store_n(word_at(block, offset), std::uint32_t{0}, __ATOMIC_RELAXED);
  }
}

}  // namespace sluice::sqlite
