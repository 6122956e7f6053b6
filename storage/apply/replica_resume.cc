// A replica's database after a takeover: readers are connected and read on, the process that applied is gone. Nobody else could
// change the WAL or its index in between, because the locks it held are still held (LiveFiles::inherited()).
#include "base/log.h"
#include "storage/apply/recovery.h"
#include "storage/apply/replica_database.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"

namespace sluice::storage::apply {
namespace {

constexpr int kResumeWaitMs = 5000;

ltx::Source image_of(const ChangeLog::Handle& record) {
  return [&record](std::uint64_t offset, ByteSpan out) -> Result<void> {
    TRY_ASSIGN(const std::size_t n, record.file->read_at(record.offset + offset, out));
    if (n != out.size()) return make_error(Errc::corrupt, "the change log ends inside a record");
    return {};
  };
}

}  // namespace

/// False: what is there is not an index with a log that can be gone on with; ordinary recovery decides.
Result<bool> LiveReplicaDatabase::resume() {
  if (database_->page_count() == 0 || !LiveFiles::were_left(context_.access, name_)) return false;  // it slept
  const std::string marker = install_directory(context_.store) + "/" + escape_name(name_) + ".install";
  TRY_ASSIGN(const bool marked, context_.store.fs().exists(marker));
  if (marked) return false;
  auto files = LiveFiles::open(context_.access, name_);
  if (files.has_error()) {
    if (files.error().code == Errc::not_found) return false;
    return files.error();
  }
  return resume_live(std::move(*files));
}

Result<bool> LiveReplicaDatabase::resume_live(std::unique_ptr<LiveFiles> files) {
  auto live = std::make_unique<Live>(std::move(files));
  TRY(live->files->lock_shared(kResumeWaitMs));
  TRY(live->files->open_wal(database_->page_size(), kResumeWaitMs));
  if (!live->files->inherited()) {
    LOG_WARN("{}: its locks did not outlive the process before this one; recovering it", name_);
    return false;
  }
  TRY_ASSIGN(live->index, LiveIndex::create(*live->files, context_.index_helper));
  auto writer = WalWriter::resume(*live->files, *live->index, {context_.options.hold_write_locks, kResumeWaitMs});
  if (writer.has_error() && writer.error().code != Errc::corrupt) return writer.error();
  // A replacement begins with making the index invalid (Replacement::write): the file may be half of one and half of the other.
  const bool half_replaced = writer.has_error();
  live->writer = half_replaced ? WalWriter::block(*live->files, *live->index, database_->page_size()) : std::move(*writer);
  live->blocked = half_replaced;
  if (half_replaced) TRY(live->files->lock_each(sqlite::ShmLock::checkpoint, 7, kResumeWaitMs));
  const bool other_size = live->writer->view().page_size != database_->page_size();
  {
    MutexLock checkpoint_lock(checkpoint_mutex_);
    MutexLock commit_lock(database_->commit_mutex());
    live_ = std::move(live);
    asleep_ = false;
    resting_file_.reset();
    content_moving_ = half_replaced;
    database_->set_page_source(this);
  }
  make_room();
  if (half_replaced) {  // readers are told BUSY
    fail("the process before this one died while it replaced the content");
    return true;
  }
  if (other_size) fail("the process before this one died before it changed the page size");
  const Result<void> published = other_size ? Result<void>() : publish_last();
  live_->writer->cancel();
  live_->files->unlock(sqlite::ShmLock::recover, 6);
  if (!context_.options.hold_write_locks) live_->files->unlock(sqlite::ShmLock::checkpoint, 1);
  if (published.has_error()) {
    detach();
    LOG_WARN("{}: {}; recovering it", name_, published.error().message);
    return false;
  }
  if (!failed()) set_applied(database_->pos());
  return true;
}

/// The process before us may have died between the log and the wal-index.
Result<void> LiveReplicaDatabase::publish_last() {
  WalWriter& writer = *live_->writer;
  const Pos pos = database_->pos();
  const auto record = database_->log().find(pos.txid);
  if (record.has_error() && record.error().code != Errc::not_found) return record.error();
  if (record.has_value()) {
    TRY_ASSIGN(const bool there, is_published(*record));
    if (!there) {
      LOG_INFO("{}: publishing change set {}", name_, pos.txid);
      TRY(ltx::decode(image_of(*record), record->info.length,
                      [&writer](Pgno pgno, ByteView page) { return writer.add(pgno, page); }));
      TRY(writer.reserve());
      MutexLock lock(database_->commit_mutex());
      TRY(writer.seal(record->info.commit));
      return writer.publish(pos, record->info.commit);
    }
  }
  writer.note_position(pos, database_->page_count());
  return {};
}

Result<bool> LiveReplicaDatabase::is_published(const ChangeLog::Handle& record) {
  bool same = live_->writer->view().header.page_count == record.info.commit;
  Bytes page(database_->page_size());
  TRY(ltx::decode(image_of(record), record.info.length, [&](Pgno pgno, ByteView logged) -> Result<void> {
    if (!same) return {};
    MutexLock lock(database_->commit_mutex());
    TRY(read_page(pgno, page));
    same = ltx::page_checksum(pgno, page) == ltx::page_checksum(pgno, logged);
    return {};
  }));
  return same;
}

}  // namespace sluice::storage::apply
