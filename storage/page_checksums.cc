#include "storage/page_checksums.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <optional>

#include "base/check.h"
#include "base/log.h"
#include "storage/boot.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage {
namespace {

// Two header slots, written in turn: a torn write leaves the other one.
constexpr std::string_view kMagic = "SLUICSUM";
constexpr std::uint32_t kVersion = 1;
constexpr std::size_t kSlotSize = 64;
constexpr std::uint64_t kSlotDistance = 2048;
constexpr std::uint64_t kEntriesAt = 4096;
constexpr std::size_t kSlotCrcAt = kSlotSize - 8;

constexpr std::uint64_t kGrowStep = std::uint64_t{1} << 20;     ///< bytes of entries
constexpr std::uint64_t kMinMapping = std::uint64_t{16} << 20;  ///< address space, not memory
constexpr std::uint64_t kBlockSize = 64 * 1024;                 ///< bytes of entries allocated together
constexpr std::uint64_t kEntriesPerBlock = kBlockSize / 8;

struct Slot {
  std::uint64_t sequence = 0;
  std::uint64_t boot = 0;
  ChecksumsState state;
};

std::uint64_t slot_crc(ByteView slot) {
  ltx::Crc64 crc;
  crc.update(slot.first(kSlotCrcAt));
  return crc.value();
}

void write_slot(const Slot& slot, ByteSpan out) {
  std::fill(out.begin(), out.end(), std::byte{0});
  std::byte* p = out.data();
  std::memcpy(p, kMagic.data(), kMagic.size());
  store_le<std::uint32_t>(p + 8, kVersion);
  store_le<std::uint32_t>(p + 12, slot.state.page_size);
  store_le<std::uint64_t>(p + 16, slot.sequence);
  store_le<std::uint64_t>(p + 24, slot.state.checkpoint.txid.value());
  store_le<std::uint64_t>(p + 32, slot.state.checkpoint.checksum.value());
  store_le<std::uint32_t>(p + 40, slot.state.page_count);
  store_le<std::uint64_t>(p + 48, slot.boot);
  store_le<std::uint64_t>(p + kSlotCrcAt, slot_crc(out));
}

/// Errc::corrupt unless the slot is whole.
Result<Slot> parse_slot(ByteView in) {
  const std::byte* p = in.data();
  if (as_text(in.first(kMagic.size())) != kMagic || load_le<std::uint64_t>(p + kSlotCrcAt) != slot_crc(in)) {
    return make_error(Errc::corrupt, "header slot not valid");
  }
  if (const auto version = load_le<std::uint32_t>(p + 8); version != kVersion) {
    return make_error(
        Errc::unsupported,
        fmt::format("page checksums format {} is not known to this version of Sluice", version));
  }
  Slot slot;
  slot.state.page_size = load_le<std::uint32_t>(p + 12);
  slot.sequence = load_le<std::uint64_t>(p + 16);
  slot.state.checkpoint.txid = Txid(load_le<std::uint64_t>(p + 24));
  slot.state.checkpoint.checksum = Checksum(load_le<std::uint64_t>(p + 32));
  slot.state.page_count = load_le<std::uint32_t>(p + 40);
  slot.boot = load_le<std::uint64_t>(p + 48);
  return slot;
}

std::uint64_t* entries_of(const Mapping& mapping) {
  return reinterpret_cast<std::uint64_t*>(mapping.data() + kEntriesAt);
}

}  // namespace

PageChecksums::PageChecksums(std::unique_ptr<File> file) : file_(std::move(file)) {}

Result<std::unique_ptr<PageChecksums>> PageChecksums::open(FileSystem& fs, const std::string& path) {
  TRY(fs.make_directories(parent_directory(path)));
  TRY_ASSIGN(const bool existed, fs.exists(path));
  TRY_ASSIGN(auto file, fs.open(path, {.write = true, .create = true}));
  std::unique_ptr<PageChecksums> checksums(new PageChecksums(std::move(file)));
  TRY(checksums->load());
  if (!existed) TRY(fs.sync_directory(parent_directory(path)));
  return checksums;
}

Result<void> PageChecksums::load() {
  TRY_ASSIGN(const std::uint64_t size, file_->size());
  if (size == 0) return write_state({});
  std::optional<Slot> newest;
  std::byte bytes[kSlotSize];
  for (const std::uint64_t at : {std::uint64_t{0}, kSlotDistance}) {
    TRY_ASSIGN(const std::size_t n, file_->read_at(at, bytes));
    if (n < kSlotSize) continue;
    const auto slot = parse_slot(bytes);
    if (slot.has_error() && slot.error().code != Errc::corrupt)
      return with_context(file_->path(), slot.error());
    if (slot.has_value() && (!newest || slot->sequence > newest->sequence)) newest = *slot;
  }
  if (!newest) {
    return make_error(Errc::corrupt,
                      "page checksums " + file_->path() + ": no valid header; they must be rebuilt");
  }
  {
    MutexLock lock(state_mutex_);
    state_ = newest->state;
    sequence_ = newest->sequence;
  }
  // Whole entries only; a file cut short has lost the rest of them, and unknown entries are always right.
  TRY(reserve(size > kEntriesAt ? (size - kEntriesAt) / 8 : 0));
  // A reset that was interrupted before it had cleared the entries.
  if (newest->state == ChecksumsState{}) TRY(truncate(0));
  if (newest->boot == boot_number()) return {};
  return distrust(newest->state);
}

/// The machine has been started since. When the power failed, the kernel may have written entries of change
/// sets whose log records were lost; replaying the log does not repair those.
Result<void> PageChecksums::distrust(const ChecksumsState& state) {
  if (!matches(state)) {
    LOG_INFO("page checksums {}: start over after the machine's restart; they fill again page by page",
             file_->path());
    TRY(truncate(0));
    TRY(sync());
  }
  return write_state(state);
}

/// Are the entries exactly those of the checkpoint?
bool PageChecksums::matches(const ChecksumsState& state) const {
  if (!valid_page_size(state.page_size)) return false;
  Checksum database = kEmptyChecksum;
  for (std::uint64_t p = 1; p <= state.page_count; ++p) {
    const Pgno pgno(static_cast<std::uint32_t>(p));
    if (pgno == lock_page(state.page_size)) continue;
    const Checksum page = get(pgno);
    if (page == Checksum{}) return false;
    database = ltx::toggle(database, page);
  }
  return database == state.checkpoint.checksum;
}

ChecksumsState PageChecksums::state() const {
  MutexLock lock(state_mutex_);
  return state_;
}

Checksum PageChecksums::get(Pgno pgno) const {
  const std::uint64_t i = std::uint64_t{pgno.value()} - 1;
  if (i >= capacity_.load(std::memory_order_acquire)) return Checksum{};
  std::uint64_t* const entries = entries_.load(std::memory_order_acquire);
  return Checksum(std::atomic_ref<std::uint64_t>(entries[i]).load(std::memory_order_relaxed));
}

Result<void> PageChecksums::prepare(Pgno pgno) {
  CHECK(pgno != Pgno(0));
  const std::uint64_t i = std::uint64_t{pgno.value()} - 1;
  if (i >= capacity_.load(std::memory_order_relaxed)) TRY(reserve(i + 1));
  const std::uint64_t block = i / kEntriesPerBlock;
  if (!allocated_[block]) TRY(allocate_block(block));
  return {};
}

Result<void> PageChecksums::set(Pgno pgno, Checksum checksum) {
  TRY(prepare(pgno));
  const std::uint64_t i = std::uint64_t{pgno.value()} - 1;
  std::uint64_t* const entries = entries_.load(std::memory_order_relaxed);
  std::atomic_ref<std::uint64_t>(entries[i]).store(checksum.value(), std::memory_order_relaxed);
  return {};
}

Result<void> PageChecksums::reserve(std::uint64_t entries) {
  if (entries == 0) return {};
  const std::uint64_t bytes = (entries * 8 + kGrowStep - 1) / kGrowStep * kGrowStep;
  TRY_ASSIGN(const std::uint64_t size, file_->size());
  if (size < kEntriesAt + bytes) TRY(file_->truncate(kEntriesAt + bytes));
  if (mappings_.empty() || mappings_.back().size() < kEntriesAt + bytes) {
    // Longer than the file: the part behind its end becomes usable as the file grows.
    const std::uint64_t length = kEntriesAt + std::max(kMinMapping, std::bit_ceil(bytes));
    TRY_ASSIGN(auto mapping, file_->map_shared(length));
    mappings_.push_back(std::move(mapping));
    entries_.store(entries_of(mappings_.back()), std::memory_order_release);
  }
  allocated_.resize(bytes / kBlockSize);
  capacity_.store(bytes / 8, std::memory_order_release);
  return {};
}

/// A store through the mapping into a hole would raise SIGBUS on a full disk; writing the block as it is
/// tells us of the full disk in time.
Result<void> PageChecksums::allocate_block(std::uint64_t block) {
  Bytes content(kBlockSize);
  const std::uint64_t at = kEntriesAt + block * kBlockSize;
  TRY_ASSIGN(const std::size_t n, file_->read_at(at, content));
  CHECK(n == content.size());
  TRY(file_->write_at(at, content));
  allocated_[block] = true;
  return {};
}

Result<void> PageChecksums::truncate(std::uint32_t page_count) {
  const std::uint64_t capacity = capacity_.load(std::memory_order_relaxed);
  if (page_count >= capacity) return {};
  const std::uint64_t blocks_kept = (page_count + kEntriesPerBlock - 1) / kEntriesPerBlock;
  // The file's end goes back and forth over whole blocks, which leaves a hole; the rest of a block is set to
  // zero.
  // Should the second step fail, nobody may touch what is then behind the file's end (SIGBUS).
  capacity_.store(std::min(capacity, blocks_kept * kEntriesPerBlock), std::memory_order_release);
  std::fill(allocated_.begin() + static_cast<std::ptrdiff_t>(blocks_kept), allocated_.end(), false);
  TRY(file_->truncate(kEntriesAt + blocks_kept * kBlockSize));
  TRY(file_->truncate(kEntriesAt + capacity * 8));
  capacity_.store(capacity, std::memory_order_release);
  const std::uint64_t* const entries = entries_.load(std::memory_order_relaxed);
  const std::uint64_t end = std::min(blocks_kept * kEntriesPerBlock, capacity);
  for (std::uint64_t i = page_count; i < end; ++i) {
    if (entries[i] != 0) TRY(set(Pgno(static_cast<std::uint32_t>(i + 1)), Checksum{}));
  }
  return {};
}

Result<void> PageChecksums::checkpoint(const ChecksumsState& state) {
  TRY(sync());  // stores through a shared mapping included
  return write_state(state);
}

/// After a failure the kernel counts what it has lost as clean, and the next sync would succeed: no state may promise those entries.
/// The one on disk does not, so the next start sets them again from the log.
Result<void> PageChecksums::sync() {
  {
    MutexLock lock(state_mutex_);
    if (sync_failed_) return *sync_failed_;
  }
  const Result<void> synced = file_->sync_data();
  if (!synced.has_error()) return {};
  Error error = with_context("page checksums can no longer be trusted to reach the disk, restart the node", synced.error());
  MutexLock lock(state_mutex_);
  sync_failed_ = error;
  return error;
}

Result<void> PageChecksums::write_state(const ChecksumsState& state) {
  Slot slot{0, boot_number(), state};
  {
    MutexLock lock(state_mutex_);
    slot.sequence = sequence_ + 1;
  }
  std::byte bytes[kSlotSize];
  write_slot(slot, bytes);
  TRY(file_->write_at(slot.sequence % 2 == 1 ? 0 : kSlotDistance, bytes));
  TRY(sync());
  MutexLock lock(state_mutex_);
  sequence_ = slot.sequence;
  state_ = state;
  return {};
}

Result<void> PageChecksums::reset() {
  // First the state, so that no crash leaves a checkpoint that promises entries.
  TRY(write_state({}));
  TRY(truncate(0));
  return sync();
}

}  // namespace sluice::storage
