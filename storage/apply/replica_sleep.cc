// A replica's databases that nobody changes: their files are closed and their locks given back, so that neither descriptors nor
// memory grow with the number of databases. What is left on disk is whole for anybody who reads it with SQLite: the database
// file has everything, the WAL has no frames, the wal-index is empty and is rebuilt by whoever connects first.
#include "base/log.h"
#include "storage/apply/awake.h"
#include "storage/apply/io.h"
#include "storage/apply/replica_database.h"

namespace sluice::storage::apply {
namespace {

constexpr int kAttachWaitMs = 5000;
/// Databases that are asked to sleep for one that wakes up: clients may be connected to those that are asked first.
constexpr std::size_t kMostAsked = 8;

}  // namespace

// ---- which ones ----

void AwakeDatabases::used(LiveReplicaDatabase& database) {
  MutexLock lock(mutex_);
  const auto it = places_.find(&database);
  if (it != places_.end()) {
    order_.splice(order_.begin(), order_, it->second);
    return;
  }
  order_.push_front({&database, database.weak_from_this()});
  places_[&database] = order_.begin();
}

void AwakeDatabases::gone(const LiveReplicaDatabase& database) {
  MutexLock lock(mutex_);
  const auto it = places_.find(&database);
  if (it == places_.end()) return;
  order_.erase(it->second);
  places_.erase(it);
}

std::vector<std::shared_ptr<LiveReplicaDatabase>> AwakeDatabases::surplus(std::size_t most) const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<LiveReplicaDatabase>> found;
  if (order_.size() <= limit_) return found;
  for (auto it = order_.rbegin(); it != order_.rend() && found.size() < most; ++it) {
    if (auto database = it->database.lock()) found.push_back(std::move(database));
  }
  return found;
}

std::size_t AwakeDatabases::count() const {
  MutexLock lock(mutex_);
  return order_.size();
}

// ---- one of them ----

/// Not where clients can write (they would not be seen), nor on the plain path, where the -shm is the mount's own page cache.
bool LiveReplicaDatabase::may_sleep() const { return !context_.options.hold_write_locks && context_.access.passthrough(); }

/// Whoever opens files sees to it that others close theirs.
void LiveReplicaDatabase::make_room() {
  awake_->used(*this);
  if (!may_sleep()) return;
  for (const auto& other : awake_->surplus(kMostAsked)) {
    if (other.get() == this) continue;
    if (other->try_sleep()) return;
    awake_->used(*other);  // somebody is connected, or at work: the next ones first
  }
}

Result<void> LiveReplicaDatabase::wake() {
  if (!asleep_) return {};
  auto files = LiveFiles::open(context_.access, name_);
  if (files.has_error() && files.error().code == Errc::not_found) {
    fail("its file is gone");
    detach();
    return {};
  }
  TRY(files);
  TRY((*files)->lock_shared(kAttachWaitMs));
  return attach(std::move(*files));
}

/// What is there is as try_sleep() leaves it.
void LiveReplicaDatabase::start_asleep() {
  MutexLock checkpoint_lock(checkpoint_mutex_);
  MutexLock commit_lock(database_->commit_mutex());
  asleep_ = true;
  content_moving_ = false;
  database_->set_page_source(this);
}

bool LiveReplicaDatabase::try_sleep() {
  if (!apply_mutex_.try_lock()) return false;
  const bool asleep = fall_asleep();
  apply_mutex_.unlock();
  return asleep;
}

bool LiveReplicaDatabase::fall_asleep() {
  if (stopped_ || !live_ || live_->blocked || incoming_.active() || snapshot_ || offering_ || failed()) return false;
  if (!checkpoint_mutex_.try_lock()) return false;
  const bool asleep = fall_asleep_locked();
  checkpoint_mutex_.unlock();
  return asleep;
}

bool LiveReplicaDatabase::fall_asleep_locked() {
  const auto done = checkpoint_locked(Record::now);
  if (done.has_error() || !done->complete || installed_) return false;
  {
    MutexLock lock(database_->commit_mutex());
    if (database_->checksums().state().checkpoint != database_->pos()) return false;
  }
  // Nobody is connected: a client holds SHARED as long as it uses the WAL.
  if (live_->files->lock_exclusive(0).has_error()) return false;
  std::unique_ptr<Live> live;
  {
    MutexLock lock(database_->commit_mutex());
    live = std::move(live_);
    asleep_ = true;
  }
  live->writer.reset();
  live->index.reset();
  Result<void> emptied = live->files->resize_shm(0);
  if (!emptied.has_error()) emptied = placement_.reset_wal_only(name_, database_->page_size());
  // The frames that stay are of the content at this position: whoever finds them reads the same, and a snapshot heals us.
  if (emptied.has_error()) LOG_WARN("{}: falling asleep: {}", name_, emptied.error().to_string());
  live.reset();
  buffers_ = {};
  sums_ = {};
  scratch_ = {};
  incoming_.give_back();
  awake_->gone(*this);
  return true;
}

/// Commit lock held: nobody wakes up meanwhile.
Result<void> LiveReplicaDatabase::read_asleep(Pgno pgno, ByteSpan out) {
  if (out.size() != database_->page_size() || pgno == Pgno(0) || pgno.value() > database_->page_count()) {
    return make_error(Errc::invalid_argument, fmt::format("{}: no page {} of {} bytes", name_, pgno, out.size()));
  }
  if (!resting_file_) {
    TRY_ASSIGN(resting_file_, context_.store.fs().open(context_.store.backing_path(name_), {}));
  }
  TRY_ASSIGN(const std::size_t n, resting_file_->read_at(std::uint64_t{pgno.value() - 1} * out.size(), out));
  if (n != out.size()) return make_error(Errc::corrupt, fmt::format("{}: the file ends before page {}", name_, pgno));
  return {};
}

}  // namespace sluice::storage::apply
