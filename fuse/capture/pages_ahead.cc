#include "fuse/capture/pages_ahead.h"

#include <array>
#include <cstring>

#include "storage/ltx/checksum.h"
#include "storage/ltx/page_packer.h"
#include "storage/sqlite/wal_reader.h"

namespace sluice::fuse {
namespace {

constexpr std::uint32_t kWorthFrames = 32;

bool is_frame_of(const File& wal, const sqlite::WalHeader& header, std::uint32_t frame) {
  std::array<std::byte, sqlite::kWalFrameHeaderSize> bytes{};
  const auto n = wal.read_at(sqlite::frame_offset(header.page_size, frame), bytes);
  return n.has_value() && *n == bytes.size() && sqlite::parse_frame_header(bytes).salts == header.salts;
}

}  // namespace

std::uint32_t PagesAhead::next_frame(const File& wal, const sqlite::WalPosition& captured, sqlite::WalHeader& header) {
  const auto read = sqlite::read_wal_header(wal);
  if (read.has_error()) return 0;
  header = *read;
  // The first transaction after a restart of the WAL: its header is there before the index says so.
  const std::uint32_t first = header.salts == captured.salts ? captured.frame + 1 : 1;
  MutexLock lock(mutex_);
  if (full_) return 0;
  if (salts_ != header.salts) return first;
  return std::max(first, last_ + 1);
}

bool PagesAhead::worth_it(const File& wal, const sqlite::WalPosition& captured) {
  sqlite::WalHeader header;
  const std::uint32_t next = next_frame(wal, captured, header);
  return next != 0 && is_frame_of(wal, header, next + kWorthFrames - 1);
}

void PagesAhead::prepare(const File& wal, const sqlite::WalPosition& captured, FunctionRef<bool()> go_on) {
  sqlite::WalHeader header;
  std::uint32_t frame = next_frame(wal, captured, header);
  if (frame == 0) return;
  {
    MutexLock lock(mutex_);
    salts_ = header.salts;
    last_ = frame - 1;
  }
  Bytes bytes(header.page_size + sqlite::kWalFrameHeaderSize);
  Bytes block(ltx::packed_bound(header.page_size));
  for (; go_on(); ++frame) {
    const auto n = wal.read_at(sqlite::frame_offset(header.page_size, frame), bytes);
    if (n.has_error() || *n != bytes.size()) return;
    const ByteView whole = bytes;
    if (sqlite::parse_frame_header(whole.first(sqlite::kWalFrameHeaderSize)).salts != header.salts) return;
    const Pgno pgno(load_be<std::uint32_t>(bytes.data()));
    const ByteView page = whole.subspan(sqlite::kWalFrameHeaderSize);
    const std::size_t size = ltx::pack_page(page, block);
    if (!keep(pgno, ltx::page_checksum(pgno, page), ByteView(block).first(size), frame)) return;
  }
}

bool PagesAhead::keep(Pgno pgno, Checksum content, ByteView block, std::uint32_t frame) {
  auto bytes = std::make_unique_for_overwrite<std::byte[]>(block.size());
  std::memcpy(bytes.get(), block.data(), block.size());
  MutexLock lock(mutex_);
  if (used_.fetch_add(block.size(), std::memory_order_relaxed) + block.size() > limit_) {
    used_.fetch_sub(block.size(), std::memory_order_relaxed);
    full_ = true;
    return false;
  }
  bytes_ += block.size();
  Block& kept = blocks_[pgno.value()];
  if (kept.bytes != nullptr) replaced_.push_back(std::move(kept.bytes));
  kept = Block{content, std::move(bytes), block.size()};
  last_ = frame;
  return true;
}

ByteView PagesAhead::find(Pgno pgno, Checksum content) {
  MutexLock lock(mutex_);
  const auto it = blocks_.find(pgno.value());
  if (it == blocks_.end() || it->second.content != content) return {};
  hits_.fetch_add(1, std::memory_order_relaxed);
  return {it->second.bytes.get(), it->second.size};
}

void PagesAhead::clear() {
  MutexLock lock(mutex_);
  if (last_ == 0 && !full_) return;
  used_.fetch_sub(bytes_, std::memory_order_relaxed);
  bytes_ = 0;
  std::unordered_map<std::uint32_t, Block>().swap(blocks_);
  std::vector<std::unique_ptr<std::byte[]>>().swap(replaced_);
  salts_ = {};
  last_ = 0;
  full_ = false;
}

}  // namespace sluice::fuse
