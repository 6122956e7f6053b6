// Databases that come, go or are replaced as a whole: first change sets, deletions, new page sizes, snapshots.
#include "base/log.h"
#include "storage/apply/io.h"
#include "storage/apply/replacement.h"
#include "storage/apply/replica_database.h"
#include "storage/apply/recovery.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage::apply {
namespace {

constexpr int kAttachWaitMs = 5000;

/// An image under DATA/tmp; deleted unless it was renamed into place.
class TemporaryImage {
 public:
  static Result<TemporaryImage> create(Store& store, const std::string& name, std::uint32_t page_size) {
    const std::string path = store.tmp_dir() + "/" + escape_name(name) + ".image";
    TRY_ASSIGN(ImageFile image, ImageFile::create(store.fs(), path, page_size));
    return TemporaryImage(store.fs(), std::move(image));
  }
  TemporaryImage(TemporaryImage&& other) noexcept : fs_(other.fs_), image_(std::move(other.image_)) {
    other.image_.reset();
  }
  ~TemporaryImage() {
    if (!image_) return;
    const Result<void> removed = fs_->unlink(image_->path());
    if (removed.has_error() && removed.error().code != Errc::not_found) LOG_WARN("{}", removed.error().to_string());
  }
  ImageFile& operator*() { return *image_; }
  ImageFile* operator->() { return &*image_; }

 private:
  TemporaryImage(FileSystem& fs, ImageFile image) : fs_(&fs), image_(std::move(image)) {}

  FileSystem* fs_;
  std::optional<ImageFile> image_;
};

}  // namespace

// ---- change sets that are not a WAL append ----

Result<void> LiveReplicaDatabase::create_from_incoming() {
  const IncomingChangeSet head = incoming_.head();
  TRY_ASSIGN(TemporaryImage image, TemporaryImage::create(context_.store, name_, head.page_size));
  TRY(decode_incoming([&image](Pgno pgno, ByteView page) { return image->write(pgno, page); }));
  TRY(image->finish(head.commit));
  {
    MutexLock lock(database_->commit_mutex());
    TRY(check_post());
    TRY(log_incoming());
  }
  // Point of no return: it is logged. What follows is done again by recovery, or by a snapshot.
  const auto place = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    TRY(database_->sync());
    TRY(put_in_place(image->path(), head.page_size));
    return record_position();
  };
  const Result<void> placed = place();
  if (placed.has_error()) {
    fail(placed.error().message);
    return placed;
  }
  set_applied(head.post);
  return {};
}

Result<void> LiveReplicaDatabase::remove_by_incoming() {
  const IncomingChangeSet head = incoming_.head();
  TRY(decode_incoming([](Pgno, ByteView) -> Result<void> { return {}; }));
  {
    MutexLock lock(database_->commit_mutex());
    TRY(check_post());
    TRY(log_incoming());
    content_moving_ = true;
  }
  const auto remove = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    TRY(database_->sync());
    TRY(take_away());
    return record_position();
  };
  const Result<void> removed = remove();
  if (removed.has_error()) {
    fail(removed.error().message);
    return removed;
  }
  set_applied(head.post);
  return {};
}

Result<void> LiveReplicaDatabase::replace_by_incoming() {
  const IncomingChangeSet head = incoming_.head();
  TRY_ASSIGN(TemporaryImage image, TemporaryImage::create(context_.store, name_, head.page_size));
  TRY(decode_incoming([&image](Pgno pgno, ByteView page) { return image->write(pgno, page); }));
  TRY(image->flush());
  TRY(replace_content(*image, head.commit, [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    {
      MutexLock lock(database_->commit_mutex());
      TRY(check_post());
      TRY(log_incoming());
      content_moving_ = true;
    }
    // Decision 0001: durable in the log before the database file is touched.
    const Result<void> synced = database_->sync();
    if (synced.has_error()) fail(synced.error().message);
    return synced;
  }));
  set_applied(head.post);
  return record_position();
}

/// The primary starts over at TXID 1 because we said that we have nothing usable: it is a snapshot in another form.
Result<void> LiveReplicaDatabase::install_incoming_as_snapshot() {
  const IncomingChangeSet head = incoming_.head();
  forget_offer();
  snapshot_.reset();
  TRY_ASSIGN(snapshot_, SnapshotFiles::create(context_.store.fs(), install_directory(context_.store),
                                              escape_name(name_), head.page_size));
  Result<void> decoded = decode_incoming(
      [&](Pgno pgno, ByteView page) NO_THREAD_SAFETY_ANALYSIS { return snapshot_->add(pgno, page); });
  SnapshotEnd end;
  end.pos = head.post;
  end.epoch = head.epoch;
  end.page_size = head.page_size;
  end.commit = head.commit;
  end.timestamp_ms = head.timestamp_ms;
  if (!decoded.has_error()) decoded = install_snapshot(end);
  snapshot_.reset();
  return decoded;
}

// ---- snapshots ----

Result<void> LiveReplicaDatabase::begin_snapshot(std::uint32_t page_size, std::uint32_t) {
  MutexLock lock(apply_mutex_);
  if (stopped_) return make_error(Errc::cancelled, name_ + ": stopped");
  collecting_ = true;
  // What one that was broken off has brought is good: the last version of a page counts.
  if (snapshot_ && snapshot_->page_size() == page_size) return {};
  snapshot_.reset();
  TRY_ASSIGN(snapshot_, SnapshotFiles::create(context_.store.fs(), install_directory(context_.store),
                                              escape_name(name_), page_size));
  return {};
}

Result<void> LiveReplicaDatabase::snapshot_page(Pgno pgno, ByteView content) {
  MutexLock lock(apply_mutex_);
  if (!snapshot_ || !collecting_) return make_error(Errc::invalid_argument, name_ + ": no snapshot was begun");
  Result<void> added = snapshot_->add(pgno, content);
  if (added.has_error()) database_->note_attempt(added);
  return added;
}

void LiveReplicaDatabase::abort_snapshot() {
  MutexLock lock(apply_mutex_);
  collecting_ = false;
  offering_.reset();
  if (snapshot_ && snapshot_->highest() == 0) snapshot_.reset();
}

Result<void> LiveReplicaDatabase::finish_snapshot(const SnapshotEnd& end) {
  MutexLock lock(apply_mutex_);
  if (!snapshot_ || !collecting_) return make_error(Errc::invalid_argument, name_ + ": no snapshot was begun");
  incoming_.reset();
  collecting_ = false;
  Result<void> installed = stopped_ ? make_error(Errc::cancelled, "stopped") : install_snapshot(end);
  database_->note_attempt(installed);
  offering_.reset();
  if (installed.has_error()) {
    // What was collected may be kept (readers in the way, a full disk), unless it is what is wrong.
    const bool wrong = installed.error().code == Errc::corrupt;
    if (wrong) ++mismatches_;
    if (wrong || failed()) snapshot_.reset();
    return with_context(name_ + ": snapshot", std::move(installed).error());
  }
  snapshot_.reset();
  damaged_.clear();
  mismatches_ = 0;
  context_.changed(name_);
  return {};
}

Result<void> LiveReplicaDatabase::install_snapshot(const SnapshotEnd& end) {
  if (end.epoch < database_->epoch()) {  // I4
    return make_error(Errc::stale_epoch, fmt::format("of epoch {}, the newest seen is {}", end.epoch, database_->epoch()));
  }
  if (end.pos.txid == Txid(0)) return make_error(Errc::corrupt, "has no position");
  const std::uint64_t failures_before = failures();
  Result<void> installed;
  if (end.commit == 0) {
    installed = install_deletion(end);
  } else {
    if (end.page_size != snapshot_->image().page_size()) return make_error(Errc::corrupt, "page size changed at the end");
    TRY(complete_snapshot(end));
    const bool append = live_ && !live_->blocked && live_->writer->view().page_size == end.page_size;
    installed = append ? install_by_append(end) : live_ ? install_by_replacement(end) : install_as_new(end);
  }
  if (installed.has_error()) return installed;
  LOG_INFO("{}: installed the snapshot at {}", name_, end.pos);
  set_applied(end.pos);
  heal(failures_before);
  if (live_) after_apply();
  return {};
}

/// Checks that the pages collected, and for those that the primary left out our own, are all there and are the content at
/// end.pos. Nothing is copied: an image that lacks pages is a partial one.
Result<void> LiveReplicaDatabase::complete_snapshot(const SnapshotEnd& end) {
  const bool local = local_usable(end.page_size);
  const std::uint32_t lock = lock_page(end.page_size).value();
  const auto sum_of = [&](Pgno pgno) NO_THREAD_SAFETY_ANALYSIS -> Checksum {
    const Checksum sum = snapshot_->collected(pgno);
    return sum == Checksum{} && local ? local_sum(pgno) : sum;
  };
  Checksum total = kEmptyChecksum;
  bool partial = false;
  for (std::uint64_t p = 1; p <= end.commit; ++p) {
    if (p == lock) continue;
    const Pgno pgno(static_cast<std::uint32_t>(p));
    Checksum sum = sum_of(pgno);
    if (sum == Checksum{} && local) sum = compute_local_sum(pgno);
    if (sum == Checksum{}) return make_error(Errc::corrupt, fmt::format("lacks page {} of {}", p, end.commit));
    partial = partial || snapshot_->collected(pgno) == Checksum{};
    total = ltx::toggle(total, sum);
  }
  if (total != end.pos.checksum) {
    return make_error(Errc::corrupt, fmt::format("has checksum {}, not {}", to_hex(total.value()),
                                                 to_hex(end.pos.checksum.value())));
  }
  return partial ? snapshot_->make_partial(end.commit, sum_of) : Result<void>();
}

/// Into the partial image: what is of our own content, but not in the database file yet. Then the file, with the image over
/// it, is the content at the snapshot's end, and may be what a crash leaves.
Result<void> LiveReplicaDatabase::carry_over(const SnapshotEnd& end) {
  const WalWriter::View view = live_->writer->view();
  TRY_ASSIGN(const sqlite::CheckpointInfo info, live_->index->checkpoint_info());
  scratch_.resize(end.page_size);
  for (std::uint32_t frame = info.backfilled + 1; frame <= view.header.mx_frame; ++frame) {
    const Pgno pgno(live_->index->page_of(frame));
    if (pgno == Pgno(0) || pgno.value() > end.commit || snapshot_->collected(pgno) != Checksum{}) continue;
    {
      MutexLock lock(database_->commit_mutex());
      TRY(read_page(pgno, scratch_));
    }
    if (ltx::page_checksum(pgno, scratch_) != snapshot_->sum(pgno)) {
      fail(fmt::format("page {} in the WAL is not what its checksum says", pgno));
      return make_error(Errc::corrupt, fmt::format("page {} in the WAL is damaged", pgno));
    }
    TRY(snapshot_->add(pgno, scratch_));
  }
  const Result<void> synced = sync_data(live_->files->database(), name_);
  if (synced.has_error()) fail(synced.error().message);  // the kernel has dropped what it could not write
  return synced;
}

Result<void> LiveReplicaDatabase::rebase(const SnapshotEnd& end) {
  RecordInfo base;
  base.epoch = end.epoch;
  base.post = end.pos;
  base.page_size = valid_page_size(end.page_size) ? end.page_size : 4096;
  base.commit = end.commit;
  base.timestamp_ms = end.timestamp_ms;
  base.base = true;
  const Result<void> rebased = database_->rebase(
      base, [this](Pgno pgno) NO_THREAD_SAFETY_ANALYSIS { return snapshot_->sum(pgno); });
  // Point of no return inside: log and checksums may be of the old or of the new position.
  if (rebased.has_error()) fail(rebased.error().message);
  return rebased;
}

Result<void> LiveReplicaDatabase::install_as_new(const SnapshotEnd& end) {
  const auto install = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    {
      MutexLock checkpoint_lock(checkpoint_mutex_);
      // Point of no return: a crash installs it again, a failure waits for the next snapshot, which replaces the marker.
      TRY(mark_snapshot(end));
      MutexLock lock(database_->commit_mutex());
      TRY(rebase(end));
    }
    TRY(put_in_place(snapshot_->image().path(), end.page_size));
    return snapshot_->remove();
  };
  const Result<void> installed = install();
  if (installed.has_error()) fail(installed.error().message);
  return installed;
}

// Under the checkpoint lock: a backfill that gets the snapshot before this one into the database file removes the marker
// when it is done, and there is one marker.
Result<void> LiveReplicaDatabase::mark_snapshot(const SnapshotEnd& end) {
  const Result<void> marked = snapshot_->mark(end);
  if (marked.has_error()) {
    fail(marked.error().message);  // it is unknown whether the marker is there
  } else {
    installed_.reset();  // its marker was replaced
  }
  return marked;
}

// Readers see the snapshot as one more transaction. The database file gets there by backfill; until then the marker says
// that a crash has to put it there.
Result<void> LiveReplicaDatabase::install_by_append(const SnapshotEnd& end) {
  if (snapshot_->partial()) {
    // The less is left in the WAL, the less has to be carried over.
    if (const auto result = checkpoint(Record::if_due); result.has_error()) return result.error();
    if (failed()) return make_error(Errc::io, "the content became unusable");
  }
  WalWriter& writer = *live_->writer;
  // Frames of somebody else are taken over only when every page is written anew.
  Result<void> begun = writer.begin(!snapshot_->partial());
  if (begun.has_error()) {
    if (begun.error().code == Errc::internal) fail(begun.error().message);
    return begun;
  }
  const auto append = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    TRY(restart_wal_if_due());
    TRY(add_differing_pages(end));
    TRY(writer.reserve());
    TRY(writer.seal(end.commit));
    MutexLock checkpoint_lock(checkpoint_mutex_);
    if (snapshot_->partial()) TRY(carry_over(end));
    TRY(mark_snapshot(end));
    MutexLock lock(database_->commit_mutex());
    TRY(rebase(end));
    const Result<void> published = writer.publish(end.pos, end.commit);
    if (published.has_error()) {
      fail(published.error().message);
      return published;
    }
    installed_ = std::move(snapshot_);
    return {};
  };
  const Result<void> appended = append();
  if (appended.has_error()) writer.cancel();
  return appended;
}

Result<void> LiveReplicaDatabase::add_differing_pages(const SnapshotEnd& end) {
  WalWriter& writer = *live_->writer;
  const bool all = failed();
  scratch_.resize(end.page_size);
  const std::uint32_t lock = lock_page(end.page_size).value();
  for (std::uint64_t p = 1; p <= end.commit; ++p) {
    const Pgno pgno(static_cast<std::uint32_t>(p));
    if (p == lock) continue;
    const bool collected = snapshot_->collected(pgno) != Checksum{};
    const bool same = !collected || (!all && local_sum(pgno) == snapshot_->collected(pgno));
    // The size changes only with a frame: page 1 is always there.
    if (same && p != 1) continue;
    if (collected) {
      TRY(snapshot_->image().read(pgno, scratch_));
    } else {
      MutexLock commit_lock(database_->commit_mutex());
      TRY(read_page(pgno, scratch_));
    }
    TRY(writer.add(pgno, scratch_));
  }
  return {};
}

Result<void> LiveReplicaDatabase::install_by_replacement(const SnapshotEnd& end) {
  TRY(replace_content(snapshot_->image(), end.commit, [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    TRY(mark_snapshot(end));
    MutexLock lock(database_->commit_mutex());
    TRY(rebase(end));
    content_moving_ = true;
    return {};
  }));
  return snapshot_->remove();
}

/// Files first: with the log still at the old position a crash in between is noticed, and healed by another snapshot.
Result<void> LiveReplicaDatabase::install_deletion(const SnapshotEnd& end) {
  {
    MutexLock lock(database_->commit_mutex());
    content_moving_ = true;
  }
  const auto install = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    if (!database_->deleted()) TRY(take_away());
    MutexLock checkpoint_lock(checkpoint_mutex_);
    MutexLock lock(database_->commit_mutex());
    return rebase(end);
  };
  const Result<void> installed = install();
  if (installed.has_error()) fail(installed.error().message);
  return installed;
}

// ---- shared steps ----

Result<void> LiveReplicaDatabase::put_in_place(const std::string& image, std::uint32_t page_size) {
  detach();
  TRY(placement_.put(name_, image, page_size));
  TRY_ASSIGN(auto files, LiveFiles::open(context_.access, name_));
  TRY(files->lock_shared(kAttachWaitMs));
  return attach(std::move(files));
}

Result<void> LiveReplicaDatabase::take_away() {
  const Result<void> removed = placement_.remove(name_);
  // Also when not all of it is gone: what is open may have no name any more, and must not take a snapshot.
  detach();
  TRY(removed);
  MutexLock lock(checkpoint_mutex_);
  installed_.reset();
  return SnapshotFiles::clean(context_.store.fs(), install_directory(context_.store), escape_name(name_), true);
}

/// The database file (or its absence) is durable at the log's position.
Result<void> LiveReplicaDatabase::record_position() {
  MutexLock checkpoint_lock(checkpoint_mutex_);
  PageChecksums* checksums = nullptr;
  {
    MutexLock lock(database_->commit_mutex());
    checksums = &database_->checksums();
  }
  TRY(checksums->checkpoint({database_->pos(), database_->page_size(), database_->page_count()}));
  log_bytes_recorded_ = database_->log().size_bytes();
  return {};
}

template <class Prepare>
Result<void> LiveReplicaDatabase::replace_content(ImageFile& image, std::uint32_t commit, Prepare prepare) {
  MutexLock checkpoint_lock(checkpoint_mutex_);
  Replacement replacement(*live_->files, *live_->index, *live_->writer, live_->blocked);
  TRY(replacement.lock(context_.options.exclusive_wait_ms));
  const Result<void> prepared = prepare();
  if (prepared.has_error()) {
    if (!live_->blocked) replacement.unlock();
    return prepared;
  }
  // Point of no return: log (or marker) have it. If this fails, readers are told BUSY until a snapshot comes.
  live_->blocked = true;
  const Result<void> written = replacement.write(image, commit);
  if (written.has_error()) {
    fail(written.error().message);
    return written;
  }
  {
    MutexLock lock(database_->commit_mutex());
    const Result<void> published = replacement.publish(commit, database_->pos());
    if (published.has_error()) {
      fail(published.error().message);
      return published;
    }
    content_moving_ = false;
  }
  live_->blocked = false;
  replacement.unlock();
  return {};
}

}  // namespace sluice::storage::apply
