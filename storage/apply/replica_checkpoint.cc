// When a replica backfills, and how it records what is in the database file.
#include "base/log.h"
#include "storage/apply/io.h"
#include "storage/apply/replica_database.h"

namespace sluice::storage::apply {
namespace {

constexpr auto kPinReportInterval = std::chrono::seconds(60);

}  // namespace

void LiveReplicaDatabase::post_checkpoint() {
  if (checkpoint_posted_.exchange(true)) return;
  const bool posted = context_.pool.post([self = shared_from_this()] {
    self->checkpoint_posted_ = false;
    const auto result = self->checkpoint(Record::if_due);
    if (result.has_error()) LOG_WARN("{}: checkpoint: {}", self->name_, result.error().to_string());
  });
  if (!posted) checkpoint_posted_ = false;
}

bool LiveReplicaDatabase::idle_checkpoint() {
  const auto result = checkpoint(Record::now);
  if (result.has_error()) {
    LOG_WARN("{}: checkpoint: {}", name_, result.error().to_string());
    return false;
  }
  return result->complete;
}

Result<BackfillResult> LiveReplicaDatabase::checkpoint(Record record) {
  MutexLock lock(checkpoint_mutex_);
  return checkpoint_locked(record);
}

Result<BackfillResult> LiveReplicaDatabase::checkpoint_locked(Record record) {
  BackfillResult nothing;
  nothing.complete = true;
  if (!live_ || live_->blocked || failed()) return nothing;
  TRY_ASSIGN(const BackfillResult result,
             backfill(*live_->files, *live_->index, *live_->writer, buffers_, [this] { return database_->sync(); }));
  const auto mark = live_->writer->reached(result.backfilled);
  if (mark && (record == Record::now || recording_due(*mark))) TRY(record_backfilled(*mark));
  report_pinned(result);
  return result;
}

/// Recording costs syncs of the database file and of the page checksums; not recording costs a longer replay.
bool LiveReplicaDatabase::recording_due(const AppliedMark& mark) {
  if (installed_ && mark.pos.txid >= installed_->end().pos.txid) return true;
  const std::uint64_t bytes = database_->log().size_bytes();
  return bytes < log_bytes_recorded_ ||
         bytes - log_bytes_recorded_ >= context_.store.options().database.checkpoint_bytes;
}

/// The database file holds everything up to `mark`: recovery may start from there.
Result<void> LiveReplicaDatabase::record_backfilled(const AppliedMark& mark) {
  PageChecksums* checksums = nullptr;
  {
    MutexLock lock(database_->commit_mutex());
    checksums = &database_->checksums();
  }
  const ChecksumsState state{mark.pos, live_->writer->view().page_size, mark.page_count};
  const bool installed = installed_ && mark.pos.txid >= installed_->end().pos.txid;
  if (checksums->state() == state && !installed) return {};
  TRY(database_->sync());
  if (const auto synced = sync_data(live_->files->database(), name_); synced.has_error()) {
    // The kernel has dropped what it could not write: the file is not what the WAL index says, and never will be.
    fail(synced.error().message);
    return synced;
  }
  // First the marker: the checkpoint stands at the snapshot since that was installed, and recovery goes on from there. The other
  // way round, retention could cut the log above the marker before a crash, and the marker would be of no use.
  if (installed) {
    TRY(installed_->remove());
    installed_.reset();
  }
  // Not under the commit lock: it may run beside changes of the checksums, and everybody who starts them over (new page
  // size, snapshot) holds the checkpoint lock.
  TRY(checksums->checkpoint(state));
  log_bytes_recorded_ = database_->log().size_bytes();
  return database_->maintain(context_.store.options().retention, Database::Checkpoint::none);
}

void LiveReplicaDatabase::report_pinned(const BackfillResult& result) {
  if (result.complete || result.mx_frame < context_.options.max_wal_frames) {
    if (pin_reported_ != MonotonicTime{}) (void)database_->set_warning({});
    pin_reported_ = {};
    return;
  }
  const MonotonicTime now = context_.store.clock().now();
  if (pin_reported_ != MonotonicTime{} && now - pin_reported_ < kPinReportInterval) return;
  pin_reported_ = now;
  const std::string readers = live_->files->readers();
  LOG_WARN("{}: the WAL has {} frames and cannot start over: a long read transaction of process {} needs it", name_,
           result.mx_frame, readers.empty() ? "unknown" : readers);
  (void)database_->set_warning(fmt::format("its WAL cannot start over: a long read transaction of process {} needs it",
                                           readers.empty() ? "unknown" : readers));
}

}  // namespace sluice::storage::apply
