#include "storage/apply/replica_database.h"

#include <algorithm>

#include "base/log.h"
#include "storage/apply/io.h"
#include "storage/apply/recovery.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage::apply {
namespace {

constexpr int kAttachWaitMs = 5000;
constexpr std::uint32_t kFullCheckpointFactor = 4;

}  // namespace

LiveReplicaDatabase::LiveReplicaDatabase(ReplicaContext& context, std::shared_ptr<Database> database)
    : context_(context),
      database_(std::move(database)),
      name_(database_->name()),
      awake_(context.awake),
      placement_{context.store, &context.access},
      incoming_(context.store.fs(), context.store.tmp_dir() + "/" + escape_name(name_) + ".spool"),
      checkpoint_at_(context.options.checkpoint_frames),
      full_checkpoint_at_(kFullCheckpointFactor * context.options.checkpoint_frames) {}

LiveReplicaDatabase::~LiveReplicaDatabase() {
  MutexLock lock(apply_mutex_);
  detach();
}

// ---- state ----

Pos LiveReplicaDatabase::logged() const { return failed() ? Pos{} : database_->pos(); }

Pos LiveReplicaDatabase::applied() const {
  MutexLock lock(state_mutex_);
  return applied_;
}

void LiveReplicaDatabase::set_applied(const Pos& pos) {
  MutexLock lock(state_mutex_);
  applied_ = pos;
}

std::uint64_t LiveReplicaDatabase::failures() const {
  MutexLock lock(state_mutex_);
  return failures_;
}

// Every page was written since `failures_before` was read: only a failure after that is still one. A checkpoint may fail at
// any time beside whoever installs; that is why nothing but this takes a failure back.
void LiveReplicaDatabase::heal(std::uint64_t failures_before) {
  MutexLock lock(state_mutex_);
  if (failures_ == failures_before) failure_.reset();
}

bool LiveReplicaDatabase::failed() const {
  MutexLock lock(state_mutex_);
  return failure_.has_value();
}

void LiveReplicaDatabase::fail(const std::string& why) {
  LOG_ERROR("{}: {}; needs a snapshot from the primary", name_, why);
  MutexLock lock(state_mutex_);
  failure_ = why;
  ++failures_;
}

// ---- opening and closing ----

Result<void> LiveReplicaDatabase::open() {
  MutexLock lock(apply_mutex_);
  if (context_.options.resume) {
    TRY_ASSIGN(const bool resumed, resume());
    if (resumed) return {};
  }
  TRY_ASSIGN(const bool recovered, is_recovered(context_.store, *database_));
  if (!recovered) return recover_live();
  if (context_.options.start_asleep && may_sleep()) {
    start_asleep();
    set_applied(database_->pos());
    return {};
  }
  TRY_ASSIGN(auto files, LiveFiles::open(context_.access, name_));
  TRY(files->lock_shared(kAttachWaitMs));
  TRY(attach(std::move(files)));
  if (!failed()) set_applied(database_->pos());
  return {};
}

Result<void> LiveReplicaDatabase::recover_live() {
  std::unique_ptr<LiveFiles> files;
  if (database_->page_count() != 0) {
    auto opened = LiveFiles::open(context_.access, name_);
    if (opened.has_error() && opened.error().code != Errc::not_found) return std::move(opened).error();
    if (opened.has_value()) files = std::move(*opened);
  }
  if (files) {
    const Result<void> alone = files->lock_exclusive(context_.options.exclusive_wait_ms);
    if (alone.has_error()) {
      // Somebody came between the mount and us, and reads what the last process left behind: a state that was once
      // committed. It cannot be replayed over under their feet; a snapshot can be appended.
      fail("cannot be recovered: " + alone.error().message);
      TRY(files->lock_shared(kAttachWaitMs));
      return attach(std::move(files));
    }
  }
  TRY_ASSIGN(const Recovered recovered, recover_database(placement_, *database_));
  if (recovered.change_sets != 0) LOG_INFO("{}: replayed {} change sets from the log", name_, recovered.change_sets);
  if (recovered.needs_snapshot) {
    fail(recovered.why);
    return {};
  }
  if (recovered.present) {
    if (files) {
      context_.access.invalidate(name_, 0, 0);
    } else {
      TRY_ASSIGN(files, LiveFiles::open(context_.access, name_));
    }
    // From EXCLUSIVE straight to SHARED: nobody comes in between.
    TRY(files->downgrade());
    TRY(attach(std::move(files)));
  }
  if (!failed()) set_applied(database_->pos());
  return {};
}

Result<void> LiveReplicaDatabase::attach(std::unique_ptr<LiveFiles> files) {
  auto live = std::make_unique<Live>(std::move(files));
  TRY(live->files->open_wal(database_->page_size(), kAttachWaitMs));
  live->files->unlock_all();
  TRY_ASSIGN(live->index, LiveIndex::create(*live->files, context_.index_helper));
  TRY_ASSIGN(live->writer,
             WalWriter::attach(*live->files, *live->index, database_->page_size(), database_->page_count(),
                               database_->pos(), {context_.options.hold_write_locks, kAttachWaitMs}));
  if (live->writer->adopted_frames() && !failed()) fail("its WAL has frames of somebody else");
  {
    MutexLock checkpoint_lock(checkpoint_mutex_);
    MutexLock commit_lock(database_->commit_mutex());
    live_ = std::move(live);
    asleep_ = false;
    resting_file_.reset();
    content_moving_ = false;
    database_->set_page_source(this);
  }
  make_room();
  return {};
}

void LiveReplicaDatabase::detach() {
  MutexLock checkpoint_lock(checkpoint_mutex_);
  MutexLock commit_lock(database_->commit_mutex());
  if (database_->page_source() == this) database_->set_page_source(nullptr);
  live_.reset();
  asleep_ = false;
  resting_file_.reset();
  awake_->gone(*this);
}

void LiveReplicaDatabase::stop() {
  MutexLock lock(apply_mutex_);
  if (stopped_) return;
  stopped_ = true;
  incoming_.reset();
  snapshot_.reset();
  const auto result = checkpoint(Record::now);
  if (result.has_error()) LOG_WARN("{}: last checkpoint: {}", name_, result.error().to_string());
  detach();
}

Result<void> LiveReplicaDatabase::set_aside() {
  MutexLock lock(apply_mutex_);
  stopped_ = true;
  incoming_.reset();
  snapshot_.reset();
  // Best effort: the WAL moves along.
  const auto result = checkpoint(Record::now);
  if (result.has_error()) LOG_WARN("{}: last checkpoint: {}", name_, result.error().to_string());
  if (!database_->deleted()) {
    TRY_ASSIGN(const std::string moved, placement_.set_aside(name_, to_hex(database_->pos().txid.value())));
    if (!moved.empty()) LOG_WARN("{}: the primary does not have it; moved to {}", name_, moved);
  }
  detach();
  MutexLock checkpoint_lock(checkpoint_mutex_);
  installed_.reset();
  return SnapshotFiles::clean(context_.store.fs(), install_directory(context_.store), escape_name(name_), true);
}

// PageSource: the commit lock is held, so what is published is the content at the position.
Result<void> LiveReplicaDatabase::read_page(Pgno pgno, ByteSpan out) {
  if (asleep_ && !failed()) return read_asleep(pgno, out);
  if (!live_ || content_moving_ || failed()) {
    return make_error(Errc::busy, name_ + ": the content is being replaced");
  }
  const WalWriter::View view = live_->writer->view();
  if (out.size() != view.page_size || pgno == Pgno(0) || pgno.value() > view.header.page_count) {
    return make_error(Errc::invalid_argument, fmt::format("{}: no page {} of {} bytes", name_, pgno, out.size()));
  }
  // A frame stays good until the WAL starts over, which needs the commit lock.
  if (const std::uint32_t frame = live_->index->find(pgno, view.header.mx_frame); frame != 0) {
    const std::uint64_t at = sqlite::frame_offset(view.page_size, frame) + sqlite::kWalFrameHeaderSize;
    return read_full(live_->files->wal(), at, out, live_->files->wal_name());
  }
  return read_full(live_->files->database(), std::uint64_t{pgno.value() - 1} * view.page_size, out, name_);
}

// ---- change sets ----

Result<void> LiveReplicaDatabase::begin_change_set(const IncomingChangeSet& head) {
  MutexLock lock(apply_mutex_);
  incoming_.reset();
  if (stopped_) return make_error(Errc::cancelled, name_ + ": stopped");
  if (head.epoch < database_->epoch()) {  // I4
    return make_error(Errc::stale_epoch, fmt::format("{}: change set of epoch {}, the newest seen is {}", name_,
                                                     head.epoch, database_->epoch()));
  }
  if (head.pre != logged()) {  // I4
    return make_error(Errc::position,
                      fmt::format("{}: change set follows {}, the database is at {}", name_, head.pre, logged()));
  }
  if (head.post.txid <= head.pre.txid || head.length == 0 || !valid_page_size(head.page_size)) {
    return make_error(Errc::corrupt, fmt::format("{}: impossible change set {} of {} bytes, page size {}", name_,
                                                 head.post.txid, head.length, head.page_size));
  }
  // The stream goes on from the log: what a snapshot that was broken off has brought is of no use.
  forget_offer();
  snapshot_.reset();
  incoming_.begin(head);
  return {};
}

Result<void> LiveReplicaDatabase::change_set_bytes(ByteView bytes) {
  MutexLock lock(apply_mutex_);
  if (!incoming_.active()) return make_error(Errc::invalid_argument, name_ + ": no change set was begun");
  Result<void> added = incoming_.add(bytes);
  if (added.has_error()) database_->note_attempt(added);
  return added;
}

void LiveReplicaDatabase::abort_change_set() {
  MutexLock lock(apply_mutex_);
  incoming_.reset();
}

Result<void> LiveReplicaDatabase::finish_change_set() {
  MutexLock lock(apply_mutex_);
  if (!incoming_.active()) return make_error(Errc::invalid_argument, name_ + ": no change set was begun");
  Result<void> finished = stopped_ ? make_error(Errc::cancelled, "stopped") : wake();
  if (!finished.has_error()) finished = finish_by_kind();
  incoming_.reset();
  database_->note_attempt(finished);
  if (sums_.capacity() > 65536) std::vector<Database::PageSum>().swap(sums_);
  if (finished.has_error()) return with_context(name_, std::move(finished).error());
  if (live_) awake_->used(*this);
  context_.changed(name_);
  return {};
}

Result<void> LiveReplicaDatabase::finish_by_kind() {
  const IncomingChangeSet& head = incoming_.head();
  if (head.pre != logged()) return make_error(Errc::position, fmt::format("no longer at {}", head.pre));
  if (failed()) return install_incoming_as_snapshot();
  if (head.commit == 0) return remove_by_incoming();
  if (database_->page_count() == 0) return create_from_incoming();
  if (!live_) return make_error(Errc::internal, "the database file is not open");
  if (head.page_size != database_->page_size()) return replace_by_incoming();
  return apply_to_wal();
}

// Nothing is logged or visible before the whole image was verified: the frames written until then lie behind mxFrame.
Result<void> LiveReplicaDatabase::apply_to_wal() {
  WalWriter& writer = *live_->writer;
  const IncomingChangeSet& head = incoming_.head();
  Result<void> begun = writer.begin(false);
  if (begun.has_error()) {
    if (begun.error().code == Errc::internal) fail(begun.error().message);
    return begun;
  }
  const auto append = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    TRY(restart_wal_if_due());
    TRY(decode_incoming([&writer](Pgno pgno, ByteView page) { return writer.add(pgno, page); }));
    // The size changes only with a frame.
    if (sums_.empty() && head.commit != database_->page_count()) TRY(add_page_one());
    TRY(writer.reserve());
    MutexLock lock(database_->commit_mutex());
    TRY(check_post());
    TRY(writer.seal(head.commit));
    TRY(log_incoming());
    // Point of no return: it is logged.
    const Result<void> published = writer.publish(head.post, head.commit);
    if (published.has_error()) fail(published.error().message);
    return published;
  };
  const Result<void> appended = append();
  if (appended.has_error()) {
    writer.cancel();
    return appended;
  }
  set_applied(head.post);
  after_apply();
  return {};
}

Result<void> LiveReplicaDatabase::add_page_one() {
  scratch_.resize(incoming_.head().page_size);
  {
    MutexLock lock(database_->commit_mutex());
    TRY(read_page(Pgno(1), scratch_));
  }
  return live_->writer->add(Pgno(1), scratch_);
}

Result<void> LiveReplicaDatabase::decode_incoming(ltx::PageVisitor visit) {
  sums_.clear();
  return incoming_.decode([&](Pgno pgno, ByteView page) NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
    sums_.push_back({pgno, ltx::page_checksum(pgno, page)});
    return visit(pgno, page);
  });
}

// I4: the rolling checksum over our own pages, with this change set's in their place, must be the announced one.
Result<void> LiveReplicaDatabase::check_post() {
  const IncomingChangeSet& head = incoming_.head();
  if (database_->pos() != head.pre) return make_error(Errc::position, fmt::format("no longer at {}", head.pre));
  const bool whole = database_->page_count() == 0 || head.page_size != database_->page_size() || head.commit == 0;
  const std::uint32_t old_pages = whole ? 0 : database_->page_count();
  const std::uint32_t lock = lock_page(head.page_size).value();
  Checksum rolling = whole ? kEmptyChecksum : head.pre.checksum;
  scratch_.resize(head.page_size);
  std::uint64_t new_pages = 0;
  for (const Database::PageSum& sum : sums_) {
    if (sum.pgno.value() <= old_pages) {
      TRY_ASSIGN(const Checksum old, database_->page_checksum(sum.pgno, scratch_));
      rolling = ltx::toggle(rolling, old);
    } else {
      ++new_pages;
    }
    rolling = ltx::toggle(rolling, sum.checksum);
  }
  for (std::uint64_t p = std::uint64_t{head.commit} + 1; p <= old_pages; ++p) {
    if (p == lock) continue;
    TRY_ASSIGN(const Checksum old, database_->page_checksum(Pgno(static_cast<std::uint32_t>(p)), scratch_));
    rolling = ltx::toggle(rolling, old);
  }
  const std::uint64_t grown = head.commit > old_pages ? head.commit - old_pages : 0;
  const bool has_lock_page = lock > old_pages && lock <= head.commit;
  if (new_pages != grown - (has_lock_page ? 1 : 0)) {
    return make_error(Errc::corrupt, fmt::format("change set {} grows the database from {} to {} pages but has {} of them",
                                                 head.post.txid, old_pages, head.commit, new_pages));
  }
  if (rolling != head.post.checksum) {
    return make_error(Errc::position, fmt::format("change set {} leads to checksum {}, not to {}", head.post.txid,
                                                  to_hex(rolling.value()), to_hex(head.post.checksum.value())));
  }
  return {};
}

Result<void> LiveReplicaDatabase::log_incoming() {
  const IncomingChangeSet& head = incoming_.head();
  ChangeLog& log = database_->log();
  RecordInfo info;
  info.epoch = head.epoch;
  info.pre = head.pre;
  info.post = head.post;
  info.min_txid = head.pre.txid.next();
  info.page_size = head.page_size;
  info.commit = head.commit;
  info.timestamp_ms = head.timestamp_ms;
  info.length = head.length;
  Result<void> logged = log.begin_append();
  if (!logged.has_error()) {
    logged = incoming_.copy_to([&log](ByteView bytes) { return log.append_bytes(bytes); });
    if (logged.has_error()) {
      log.abort_append();
    } else {
      logged = database_->finish_received(info, sums_);
    }
  }
  if (!logged.has_error()) return {};
  const auto last = log.last();
  if (last && last->post == head.post) fail("the change log has a change set that the page checksums lack");
  return logged;
}

Result<void> LiveReplicaDatabase::restart_wal_if_due() {
  WalWriter& writer = *live_->writer;
  TRY_ASSIGN(const bool due, writer.restart_due());
  // With a backfill under way there is something left to backfill.
  if (!due || !checkpoint_mutex_.try_lock()) return {};
  Result<void> restarted;
  {
    MutexLock lock(database_->commit_mutex());
    restarted = writer.try_restart();
  }
  checkpoint_mutex_.unlock();
  if (restarted.has_error()) fail(restarted.error().message);  // readers may have seen it or not
  TRY(restarted);
  if (writer.view().header.mx_frame != 0) return {};
  checkpoint_at_ = context_.options.checkpoint_frames;
  full_checkpoint_at_ = kFullCheckpointFactor * context_.options.checkpoint_frames;
  return {};
}

void LiveReplicaDatabase::after_apply() {
  const std::uint32_t frames = live_->writer->view().header.mx_frame;
  if (frames < checkpoint_at_) return;
  const ReplicaOptions& options = context_.options;
  checkpoint_at_ = frames + options.checkpoint_frames;
  const auto info = live_->index->checkpoint_info();
  const std::uint32_t rest = frames - std::min(frames, info.has_value() ? info->backfilled : 0);
  const bool short_rest = rest <= kFullCheckpointFactor * options.checkpoint_frames;
  if (frames < full_checkpoint_at_ || (!short_rest && frames < options.max_wal_frames)) {
    post_checkpoint();
    return;
  }
  full_checkpoint_at_ = frames + kFullCheckpointFactor * options.checkpoint_frames;
  const auto result = checkpoint(Record::if_due);
  if (result.has_error()) LOG_WARN("{}: checkpoint: {}", name_, result.error().to_string());
}

Result<Txid> LiveReplicaDatabase::sync() {
  TRY(database_->sync());
  return failed() ? Txid(0) : database_->log().durable();
}

}  // namespace sluice::storage::apply
