#include "replication/replica_session.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "base/log.h"
#include "storage/store.h"

namespace sluice::replication {
ReplicaSession::ReplicaSession(PublisherContext& context, Owner& owner, std::string address)
    : context_(context),
      owner_(owner),
      address_(std::move(address)),
      name_(address_),
      heartbeat_timer_(context.loop),
      started_(context.clock.now()) {}

ReplicaSession::~ReplicaSession() {
  if (connection_ && phase_ != Phase::closed) connection_->close();
}

void ReplicaSession::start(UniqueFd socket, Bytes early) {
  connection_ = Connection::create(context_.loop, std::move(socket), std::move(early), *this);
  sender_ = std::make_shared<StreamSender>(context_, *connection_, address_);
  heartbeat();
  connection_->start();
}

void ReplicaSession::wake(const std::shared_ptr<Tracked>& tracked) {
  if (phase_ == Phase::streaming) sender_->wake(tracked);
}

void ReplicaSession::database_removed(const std::string& name) {
  if (phase_ != Phase::streaming) return;  // the list at the beginning will not have it
  sender_->remove(name);
  MutexLock lock(status_mutex_);
  databases_.erase(name);
}

void ReplicaSession::offer(const TailBatch& batch) {
  if (phase_ == Phase::streaming) sender_->offer(batch);
}

void ReplicaSession::on_written() {
  if (phase_ == Phase::streaming) sender_->on_written();
}

void ReplicaSession::on_frame(Frame& frame) {
  if (!frame.payload_intact) return refuse(WireError::protocol, "a payload arrived damaged (its CRC does not fit)");
  Message& message = frame.message;
  if (std::holds_alternative<Unknown>(message) || std::holds_alternative<Heartbeat>(message)) return;
  if (auto* error = std::get_if<ErrorFrame>(&message)) {
    LOG_WARN("replica {} closed the stream: {}", name_, error->text);
    return end();
  }
  if (auto* goodbye = std::get_if<Goodbye>(&message)) {
    LOG_INFO("replica {} left: {}", name_, goodbye->reason);
    return end();
  }
  if (phase_ == Phase::hello) {
    if (auto* hello = std::get_if<Hello>(&message)) return handle_hello(*hello);
  } else if (phase_ == Phase::positions) {
    if (auto* positions = std::get_if<Positions>(&message)) return handle_positions(*positions);
  } else if (phase_ == Phase::streaming) {
    if (auto* ack = std::get_if<Ack>(&message)) return handle_ack(*ack);
    if (auto* offer = std::get_if<Offer>(&message)) return sender_->offer_arrived(*offer, frame.payload);
    if (auto* sums = std::get_if<PageSums>(&message)) return sender_->page_sums_arrived(*sums, frame.payload);
    if (auto* request = std::get_if<ResyncRequest>(&message)) {
      LOG_INFO("replica {} asks to resynchronise {} from {}{}: {}", name_, request->name, request->pos,
               request->snapshot ? " by snapshot" : "", request->reason);
      return sender_->resync(*request);
    }
  }
  refuse(WireError::protocol, fmt::format("a {} frame does not belong here", kind_name(message)));
}

void ReplicaSession::handle_hello(const Hello& hello) {
  if (hello.min_version > kMaxVersion || hello.max_version < kMinVersion) {
    const bool newer = hello.min_version > kMaxVersion;
    return refuse(WireError::version,
                  fmt::format("replica {} speaks protocol {}, this primary {}: upgrade the {}", hello.hostname,
                              newer ? hello.min_version : hello.max_version, newer ? kMaxVersion : kMinVersion,
                              newer ? "primary" : "replica"));
  }
  Welcome welcome;
  welcome.epoch = context_.options.epoch;
  if (context_.options.upstream) {
    Upstream upstream = context_.options.upstream();
    if (const auto circle = check_circle(upstream, hello.node_id); circle.has_error()) {
      return refuse(WireError::self, circle.error().message);
    }
    welcome.epoch = upstream.epoch;
    welcome.primary_hostname = std::move(upstream.primary_hostname);
    welcome.path = std::move(upstream.path);
  }
  if (hello.node_id == context_.store.node_id()) {
    return refuse(WireError::self,
                  fmt::format("node {} connected to itself: its primary URL points to its own address, or its data "
                              "directory is a copy of the primary's",
                              to_hex(hello.node_id.value())));
  }
  name_ = fmt::format("{} ({})", hello.hostname, address_);
  {
    MutexLock lock(status_mutex_);
    greeted_ = true;
    status_.node_id = hello.node_id;
    status_.hostname = hello.hostname;
    status_.address = address_;
    status_.connected_ms = context_.clock.wall_ms();
  }
  phase_ = Phase::positions;
  welcome.path.push_back(context_.store.node_id());
  welcome.version = std::min(hello.max_version, kMaxVersion);
  welcome.node_id = context_.store.node_id();
  welcome.hostname = context_.options.hostname;
  welcome.window_bytes = context_.options.window_bytes;
  sender_->set_version(welcome.version);
  connection_->send(welcome);
}

void ReplicaSession::handle_positions(Positions& positions) {
  const Epoch own = epoch();
  for (auto& entry : positions.databases) {
    if (entry.epoch > own) {
      return refuse(WireError::stale_epoch,
                    fmt::format("replica {} has seen epoch {} of {}, this primary's is {}: another node became "
                                "primary after this one",
                                name_, entry.epoch, entry.name, own));
    }
    if (announced_.size() >= kMaxDatabases) {
      return refuse(WireError::too_large, fmt::format("more than {} databases", kMaxDatabases));
    }
    std::string name = entry.name;
    if (!announced_.emplace(std::move(name), std::move(entry)).second) {
      return refuse(WireError::protocol, "a database was announced twice");
    }
  }
  if (!positions.last) return;
  phase_ = Phase::waiting;
  begin_if_caught_up();
}

Epoch ReplicaSession::epoch() const {
  return context_.options.upstream ? context_.options.upstream().epoch : context_.options.epoch;
}

Result<void> ReplicaSession::check_circle(const Upstream& upstream, NodeId replica) const {
  if (!leads_through(upstream.path, replica)) return {};
  return make_error(Errc::invalid_argument,
                    fmt::format("node {} gets its data from the very node {} that asks for them here: the primary URLs lead in "
                                "a circle; one of these nodes must be the primary, or point to it",
                                context_.options.hostname, to_hex(replica.value())));
}

// A replica that serves replicas has nothing to say before it knows where the primary is.
void ReplicaSession::begin_if_caught_up() {
  if (context_.options.upstream && !context_.options.upstream().lag_ms) return;
  begin_streams();
}

void ReplicaSession::begin_streams() {
  phase_ = Phase::streaming;
  std::size_t known = 0;
  const auto databases = owner_.all_databases();
  for (const auto& tracked : databases) {
    Pos pos;
    bool busy = false;
    if (const auto it = announced_.find(tracked->database->name()); it != announced_.end()) {
      ++known;
      pos = it->second.pos;
      busy = it->second.busy;
      MutexLock lock(status_mutex_);
      databases_[it->first] = {it->first, Txid(0), pos.txid};
      announced_.erase(it);
    }
    sender_->add(tracked, pos, busy);
  }
  LOG_INFO("replica {} connected; it has {} of {} databases", name_, known, databases.size());
  for (const auto& [name, entry] : announced_) connection_->send(DatabaseUnknown{name});
  announced_.clear();
  sender_->all_added();
}

void ReplicaSession::begin_drain() {
  draining_ = true;
  if (phase_ == Phase::streaming) sender_->begin_drain();
}

bool ReplicaSession::drained() { return phase_ != Phase::streaming || (draining_ && sender_->drained()); }

void ReplicaSession::handle_ack(const Ack& ack) {
  const auto accepted = sender_->acknowledge(ack);
  if (accepted.has_error()) return refuse(WireError::protocol, accepted.error().message);
  if (draining_) owner_.session_progressed();
  const std::string* const name = sender_->name_of(ack.id);
  if (name == nullptr) return;
  MutexLock lock(status_mutex_);
  ReplicaDatabaseStatus& database = databases_[*name];
  if (database.name.empty()) database.name = *name;
  database.durable = ack.durable;
  database.applied = ack.applied;
}

// False: refused.
bool ReplicaSession::send_heartbeat() {
  if (phase_ != Phase::streaming && phase_ != Phase::waiting) return true;
  Heartbeat heartbeat;
  heartbeat.wall_ms = context_.clock.wall_ms();
  heartbeat.behind_ms = sender_->behind_ms();
  if (context_.options.upstream) {
    Upstream upstream = context_.options.upstream();
    NodeId replica;
    {
      MutexLock lock(status_mutex_);
      replica = status_.node_id;
    }
    // Those above may have changed since it connected.
    if (const auto circle = check_circle(upstream, replica); circle.has_error()) {
      refuse(WireError::self, circle.error().message);
      return false;
    }
    heartbeat.behind_ms += static_cast<std::uint64_t>(std::max<std::int64_t>(upstream.lag_ms.value_or(0), 0));
    heartbeat.primary_hostname = std::move(upstream.primary_hostname);
    heartbeat.path = std::move(upstream.path);
  }
  heartbeat.path.push_back(context_.store.node_id());
  connection_->send(heartbeat);
  if (phase_ == Phase::waiting) begin_if_caught_up();
  return true;
}

// Also the watch over the peer: whoever says nothing for peer_timeout_ms is gone, whatever TCP thinks.
void ReplicaSession::heartbeat() {
  const auto timeout = std::chrono::milliseconds(context_.options.peer_timeout_ms);
  const bool silent = context_.clock.now() - connection_->last_heard() > timeout;
  const bool greeting = phase_ == Phase::hello || phase_ == Phase::positions;
  const bool never_greeted = greeting && context_.clock.now() - started_ > 2 * timeout;
  if (silent || never_greeted) {
    return on_closed(make_error(Errc::deadline, fmt::format("nothing was heard for {} ms",
                                                            context_.options.peer_timeout_ms)));
  }
  if (connection_->write_stalled() > std::chrono::milliseconds(context_.options.stall_timeout_ms)) {
    return on_closed(make_error(Errc::deadline, fmt::format("it has read nothing for {} ms",
                                                            context_.options.stall_timeout_ms)));
  }
  if (!send_heartbeat()) return;
  heartbeat_timer_.start(std::chrono::milliseconds(context_.options.heartbeat_ms), [this] { heartbeat(); });
  const auto resyncing = sender_->resyncing();
  MutexLock lock(status_mutex_);
  for (auto& [name, database] : databases_) database.resync = {};
  for (const auto& [name, progress] : resyncing) {
    databases_[name].name = name;
    databases_[name].resync = progress;
  }
  status_.bytes_sent = connection_->bytes_sent();
}

void ReplicaSession::on_broken(const Error& error) {
  refuse(error.code == Errc::too_large ? WireError::too_large : WireError::protocol, error.message);
}

void ReplicaSession::on_closed(const Error& error) {
  if (phase_ == Phase::closed) return;
  LOG_WARN("replica {}: {}", name_, error.message);
  end();
}

void ReplicaSession::refuse(WireError code, const std::string& text) {
  if (phase_ == Phase::closed) return;
  LOG_WARN("replica {} refused: {}", name_, text);
  connection_->close_after(ErrorFrame{code, text.substr(0, kMaxText)});
  phase_ = Phase::closed;
  heartbeat_timer_.cancel();
  sender_->cancel();
  owner_.session_ended(*this);
}

void ReplicaSession::end() {
  if (phase_ == Phase::closed) return;
  phase_ = Phase::closed;
  heartbeat_timer_.cancel();
  sender_->cancel();
  connection_->close();
  owner_.session_ended(*this);
}

void ReplicaSession::close(const std::string& reason) {
  if (phase_ == Phase::closed) return;
  if (!drained()) LOG_WARN("replica {} has not confirmed everything; it goes on when this primary is back", name_);
  phase_ = Phase::closed;
  heartbeat_timer_.cancel();
  sender_->cancel();
  connection_->send(Goodbye{reason});
  connection_->close();
}

std::optional<ReplicaStatus> ReplicaSession::status() const {
  MutexLock lock(status_mutex_);
  if (!greeted_) return std::nullopt;
  ReplicaStatus status = status_;
  status.databases.reserve(databases_.size());
  for (const auto& [name, database] : databases_) status.databases.push_back(database);
  return status;
}

}  // namespace sluice::replication
