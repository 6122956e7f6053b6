#include "replication/upstream_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "storage/store.h"

namespace sluice::replication {
namespace {

constexpr auto kSyncInterval = std::chrono::milliseconds(20);  // at most one sync a database in this time
constexpr auto kFirstRetry = std::chrono::milliseconds(100);
constexpr auto kLastRetry = std::chrono::seconds(30);
constexpr std::uint64_t kWindowSlack = 1024;  // frames that end a snapshot come without regard to the window
constexpr std::size_t kMaxQueued = 64u << 20;  // answers that the primary has not read
constexpr std::size_t kMaxRetired = 1'000'000;

Error from_wire(const ErrorFrame& frame) {
  Errc code = Errc::unavailable;
  switch (frame.code) {
    case WireError::version: code = Errc::unsupported; break;
    case WireError::stale_epoch: code = Errc::stale_epoch; break;
    case WireError::self: code = Errc::invalid_argument; break;
    case WireError::protocol: code = Errc::protocol; break;
    case WireError::too_large: code = Errc::too_large; break;
    case WireError::internal:
    case WireError::busy: break;
  }
  return make_error(code, frame.text);
}

}  // namespace

UpstreamSession::UpstreamSession(EventLoop& loop, Clock& clock, Owner& owner, const SubscriberOptions& options)
    : loop_(loop), clock_(clock), owner_(owner), options_(options), sync_timer_(loop), heartbeat_timer_(loop) {}

UpstreamSession::~UpstreamSession() {
  if (connection_ && !ended_) connection_->close();
}

void UpstreamSession::start(UniqueFd socket, Bytes early) {
  connection_ = Connection::create(loop_, std::move(socket), std::move(early), *this);
  greet();
  heartbeat();
  connection_->start();
}

void UpstreamSession::greet() {
  Hello hello;
  hello.node_id = options_.node_id;
  hello.hostname = options_.hostname;
  connection_->send(hello);
  Positions positions;
  for (const auto& [name, feed] : owner_.feeds()) {
    const auto status = feed->status();
    newest_epoch_ = std::max(newest_epoch_, status.epoch);
    if (!status.busy && status.logged.txid == Txid(0)) continue;
    Link& entry = link(name);
    entry.was_busy = status.busy;
    entry.generation = status.generation;
    positions.databases.push_back({name, status.logged, status.epoch, status.busy});
    if (positions.databases.size() < kPositionsPerFrame) continue;
    connection_->send(positions);
    positions.databases.clear();
  }
  positions.last = true;
  connection_->send(positions);
}

UpstreamSession::Link& UpstreamSession::link(const std::string& name) {
  Link& entry = links_[name];
  if (!entry.feed) entry.feed = owner_.feed(name);
  return entry;
}

void UpstreamSession::on_frame(Frame& frame) {
  Message& message = frame.message;
  if (std::holds_alternative<Unknown>(message)) return;
  if (auto* error = std::get_if<ErrorFrame>(&message)) return end(from_wire(*error));
  if (auto* goodbye = std::get_if<Goodbye>(&message)) {
    return end(make_error(Errc::unavailable, "the primary closed the stream: " + goodbye->reason));
  }
  if (welcomed_) return handle_streaming(frame);
  if (auto* welcome = std::get_if<Welcome>(&message)) return handle_welcome(*welcome);
  refuse(WireError::protocol, make_error(Errc::protocol, fmt::format("the primary sent {} before Welcome",
                                                                     kind_name(message))));
}

void UpstreamSession::handle_welcome(const Welcome& welcome) {
  if (welcome.version < kMinVersion || welcome.version > kMaxVersion) {
    return refuse(WireError::version,
                  make_error(Errc::unsupported,
                             fmt::format("the primary {} speaks protocol {}, this node {}: upgrade the {}",
                                         welcome.hostname, welcome.version, kMaxVersion,
                                         welcome.version > kMaxVersion ? "replica" : "primary")));
  }
  if (welcome.node_id == options_.node_id) {
    return refuse(WireError::self, make_error(Errc::invalid_argument,
                                              "the primary has this node's own id: the primary URL points to this "
                                              "node, or its data directory is a copy"));
  }
  if (leads_through(welcome.path, options_.node_id)) return refuse_circle();
  if (welcome.epoch < newest_epoch_) {
    return refuse(WireError::stale_epoch,
                  make_error(Errc::stale_epoch, fmt::format("the primary {} is of epoch {}, this node has seen {}",
                                                            welcome.hostname, welcome.epoch, newest_epoch_)));
  }
  if (welcome.window_bytes == 0 || welcome.window_bytes > kMaxWindow) {
    return refuse(WireError::protocol, make_error(Errc::protocol, "the primary offers a window out of bounds"));
  }
  welcomed_ = true;
  window_bytes_ = welcome.window_bytes;
  owner_.session_welcomed(welcome);
  // What ended meanwhile gave its news before anybody could use them.
  for (auto& [name, entry] : links_)
    if (entry.was_busy) news(*entry.feed);
}

void UpstreamSession::refuse_circle() {
  refuse(WireError::self, make_error(Errc::invalid_argument,
                                     "the node above gets its data from this very node: the primary URLs lead in a circle; one "
                                     "of these nodes must be the primary, or point to it"));
}

void UpstreamSession::handle_streaming(Frame& frame) {
  Message& message = frame.message;
  if (auto* heartbeat = std::get_if<Heartbeat>(&message)) {
    if (leads_through(heartbeat->path, options_.node_id)) return refuse_circle();
    return owner_.session_heartbeat(*heartbeat);
  }
  if (auto* start = std::get_if<DatabaseStart>(&message)) return handle_start(*start);
  if (auto* unknown = std::get_if<DatabaseUnknown>(&message)) return handle_unknown(*unknown);
  if (std::holds_alternative<Ready>(message)) {
    ready_ = true;
    if (unsynced_ == 0 && !std::exchange(synced_, true)) owner_.session_synced();
    return;
  }
  if (content_cost(message, 0) != 0) return handle_content(frame);
  refuse(WireError::protocol,
         make_error(Errc::protocol, fmt::format("the primary sent a {} frame, which does not belong here",
                                                kind_name(message))));
}

void UpstreamSession::handle_start(const DatabaseStart& start) {
  const auto clean = storage::check_database_name(start.name);
  if (clean.has_error()) {
    return refuse(WireError::protocol, with_context("the primary names a database wrongly", clean.error()));
  }
  if (links_.size() >= kMaxDatabases || retired_ids_.size() >= kMaxRetired) {
    return refuse(WireError::too_large, make_error(Errc::too_large, "the primary has too many databases"));
  }
  Link& entry = link(start.name);
  const bool number_taken =
      retired_ids_.contains(start.id) || (by_id_.contains(start.id) && by_id_.at(start.id) != &entry);
  const bool again = entry.listening && entry.id == start.id;
  if (number_taken || again || start.attempt > entry.attempt) {
    return refuse(WireError::protocol, make_error(Errc::protocol, "the primary starts a database that it must not"));
  }
  if (start.attempt < entry.attempt) return;  // overtaken by a request of ours
  if (entry.id != 0 && entry.id != start.id) {
    by_id_.erase(entry.id);
    retired_ids_.insert(entry.id);
    entry.listening = false;
  }
  if (entry.generation == 0 || entry.id != 0) {
    entry.generation = entry.feed->restart();
  }
  entry.id = start.id;
  by_id_[start.id] = &entry;
  entry.listening = true;
  entry.was_busy = false;
  entry.acknowledged = Ack{start.id, start.attempt, {}, {}, 0};
  if (!entry.target) ++unsynced_;
  entry.target = start.newest.txid;
  entry.foreign = start.snapshot;
  entry.feed->push(start, {}, true);
  if (start.snapshot) {
    owner_.wanted_resync(start.name);  // this is it
  } else {
    resync_if_wanted(start.name);
  }
}

void UpstreamSession::handle_unknown(const DatabaseUnknown& unknown) {
  const auto it = links_.find(unknown.name);
  if (it == links_.end()) return;
  Link& entry = it->second;
  entry.was_busy = false;
  entry.feed->push(unknown, {}, true);
  if (!entry.target) return;
  // It was taken away while this node was catching up with it.
  entry.target.reset();
  --unsynced_;
  if (ready_ && unsynced_ == 0 && !std::exchange(synced_, true)) owner_.session_synced();
}

void UpstreamSession::handle_content(Frame& frame) {
  const std::uint32_t id = database_id(frame.message);
  const auto it = by_id_.find(id);
  if (it == by_id_.end()) {
    if (retired_ids_.contains(id)) return;
    return refuse(WireError::protocol, make_error(Errc::protocol, fmt::format("the primary sent a {} frame for database "
                                                                              "number {}, which it never started",
                                                                              kind_name(frame.message), id)));
  }
  Link& entry = *it->second;
  if (!entry.listening) return;  // on its way before the primary heard that we start over
  const std::uint64_t queued = entry.feed->push(std::move(frame.message), frame.payload, frame.payload_intact);
  if (queued <= window_bytes_ + kWindowSlack) return;
  refuse(WireError::protocol, make_error(Errc::protocol, fmt::format("the primary sent more of {} than its window of {} "
                                                                     "bytes allows",
                                                                     entry.feed->name(), window_bytes_)));
}

void UpstreamSession::news(DatabaseFeed& feed) {
  const DatabaseFeed::Status status = feed.status();
  const auto it = links_.find(feed.name());
  if (ended_ || !welcomed_ || it == links_.end()) return;
  Link& entry = it->second;
  if (entry.was_busy) {
    if (!status.busy) {
      entry.was_busy = false;
      entry.attempt = 1;
      request_resync(feed.name(), false, "it was busy when this node connected");
    }
    return;
  }
  if (status.unsynced) sync_later(entry);
  if (!entry.listening || status.generation != entry.generation) return;
  send_outgoing(entry);
  if (ended_) return;
  if (status.failure) return handle_failure(entry, *status.failure);
  if (entry.failures != 0 && status.applied > entry.applied_at_failure) entry.failures = 0;
  acknowledge(entry, status);
  check_synced(entry, status);
}

void UpstreamSession::acknowledge(Link& entry, const DatabaseFeed::Status& status) {
  const Ack ack{entry.id, entry.attempt, status.durable, status.applied, status.consumed};
  const Ack& last = entry.acknowledged;
  if (ack.durable == last.durable && ack.applied == last.applied && ack.consumed == last.consumed) return;
  entry.acknowledged = ack;
  connection_->send(ack);
}

void UpstreamSession::send_outgoing(Link& entry) {
  for (DatabaseFeed::Outgoing& out : entry.feed->take_outgoing(entry.generation)) {
    if (auto* offer = std::get_if<Offer>(&out.message)) {
      offer->id = entry.id;
      offer->attempt = entry.attempt;
    } else if (auto* sums = std::get_if<PageSums>(&out.message)) {
      sums->id = entry.id;
      sums->attempt = entry.attempt;
    }
    auto frame = std::make_shared<Bytes>();
    append_frame(*frame, out.message, out.payload);
    connection_->send(std::move(frame));
  }
  if (connection_->queued_bytes() <= kMaxQueued) return;
  refuse(WireError::protocol, make_error(Errc::protocol, "the primary asks for more checksums than it reads"));
}

void UpstreamSession::check_synced(Link& entry, const DatabaseFeed::Status& status) {
  if (!entry.target || status.applied < *entry.target) return;
  if (entry.foreign && status.installed == 0) return;
  entry.target.reset();
  --unsynced_;
  if (ready_ && unsynced_ == 0 && !std::exchange(synced_, true)) owner_.session_synced();
}

void UpstreamSession::resync_if_wanted(const std::string& name) {
  const auto it = links_.find(name);
  if (ended_ || it == links_.end() || !it->second.listening) return;
  const auto reason = owner_.wanted_resync(name);
  if (!reason) return;
  Link& entry = it->second;
  LOG_WARN("{}: {}; comparing with the primary", name, *reason);
  owner_.session_resync();
  entry.listening = false;
  entry.attempt += 1;
  entry.generation = entry.feed->restart();
  request_resync(name, true, *reason);
}

// Only this database starts over; the others go on.
void UpstreamSession::handle_failure(Link& entry, const DatabaseFeed::Failure& failure) {
  const std::string& name = entry.feed->name();
  if (failure.error.code == Errc::stale_epoch) {
    return refuse(WireError::stale_epoch, with_context(name, failure.error));
  }
  LOG_WARN("{}: {}; resynchronising{}", name, failure.error.to_string(), failure.snapshot ? " by snapshot" : "");
  owner_.session_resync();
  const auto status = entry.feed->status();
  entry.listening = false;
  entry.attempt += 1;
  entry.applied_at_failure = status.applied;
  entry.generation = entry.feed->restart();
  const int failures = entry.failures++;
  if (failures == 0) return request_resync(name, failure.snapshot, failure.error.message);
  const auto delay = std::min<Duration>(kFirstRetry * (1 << std::min(failures, 10)), kLastRetry);
  if (!entry.retry) entry.retry = std::make_unique<Timer>(loop_);
  entry.retry->start(delay, [this, name, failure] { request_resync(name, failure.snapshot, failure.error.message); });
}

void UpstreamSession::request_resync(const std::string& name, bool snapshot, const std::string& reason) {
  const Link& entry = links_.at(name);
  ResyncRequest request;
  request.name = name;
  request.attempt = entry.attempt;
  request.pos = entry.feed->status().logged;
  request.snapshot = snapshot;
  request.reason = reason.substr(0, kMaxText);
  connection_->send(request);
}

void UpstreamSession::sync_later(Link& entry) {
  sync_due_.insert(entry.feed.get());
  if (sync_timer_.armed()) return;
  sync_timer_.start(kSyncInterval, [this] {
    for (DatabaseFeed* const feed : std::exchange(sync_due_, {})) feed->request_sync();
  });
}

void UpstreamSession::heartbeat() {
  const auto timeout = std::chrono::milliseconds(options_.peer_timeout_ms);
  if (clock_.now() - connection_->last_heard() > timeout) {
    return end(make_error(Errc::deadline, fmt::format("nothing was heard from the primary for {} ms",
                                                      options_.peer_timeout_ms)));
  }
  if (connection_->write_stalled() > std::chrono::milliseconds(options_.stall_timeout_ms)) {
    return end(make_error(Errc::deadline, fmt::format("the primary has read nothing for {} ms",
                                                      options_.stall_timeout_ms)));
  }
  if (welcomed_) connection_->send(Heartbeat{clock_.wall_ms(), 0});
  heartbeat_timer_.start(std::chrono::milliseconds(options_.heartbeat_ms), [this] { heartbeat(); });
}

void UpstreamSession::on_broken(const Error& error) {
  refuse(error.code == Errc::too_large ? WireError::too_large : WireError::protocol, error);
}

void UpstreamSession::on_closed(const Error& error) { end(error); }

void UpstreamSession::refuse(WireError code, Error error) {
  if (ended_) return;
  connection_->close_after(ErrorFrame{code, error.message.substr(0, kMaxText)});
  finish();
  owner_.session_ended(error);
}

void UpstreamSession::end(const Error& error) {
  if (ended_) return;
  connection_->close();
  finish();
  owner_.session_ended(error);
}

void UpstreamSession::close(const std::string& reason) {
  if (ended_) return;
  connection_->send(Goodbye{reason});
  connection_->close();
  finish();
}

// What is queued of this connection is dropped, what was begun is aborted: the next connection starts from the log.
void UpstreamSession::finish() {
  ended_ = true;
  heartbeat_timer_.cancel();
  sync_timer_.cancel();
  for (DatabaseFeed* const feed : sync_due_) feed->request_sync();
  for (auto& [name, entry] : links_) {
    entry.retry.reset();
    entry.feed->restart();
  }
}

std::uint64_t UpstreamSession::take_bytes_received() {
  const std::uint64_t total = connection_->bytes_received();
  return total - std::exchange(bytes_taken_, total);
}

}  // namespace sluice::replication
