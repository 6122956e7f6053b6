// WalWriter after a takeover.
#include <array>

#include "storage/apply/io.h"
#include "storage/apply/wal_writer.h"

namespace sluice::storage::apply {

using sqlite::ShmLock;

Result<std::unique_ptr<WalWriter>> WalWriter::resume(LiveFiles& files, LiveIndex& index, const WalWriterOptions& options) {
  TRY(index.reserve(1));
  std::unique_ptr<WalWriter> writer(new WalWriter(files, index, options));
  TRY(files.lock(ShmLock::write, 1, options.lock_wait_ms));
  writer->locked_ = true;
  if (options.hold_write_locks) TRY(files.lock(ShmLock::checkpoint, 1, options.lock_wait_ms));
  TRY(writer->take_up_again());
  return writer;
}

std::unique_ptr<WalWriter> WalWriter::block(LiveFiles& files, LiveIndex& index, std::uint32_t page_size) {
  std::unique_ptr<WalWriter> writer(new WalWriter(files, index, {}));
  writer->locked_ = true;
  writer->page_size_ = page_size;
  MutexLock lock(writer->mutex_);
  writer->view_.page_size = page_size;
  return writer;
}

//   the process before us died               what is found                       what is done
//   while it wrote frames, or the log        leftovers behind mxFrame            nothing: the next append overwrites them
//   between the two copies of the header     torn: [0] old, [1] new              [0] again
//   while it wrote copy [0]                  torn: [0] wrong, [1] new            [1] again
//   after a restart's header                 mxFrame 0, nBackfill of before      nBackfill 0
//   in a backfill                            part of it in the file              the next backfill starts where this one did
Result<void> WalWriter::take_up_again() {
  sqlite::WalIndexHeader found;
  TRY_ASSIGN(const sqlite::HeaderState state, index_.read_header(found));
  if (state == sqlite::HeaderState::invalid || found.version != sqlite::kWalIndexVersion)
    return make_error(Errc::corrupt, files_.shm_name() + " has no valid header");
  if (state == sqlite::HeaderState::torn) TRY(index_.publish(found.mx_frame + 1, {}, found, {}));
  if (found.mx_frame != 0) {
    TRY(index_.reserve(found.mx_frame));
    return adopt_header(found);
  }
  constexpr std::array<IndexStore, 2> kNothing{{{IndexWord::backfilled, 0}, {IndexWord::backfill_attempted, 0}}};
  TRY(index_.store(kNothing));
  std::array<std::byte, sqlite::kWalHeaderSize> bytes;
  TRY(read_full(files_.wal(), 0, bytes, files_.wal_name()));
  TRY_ASSIGN(const sqlite::WalHeader wal, sqlite::parse_wal_header(bytes));
  mine_ = found;
  page_size_ = found.page_size();
  sequence_ = wal.checkpoint_sequence + 1;
  MutexLock lock(mutex_);
  view_ = {mine_, page_size_};
  return {};
}

void WalWriter::note_position(const Pos& pos, std::uint32_t page_count) {
  MutexLock lock(mutex_);
  add_mark({mine_.mx_frame, pos, page_count});
}

}  // namespace sluice::storage::apply
