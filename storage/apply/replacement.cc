#include "storage/apply/replacement.h"

#include <algorithm>

#include "storage/apply/fresh_wal.h"
#include "storage/apply/io.h"

namespace sluice::storage::apply {

using sqlite::ShmLock;

namespace {

constexpr std::size_t kCopySize = std::size_t{1} << 20;

}  // namespace

// CKPT, RECOVER, READ0…4 follow WRITE; CKPT is ours already when the write locks are held for good.
ShmLock Replacement::first_lock() const {
  return writer_.holds_write_locks() ? ShmLock::recover : ShmLock::checkpoint;
}
unsigned Replacement::lock_count() const { return writer_.holds_write_locks() ? 6 : 7; }

Result<void> Replacement::lock(int wait_ms) {
  if (locked_) return {};
  TRY(writer_.begin(true));
  const Result<void> locked = files_.lock_each(first_lock(), lock_count(), wait_ms);
  if (locked.has_error()) {
    writer_.cancel();
    return locked;
  }
  locked_ = true;
  return {};
}

Result<void> Replacement::write(ImageFile& image, std::uint32_t commit) {
  page_size_ = image.page_size();
  sequence_ = writer_.next_checkpoint_sequence();
  TRY(index_.erase_header());
  const FreshWalHeader fresh = make_fresh_wal_header(page_size_, sequence_);
  salts_ = fresh.header.salts;
  // The header first: with other salts the old frames are none, also for somebody who opens the file without the daemon.
  TRY(files_.write_wal(0, fresh.bytes));
  TRY(files_.resize_wal(sqlite::kWalHeaderSize));
  const std::uint64_t size = std::uint64_t{commit} * page_size_;
  TRY(files_.resize_database(size));
  Bytes piece(kCopySize);
  for (std::uint64_t at = 0; at < size;) {
    const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), size - at));
    const Pgno first(static_cast<std::uint32_t>(at / page_size_ + 1));
    TRY(image.read(first, ByteSpan(piece).first(n)));
    TRY(write_full(files_.database(), at, ByteView(piece).first(n), files_.name()));
    at += n;
  }
  files_.access().invalidate(files_.name(), 0, 0);
  return sync_data(files_.database(), files_.name());
}

Result<void> Replacement::publish(std::uint32_t commit, const Pos& pos) {
  return writer_.start_over(page_size_, commit, pos, salts_, sequence_);
}

void Replacement::unlock() {
  if (!locked_) return;
  files_.unlock(first_lock(), lock_count());
  writer_.cancel();
  locked_ = false;
}

}  // namespace sluice::storage::apply
