#include "replication/stream_sender.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/check.h"
#include "base/log.h"

namespace sluice::replication {
namespace {

constexpr std::size_t kMaxReads = 4;                       // of one replica on the disk pool at a time
constexpr std::size_t kMaxQueued = 4u << 20;               // frames waiting for the network
constexpr std::size_t kLowQueue = 1u << 20;
constexpr std::uint64_t kMaxOutstanding = 64u << 20;       // of one replica; above it windows get small
constexpr std::uint64_t kSmallWindow = 256 * 1024;
constexpr auto kRetryDelay = std::chrono::seconds(1);

}  // namespace

StreamSender::StreamSender(PublisherContext& context, Connection& connection, std::string replica)
    : context_(context), connection_(connection), replica_(std::move(replica)), retry_timer_(context.loop) {}

StreamSender::~StreamSender() { cancel(); }

void StreamSender::cancel() {
  cancelled_ = true;
  retry_timer_.cancel();
  for (auto& [id, stream] : streams_)
    if (stream.snapshot) stream.snapshot->cancel();
}

void StreamSender::add(std::shared_ptr<Tracked> tracked, const Pos& pos, bool busy, std::uint32_t attempt) {
  const std::uint32_t id = tracked->id;
  numbers_[tracked->database->name()] = id;
  highest_number_ = std::max(highest_number_, id);
  Stream& stream = streams_[id];
  stream.tracked = std::move(tracked);
  stream.cursor.sent = pos;
  stream.attempt = attempt;
  stream.target = stream.tracked->database->log().durable();
  if (!all_added_) {
    stream.counted = true;
    ++unready_;
  }
  if (busy) {
    set_state(stream, State::waiting);
  } else {
    enqueue(stream);
  }
}

void StreamSender::all_added() {
  all_added_ = true;
  send_ready_if_due();
}

void StreamSender::send_ready_if_due() {
  if (!all_added_ || ready_sent_ || unready_ != 0) return;
  ready_sent_ = true;
  connection_.send(Ready{});
}

void StreamSender::check_target(Stream& stream) {
  if (!stream.counted || stream.start || stream.cursor.sent.txid < stream.target) return;
  stream.counted = false;
  --unready_;
  send_ready_if_due();
}

StreamSender::Stream* StreamSender::find(const std::shared_ptr<Tracked>& tracked) {
  const auto it = streams_.find(tracked->id);
  return it == streams_.end() ? nullptr : &it->second;
}

const std::string* StreamSender::name_of(std::uint32_t id) const {
  const auto it = streams_.find(id);
  return it == streams_.end() ? nullptr : &it->second.tracked->database->name();
}

void StreamSender::wake(const std::shared_ptr<Tracked>& tracked) {
  Stream* stream = find(tracked);
  if (stream == nullptr) {
    if (!all_added_) return;  // the list at connect will have it
    Pos pos;
    bool waiting = false;
    std::uint32_t attempt = 0;
    bool counted = false;
    // Another database of that name: the replica has what it was sent of the old one.
    if (const auto old = numbers_.find(tracked->database->name()); old != numbers_.end()) {
      const Stream& gone = streams_[old->second];
      pos = gone.cursor.sent;
      waiting = gone.state == State::waiting;
      attempt = gone.attempt;
      counted = gone.counted;
      drop(old->second);
    } else if (const auto removed = removed_.find(tracked->database->name()); removed != removed_.end()) {
      attempt = removed->second;
      removed_.erase(removed);
    }
    add(tracked, pos, waiting, attempt);
    streams_.at(tracked->id).counted = counted;  // Ready waits for this one instead
    return;
  }
  switch (stream->state) {
    case State::idle: enqueue(*stream); break;
    case State::reading: stream->again = true; break;
    case State::snapshot: stream->snapshot->durable_changed(); break;
    case State::waiting:
    case State::offering:
    case State::queued:
    case State::blocked:
    case State::delayed: break;  // will read all that is durable when its turn comes
  }
}

void StreamSender::drop(std::uint32_t id) {
  const Stream& gone = streams_.at(id);
  if (gone.snapshot) gone.snapshot->cancel();
  outstanding_ -= gone.sent - gone.acknowledged;
  busy_.erase(id);
  snapshots_.erase(id);
  streams_.erase(id);
}

void StreamSender::remove(const std::string& name) {
  const auto it = numbers_.find(name);
  if (it == numbers_.end()) return;
  Stream& gone = streams_.at(it->second);
  removed_[name] = gone.attempt;
  if (gone.counted) --unready_;
  drop(it->second);
  numbers_.erase(it);
  connection_.send(DatabaseUnknown{name});
  send_ready_if_due();
}

void StreamSender::offer(const TailBatch& batch) {
  Stream* const stream = find(batch.tracked);
  if (stream == nullptr || stream->state != State::idle || stream->cursor.sent != batch.from ||
      window_left(*stream) < batch.cost || connection_.queued_bytes() + batch.cost > kMaxQueued) {
    return wake(batch.tracked);
  }
  stream->cursor = batch.to;
  stream->sent += batch.cost;
  outstanding_ += batch.cost;
  connection_.send(batch.frames);
}

std::map<std::string, ResyncProgress> StreamSender::resyncing() const {
  std::map<std::string, ResyncProgress> all;
  for (const std::uint32_t id : busy_) {
    const Stream& stream = streams_.at(id);
    if (stream.state != State::snapshot && stream.state != State::offering) continue;
    ResyncProgress progress;
    progress.phase = ResyncProgress::Phase::comparing;
    all[stream.tracked->database->name()] = stream.snapshot ? stream.snapshot->progress() : progress;
  }
  return all;
}

void StreamSender::set_state(Stream& stream, State state) {
  const std::uint32_t id = stream.tracked->id;
  if (state == State::idle) {
    busy_.erase(id);
  } else if (busy_.insert(id).second) {
    stream.busy_since = context_.clock.now();
  }
  stream.state = state;
}

void StreamSender::enqueue(Stream& stream) {
  set_state(stream, State::queued);
  runnable_.push_back(stream.tracked->id);
  pump();
}

std::uint64_t StreamSender::window_left(const Stream& stream) const {
  std::uint64_t limit = context_.options.window_bytes;
  if (outstanding_ > kMaxOutstanding) limit = std::min(limit, kSmallWindow);
  const std::uint64_t used = stream.sent - stream.acknowledged;
  return limit > used ? limit - used : 0;
}

void StreamSender::pump() {
  const std::size_t chunk = context_.options.chunk_bytes;
  while (!cancelled_ && !runnable_.empty() && reads_ < kMaxReads &&
         connection_.queued_bytes() + reads_ * chunk < kMaxQueued) {
    const auto it = streams_.find(runnable_.front());
    runnable_.pop_front();
    if (it == streams_.end() || it->second.state != State::queued) continue;
    if (!it->second.start && window_left(it->second) < kMinBudget) {
      set_state(it->second, State::blocked);
    } else if (it->second.snapshot_again) {
      begin_snapshot(it->second);
    } else {
      begin_read(it->second);
    }
  }
}

void StreamSender::begin_read(Stream& stream) {
  if (!context_.gate.enter()) return;
  set_state(stream, State::reading);
  stream.again = false;
  ++reads_;
  const std::uint64_t budget = std::min<std::uint64_t>(context_.options.chunk_bytes, window_left(stream));
  // The copy keeps database and segment alive, whatever happens to the session meanwhile.
  auto task = [weak = weak_from_this(), &context = context_, copy = stream, budget] {
    auto result = std::make_shared<ReadResult>(copy.start ? read_start(copy, budget) : read(copy, budget));
    context.loop.post([weak, result, id = copy.tracked->id, attempt = copy.attempt] {
      if (const auto self = weak.lock()) self->read_done(id, attempt, std::move(*result));
    });
    context.gate.leave();
  };
  if (!context_.pool.post(std::move(task))) context_.gate.leave();
}

StreamSender::ReadResult StreamSender::read(const Stream& stream, std::uint64_t budget) {
  ReadResult result;
  auto piece = read_log(*stream.tracked->database, stream.tracked->id, stream.cursor, budget);
  if (piece.has_error()) {
    result.error = piece.error();
  } else {
    result.piece = std::move(*piece);
  }
  return result;
}

// An empty replica can be given all of the log or the database as it is now: whichever is less. The margin keeps small databases
// on the log, which is at hand.
static bool snapshot_is_cheaper(const storage::Database& database, const Pos& from) {
  constexpr std::uint64_t kMargin = 4u << 20;
  const std::uint64_t bytes = std::uint64_t{database.page_count()} * database.page_size();
  return from == Pos{} && database.log().size_bytes() > kMargin + bytes / 2;
}

StreamSender::ReadResult StreamSender::read_start(const Stream& stream, std::uint64_t budget) {
  const storage::Database& database = *stream.tracked->database;
  Pos from = stream.cursor.sent;
  Bytes frames;
  if (database.pos().txid == Txid(0) && from != Pos{}) {
    // Nothing was ever committed here: to the replica that is the same as no such database.
    append_frame(frames, DatabaseUnknown{database.name()});
    from = Pos{};
  }
  const bool snapshot = stream.want_snapshot || !can_continue(database, from) || snapshot_is_cheaper(database, from);
  const Pos newest = database.log().position_at(database.log().durable()).value_or(database.pos());
  append_frame(frames, DatabaseStart{stream.tracked->id, database.name(), stream.attempt, from, snapshot, newest});

  ReadResult result;
  if (!snapshot) {
    Stream at = stream;
    at.cursor = Cursor{};
    at.cursor.sent = from;
    result = read(at, budget);
    frames.insert(frames.end(), result.piece.frames.begin(), result.piece.frames.end());
  }
  result.piece.needs_snapshot |= snapshot;
  result.piece.frames = std::move(frames);
  result.started = true;
  if (result.error || snapshot) result.piece.cursor.sent = from;
  return result;
}

void StreamSender::read_done(std::uint32_t id, std::uint32_t attempt, ReadResult result) {
  --reads_;
  const auto it = streams_.find(id);
  if (cancelled_ || it == streams_.end()) return pump();
  Stream& stream = it->second;
  if (stream.attempt != attempt) {
    // The replica has asked for another start meanwhile.
    enqueue(stream);
    return;
  }
  if (result.started) stream.start = stream.want_snapshot = false;
  stream.sent += result.piece.cost;
  outstanding_ += result.piece.cost;
  if (!result.piece.frames.empty()) connection_.send(std::make_shared<const Bytes>(std::move(result.piece.frames)));
  if (!result.error || result.started) stream.cursor = result.piece.cursor;
  if (result.error) {
    delay(stream, *result.error);
  } else {
    continue_after(stream, result.piece);
  }
  pump();
}

void StreamSender::continue_after(Stream& stream, const LogPiece& piece) {
  if (piece.needs_snapshot) {
    begin_snapshot(stream);
    return;
  }
  check_target(stream);
  if (!piece.more && !stream.again) {
    set_state(stream, State::idle);
  } else if (window_left(stream) < kMinBudget) {
    set_state(stream, State::blocked);
  } else {
    enqueue(stream);
  }
}

Result<void> StreamSender::acknowledge(const Ack& ack) {
  const auto it = streams_.find(ack.id);
  if (it == streams_.end()) {
    if (ack.id != 0 && ack.id <= highest_number_) return {};  // of a database that is gone
    return make_error(Errc::protocol, "an acknowledgement for a database that was never sent");
  }
  Stream& stream = it->second;
  if (ack.attempt != stream.attempt || stream.start) return {};  // of what was sent before the replica asked anew
  if (ack.consumed > stream.sent || ack.consumed < stream.acknowledged) {
    return make_error(Errc::protocol, "an acknowledgement of bytes that were not sent");
  }
  outstanding_ -= ack.consumed - stream.acknowledged;
  stream.acknowledged = ack.consumed;
  stream.durable = ack.durable;
  if (stream.state == State::snapshot) report_snapshot_progress(stream);
  // Not for every little bit: pieces would get small.
  if (stream.state == State::blocked &&
      (stream.acknowledged == stream.sent || window_left(stream) >= context_.options.window_bytes / 4)) {
    enqueue(stream);
  }
  return {};
}

void StreamSender::resync(const ResyncRequest& request) {
  const auto number = numbers_.find(request.name);
  if (number == numbers_.end()) return;  // it may have gone meanwhile
  Stream& stream = streams_[number->second];
  if (request.attempt <= stream.attempt && stream.state != State::waiting) return;
  stream.attempt = request.attempt;
  stream.want_snapshot = request.snapshot;
  stream.cursor = Cursor{};
  stream.cursor.sent = request.pos;
  restart(stream);
}

void StreamSender::restart(Stream& stream) {
  stream.start = true;
  outstanding_ -= stream.sent - stream.acknowledged;
  stream.sent = stream.acknowledged = 0;
  stream.durable = Txid(0);
  stream.snapshot_again = false;
  if (stream.snapshot) {
    stream.snapshot->cancel();
    stream.snapshot.reset();
    snapshots_.erase(stream.tracked->id);
  }
  // A read in flight comes back with the old attempt and queues it.
  if (stream.state != State::reading && stream.state != State::queued) enqueue(stream);
}

// What differs from what the replica has, if it can say what that is.
void StreamSender::begin_snapshot(Stream& stream) {
  if (version_ < kOfferVersion) return run_snapshot(stream, std::nullopt);
  set_state(stream, State::offering);
  connection_.send(OfferRequest{stream.tracked->id});
  stream.sent += kFrameCost;
  outstanding_ += kFrameCost;
}

void StreamSender::offer_arrived(const Offer& offer, ByteView payload) {
  const auto it = streams_.find(offer.id);
  if (it == streams_.end() || it->second.attempt != offer.attempt || it->second.state != State::offering) return;
  run_snapshot(it->second, storage::PageOffer{offer.page_size, offer.pages, offer.block_pages, decode_sums(payload)});
}

void StreamSender::page_sums_arrived(const PageSums& sums, ByteView payload) {
  const auto it = streams_.find(sums.id);
  if (it == streams_.end() || it->second.attempt != sums.attempt || !it->second.snapshot) return;
  it->second.snapshot->page_sums_arrived(sums.first, payload);
}

void StreamSender::run_snapshot(Stream& stream, std::optional<storage::PageOffer> offer) {
  const std::uint32_t id = stream.tracked->id;
  if (!context_.gate.enter()) return;
  set_state(stream, State::snapshot);
  snapshots_.insert(id);
  auto deliver = [weak = weak_from_this(), &loop = context_.loop, id, attempt = stream.attempt](
                     Buffer frames, std::uint64_t cost) {
    loop.post([weak, id, attempt, frames = std::move(frames), cost] {
      if (const auto self = weak.lock()) self->snapshot_frame(id, attempt, frames, cost);
    });
  };
  stream.snapshot = std::make_shared<SnapshotSender>(stream.tracked->database, id, context_.store.tmp_dir(),
                                                     context_.options.window_bytes,
                                                     std::chrono::milliseconds(context_.options.stall_timeout_ms),
                                                     stream.sent, stream.acknowledged, std::move(deliver),
                                                     std::move(offer));
  auto task = [weak = weak_from_this(), &context = context_, sender = stream.snapshot, id,
               attempt = stream.attempt] {
    auto result = std::make_shared<Result<storage::SnapshotEnd>>(sender->run());
    context.loop.post([weak, id, attempt, result] {
      if (const auto self = weak.lock()) self->snapshot_done(id, attempt, *result);
    });
    context.gate.leave();
  };
  if (!context_.snapshots.post(std::move(task))) context_.gate.leave();
}

void StreamSender::snapshot_frame(std::uint32_t id, std::uint32_t attempt, Buffer frames, std::uint64_t cost) {
  const auto it = streams_.find(id);
  if (cancelled_ || it == streams_.end() || it->second.attempt != attempt) return;
  Stream& stream = it->second;
  stream.sent += cost;
  outstanding_ += cost;
  connection_.send(std::move(frames));
  report_snapshot_progress(stream);
}

void StreamSender::report_snapshot_progress(Stream& stream) {
  if (stream.snapshot && connection_.queued_bytes() < kLowQueue) {
    stream.snapshot->set_progress(stream.sent, stream.acknowledged);
  }
}

void StreamSender::snapshot_done(std::uint32_t id, std::uint32_t attempt, const Result<storage::SnapshotEnd>& result) {
  const auto it = streams_.find(id);
  if (cancelled_ || it == streams_.end() || it->second.attempt != attempt) return;
  Stream& stream = it->second;
  stream.snapshot.reset();
  snapshots_.erase(id);
  stream.snapshot_again = result.has_error();
  if (result.has_error()) {
    connection_.send(SnapshotAbort{id, result.error().message.substr(0, kMaxText)});
    // The window counts it, as every frame about content.
    stream.sent += kFrameCost;
    outstanding_ += kFrameCost;
    delay(stream, result.error());
    return;
  }
  stream.cursor = Cursor{};
  stream.cursor.sent = result->pos;
  stream.cursor.sent_timestamp_ms = result->timestamp_ms;
  check_target(stream);
  enqueue(stream);
}

void StreamSender::delay(Stream& stream, const Error& error) {
  const std::string& name = stream.tracked->database->name();
  std::string text = name + ": " + error.to_string();
  if (text != last_error_) LOG_WARN("replica {}: {}; trying again", replica_, text);
  last_error_ = std::move(text);
  set_state(stream, State::delayed);
  if (retry_timer_.armed()) return;
  retry_timer_.start(kRetryDelay, [this] {
    std::vector<std::uint32_t> delayed;
    for (const std::uint32_t id : busy_)
      if (streams_.at(id).state == State::delayed) delayed.push_back(id);
    for (const std::uint32_t id : delayed) enqueue(streams_.at(id));
  });
}

void StreamSender::begin_drain() {
  unconfirmed_.clear();
  for (const auto& [id, stream] : streams_) unconfirmed_.push_back(id);
}

bool StreamSender::confirmed(const Stream& stream) {
  return stream.state == State::idle && stream.durable >= stream.cursor.sent.txid;
}

// Nothing is committed any more: what is confirmed stays so, and is looked at only once.
bool StreamSender::drained() {
  while (!unconfirmed_.empty()) {
    const auto it = streams_.find(unconfirmed_.back());
    if (it != streams_.end() && !confirmed(it->second)) return false;
    unconfirmed_.pop_back();
  }
  return true;
}

void StreamSender::on_written() {
  for (const std::uint32_t id : snapshots_) report_snapshot_progress(streams_.at(id));
  pump();
}

std::uint64_t StreamSender::behind_ms() const {
  const MonotonicTime now = context_.clock.now();
  const std::int64_t wall = context_.clock.wall_ms();
  std::int64_t behind = 0;
  for (const std::uint32_t id : busy_) {
    const Stream& stream = streams_.at(id);
    std::int64_t waiting =
        std::chrono::duration_cast<std::chrono::milliseconds>(now - stream.busy_since).count();
    // Busy for long, but with what is new: the age of the last one sent says more.
    if (stream.cursor.sent_timestamp_ms != 0) {
      waiting = std::min(waiting, wall - stream.cursor.sent_timestamp_ms);
    }
    behind = std::max(behind, waiting);
  }
  return static_cast<std::uint64_t>(std::max<std::int64_t>(behind, 0));
}

}  // namespace sluice::replication
