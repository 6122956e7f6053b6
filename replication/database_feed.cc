#include "replication/database_feed.h"

#include <algorithm>
#include <utility>

namespace sluice::replication {
namespace {

constexpr auto kTurn = std::chrono::milliseconds(5);  // then other databases get the thread

// The content did not fit: once may be damage on the way, or a position that moved, and the log can go on from what is
// here. Twice in a row is a difference that only a snapshot heals. All other errors (busy readers, a full disk) leave
// things as they are, or leave logged() at Pos{}, which says enough.
bool content_error(Errc code) {
  return code == Errc::protocol || code == Errc::corrupt || code == Errc::position;
}

}  // namespace

std::uint64_t content_cost(const Message& message, std::size_t payload) {
  const bool content = database_id(message) != 0 && !std::holds_alternative<DatabaseStart>(message) &&
                       !std::holds_alternative<Ack>(message);
  return content ? frame_cost(payload) : 0;
}

DatabaseFeed::DatabaseFeed(FeedContext& context, std::string name,
                           std::shared_ptr<storage::ReplicaDatabase> database)
    : context_(context), name_(std::move(name)), database_(std::move(database)) {
  shared_ = database_;
  if (!database_) return;
  status_.logged = database_->logged();
  status_.applied = database_->applied().txid;
  status_.epoch = database_->epoch();
  status_.unsynced = true;  // how much of it is durable is not known before the first sync
}

std::uint64_t DatabaseFeed::restart() {
  MutexLock lock(mutex_);
  // A DatabaseUnknown stays: what it says holds for whatever comes next.
  std::erase_if(queue_, [](const Item& item) { return !std::holds_alternative<DatabaseUnknown>(item.message); });
  queued_cost_ = 0;
  outgoing_.clear();
  const std::uint64_t generation = ++status_.generation;
  status_.consumed = status_.installed = 0;
  status_.failure.reset();
  if (std::exchange(touched_, false)) {
    abort_ = true;
    schedule();
  }
  return generation;
}

std::uint64_t DatabaseFeed::push(Message message, ByteView payload, bool payload_intact) {
  MutexLock lock(mutex_);
  Item item;
  item.cost = content_cost(message, payload.size());
  item.message = std::move(message);
  item.payload.assign(payload.begin(), payload.end());
  item.payload_intact = payload_intact;
  item.generation = status_.generation;
  item.arrived = context_.clock.now();
  // After a failure the rest of the stream means nothing; the primary is told.
  if (status_.failure && !std::holds_alternative<DatabaseUnknown>(item.message)) return 0;
  touched_ = true;
  queued_cost_ += item.cost;
  queue_.push_back(std::move(item));
  schedule();
  return queued_cost_;
}

void DatabaseFeed::request_sync() {
  MutexLock lock(mutex_);
  if (!status_.unsynced || syncing_ || !shared_ || !context_.gate.enter()) return;
  syncing_ = true;
  status_.unsynced = false;
  auto task = [self = shared_from_this(), database = shared_, lineage = lineage_] {
    self->sync(*database, lineage);
    self->context_.gate.leave();
  };
  if (context_.pool.post(std::move(task))) return;
  syncing_ = false;
  context_.gate.leave();
}

DatabaseFeed::Status DatabaseFeed::status() {
  MutexLock lock(mutex_);
  told_ = false;
  Status status = status_;
  status.busy = running_ || abort_;
  return status;
}

std::optional<MonotonicTime> DatabaseFeed::pending_since() const {
  MutexLock lock(mutex_);
  if (failing_since_) return failing_since_;  // older than whatever came since
  if (working_on_) return working_on_;
  if (!queue_.empty()) return queue_.front().arrived;
  return std::nullopt;
}

void DatabaseFeed::schedule() {
  if (running_ || !context_.gate.enter()) return;
  running_ = true;
  if (context_.pool.post([self = shared_from_this()] { self->drain(); })) return;
  running_ = false;
  context_.gate.leave();
}

void DatabaseFeed::drain() {
  const MonotonicTime until = context_.clock.now() + kTurn;
  while (drain_one()) {
    if (context_.clock.now() < until) continue;
    if (context_.pool.post([self = shared_from_this()] { self->drain(); })) return;
    break;
  }
  context_.gate.leave();
}

DatabaseFeed::Step DatabaseFeed::next(Item& item) {
  MutexLock lock(mutex_);
  working_on_.reset();
  if (std::exchange(abort_, false)) return Step::abort;
  if (!context_.gate.closed() && open_ == Open::offer) {
    working_on_ = offer_arrived_;
    return Step::offer;
  }
  if (!context_.gate.closed() && !queue_.empty()) {
    item = std::move(queue_.front());
    queue_.pop_front();
    working_on_ = item.arrived;
    return Step::item;
  }
  running_ = false;
  return Step::idle;
}

// False: nothing to do; the task is over.
bool DatabaseFeed::drain_one() {
  Item item;
  switch (next(item)) {
    case Step::idle: tell(); return false;
    case Step::abort: abort_open(); return true;
    case Step::offer: go_on_offering(); return true;
    case Step::item: work_off(std::move(item)); return true;
  }
  return false;
}

void DatabaseFeed::work_off(Item item) {
  const Txid before = database_ ? database_->applied().txid : Txid(0);
  const bool snapshot = std::holds_alternative<SnapshotDone>(item.message);
  Result<void> result = handle(item);
  if (result.has_error()) abort_open();
  {
    MutexLock lock(mutex_);
    shared_ = database_;
    if (database_) {
      status_.logged = database_->logged();
      status_.applied = database_->applied().txid;
      status_.epoch = database_->epoch();
    } else {
      status_.logged = Pos{};
      status_.applied = status_.durable = Txid(0);
    }
    if (snapshot) ++lineage_;
    // Never more than there is, whatever was durable of another history.
    status_.durable = std::min(status_.durable, status_.logged.txid);
    const bool installed = result.has_value() && (snapshot || status_.applied != before);
    if (status_.applied != before) {
      status_.unsynced = progressed_ = true;
      failing_since_.reset();
    }
    // A restart meanwhile: nobody asks about the old stream any more.
    if (item.generation == status_.generation) {
      queued_cost_ -= item.cost;
      status_.consumed += item.cost;
      status_.installed += installed ? 1 : 0;
      const auto* start = std::get_if<DatabaseStart>(&item.message);
      // Damage in what was sent twice, say: nothing is missing after all.
      if (start != nullptr && start->newest == status_.logged) failing_since_.reset();
      if (result.has_error()) fail(result.error(), item.generation, item.arrived);
    }
  }
  tell();
}

// The rest of the generation means nothing.
void DatabaseFeed::fail(const Error& error, std::uint64_t generation, MonotonicTime arrived) {
  if (generation != status_.generation) return;
  status_.failure = Failure{error, content_error(error.code) && !progressed_};
  if (content_error(error.code)) progressed_ = false;
  if (!failing_since_) failing_since_ = arrived;
  std::erase_if(queue_, [](const Item& i) { return !std::holds_alternative<DatabaseUnknown>(i.message); });
  queued_cost_ = 0;
}

// A piece of the work; in between other databases get their turn, and a new connection its abort.
void DatabaseFeed::go_on_offering() {
  const Result<bool> done = database_->prepare_offer(offer_);
  if (done.has_value() && !*done) return;
  open_ = Open::nothing;
  if (done.has_value()) {
    const Offer message{0, 0, offer_.page_size, offer_.pages, offer_.block_pages};
    return post(message, encode_sums(std::exchange(offer_, {}).blocks), offer_generation_);
  }
  offer_ = {};
  {
    MutexLock lock(mutex_);
    fail(done.error(), offer_generation_, offer_arrived_);
  }
  tell();
}

ResyncProgress DatabaseFeed::progress() const {
  MutexLock lock(mutex_);
  ResyncProgress progress = progress_;
  progress.elapsed_ms = std::chrono::duration_cast<std::chrono::milliseconds>(context_.clock.now() - phase_began_).count();
  return progress;
}

void DatabaseFeed::set_phase(ResyncProgress::Phase phase, std::uint64_t expected) {
  MutexLock lock(mutex_);
  progress_ = {};
  progress_.phase = phase;
  progress_.expected = expected;
  phase_began_ = context_.clock.now();
}

void DatabaseFeed::count_pages(std::uint64_t pages, std::uint64_t bytes) {
  MutexLock lock(mutex_);
  progress_.pages += pages;
  progress_.bytes += bytes;
}

void DatabaseFeed::post(Message message, Bytes payload, std::uint64_t generation) {
  {
    MutexLock lock(mutex_);
    if (generation != status_.generation) return;
    outgoing_.push_back({std::move(message), std::move(payload), generation});
  }
  tell();
}

std::vector<DatabaseFeed::Outgoing> DatabaseFeed::take_outgoing(std::uint64_t generation) {
  MutexLock lock(mutex_);
  std::vector<Outgoing> taken = std::exchange(outgoing_, {});
  std::erase_if(taken, [generation](const Outgoing& out) { return out.generation != generation; });
  return taken;
}

void DatabaseFeed::sync(storage::ReplicaDatabase& database, std::uint64_t lineage) {
  const Result<Txid> durable = database.sync();
  {
    MutexLock lock(mutex_);
    syncing_ = false;
    if (shared_.get() != &database) return;  // discarded meanwhile
    if (lineage != lineage_) {
      status_.unsynced = true;  // of the history before a snapshot: ask again
    } else if (durable.has_value()) {
      status_.durable = *durable;
    } else {
      status_.failure = Failure{durable.error(), false};
    }
  }
  tell();
}

void DatabaseFeed::tell() {
  {
    MutexLock lock(mutex_);
    if (std::exchange(told_, true)) return;
  }
  context_.news(shared_from_this());
}

}  // namespace sluice::replication
