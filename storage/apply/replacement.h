// Replaces the whole content of a live database where a WAL append cannot: another page size. Under all locks of the
// wal-index (decision 0001): idle connections hold none of them, and find a changed header at their next read.
//
//   us                                          a reader that comes meanwhile
//   WRITE, CKPT, RECOVER, READ0…4 exclusively
//   header of the wal-index zeroed              header unreadable, WRITE busy, RECOVER busy -> SQLITE_BUSY_RECOVERY,
//                                               its busy handler
//   -wal cut to a header with new salts
//   database file rewritten, page cache dropped
//   header published, locks released            new header -> cache dropped, page 1 read, new page size
#pragma once

#include "storage/apply/image_file.h"
#include "storage/apply/wal_writer.h"

namespace sluice::storage::apply {

/// The caller excludes backfills and appends. Steps in the order of declaration.
class Replacement {
 public:
  /// `locked`: the locks are still held by a replacement that failed.
  Replacement(LiveFiles& files, LiveIndex& index, WalWriter& writer, bool locked)
      : files_(files), index_(index), writer_(writer), locked_(locked) {}

  /// Errc::busy names the readers that are in the way after `wait_ms`.
  Result<void> lock(int wait_ms);
  /// Rewrites the database file with `commit` pages of `image`; durable on return. FUSE requests.
  Result<void> write(ImageFile& image, std::uint32_t commit);
  Result<void> publish(std::uint32_t commit, const Pos& pos);
  void unlock();

 private:
  sqlite::ShmLock first_lock() const;
  unsigned lock_count() const;

  LiveFiles& files_;
  LiveIndex& index_;
  WalWriter& writer_;
  bool locked_;
  std::uint32_t page_size_ = 0;
  sqlite::Salts salts_;
  std::uint32_t sequence_ = 0;
};

}  // namespace sluice::storage::apply
