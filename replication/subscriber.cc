#include "replication/subscriber.h"

#include <algorithm>
#include <random>
#include <utility>

#include "base/log.h"
#include "replication/dialer.h"
#include "replication/upstream_session.h"

namespace sluice::replication {
namespace {

constexpr auto kStableAfter = std::chrono::seconds(2);  // a connection that lived that long resets the backoff

std::int64_t to_ms(Duration duration) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(duration).count();
}

SubscriberOptions checked(SubscriberOptions options) {
  options.heartbeat_ms = std::max(options.heartbeat_ms, 1);
  options.peer_timeout_ms = std::max(options.peer_timeout_ms, 2 * options.heartbeat_ms);
  options.stall_timeout_ms = std::max(options.stall_timeout_ms, options.peer_timeout_ms);
  options.backoff_min_ms = std::max(options.backoff_min_ms, 1);
  options.backoff_max_ms = std::max(options.backoff_max_ms, options.backoff_min_ms);
  return options;
}

class SubscriberImpl final : public Subscriber, public UpstreamSession::Owner {
 public:
  SubscriberImpl(storage::Replica& replica, Clock& clock, ThreadPool& pool, SubscriberOptions options)
      : options_(checked(std::move(options))),
        clock_(clock),
        loop_("subscriber"),
        context_{replica, pool, clock, gate_,
                 [this](std::shared_ptr<DatabaseFeed> feed) { on_news(std::move(feed)); }},
        reconnect_timer_(loop_) {
    {
      MutexLock lock(mutex_);
      for (const auto& database : replica.list()) {
        feeds_[database->name()] = std::make_shared<DatabaseFeed>(context_, database->name(), database);
      }
    }
    loop_.post([this] { connect(); });
  }

  ~SubscriberImpl() override { stop(); }

  SubscriberStatus status() const override EXCLUDES(mutex_);
  Upstream upstream() const override EXCLUDES(mutex_);
  void request_resync(const std::string& name, const std::string& reason) override;
  void stop() override EXCLUDES(mutex_);

 private:
  void connect();
  void connected(Dialer::Upgraded upgraded);
  void failed(const Error& error) EXCLUDES(mutex_);
  void on_news(std::shared_ptr<DatabaseFeed> feed);
  Duration lag(MonotonicTime now) const REQUIRES(mutex_);
  void note_chain(std::string_view primary_hostname, const NodePath& path) REQUIRES(mutex_);

  const Feeds& feeds() const override NO_THREAD_SAFETY_ANALYSIS { return feeds_; }  // loop thread, the only writer
  std::shared_ptr<DatabaseFeed> feed(const std::string& name) override EXCLUDES(mutex_);
  void session_welcomed(const Welcome& welcome) override EXCLUDES(mutex_);
  void session_synced() override EXCLUDES(mutex_);
  void session_heartbeat(const Heartbeat& heartbeat) override EXCLUDES(mutex_);
  void session_resync() override EXCLUDES(mutex_);
  std::optional<std::string> wanted_resync(const std::string& name) override;
  void session_ended(const Error& error) override;

  const SubscriberOptions options_;
  Clock& clock_;
  EventLoop loop_;
  TaskGate gate_;
  FeedContext context_;

  // Loop thread.
  Timer reconnect_timer_;
  std::shared_ptr<Dialer> dialer_;
  std::unique_ptr<UpstreamSession> session_;
  MonotonicTime connected_at_;
  int attempts_ = 0;
  std::map<std::string, std::string> wanted_;  // databases to resynchronise, with the reason
  std::string logged_error_;
  std::minstd_rand random_{std::random_device{}()};

  mutable Mutex mutex_;
  Feeds feeds_ GUARDED_BY(mutex_);  // changed on the loop thread only
  bool stopped_ GUARDED_BY(mutex_) = false;
  SubscriberStatus status_ GUARDED_BY(mutex_);
  bool ever_synced_ GUARDED_BY(mutex_) = false;
  Duration primary_behind_ GUARDED_BY(mutex_){};     // what it said it has not sent yet
  MonotonicTime known_synced_ GUARDED_BY(mutex_);    // content is at least as new as the primary's was then
};

void SubscriberImpl::connect() {
  auto endpoint = parse_primary_url(options_.primary_url);
  if (endpoint.has_error()) return failed(endpoint.error());
  dialer_ = std::make_shared<Dialer>(loop_, *endpoint, options_.token);
  dialer_->start(std::chrono::milliseconds(options_.connect_timeout_ms), [this](Result<Dialer::Upgraded> result) {
    dialer_ = nullptr;
    if (result.has_error()) return failed(result.error());
    connected(std::move(*result));
  });
}

void SubscriberImpl::connected(Dialer::Upgraded upgraded) {
  connected_at_ = clock_.now();
  session_ = std::make_unique<UpstreamSession>(loop_, clock_, *this, options_);
  session_->start(std::move(upgraded.socket), std::move(upgraded.early));
}

// Logged once for each cause, however often it is tried.
void SubscriberImpl::failed(const Error& error) {
  if (error.message != logged_error_) {
    LOG_WARN("stream from {}: {}; trying again", options_.primary_url, error.message);
    logged_error_ = error.message;
  }
  {
    MutexLock lock(mutex_);
    status_.connected = status_.synced = false;
    status_.last_error = error.message;
  }
  const int doublings = std::min(attempts_++, 20);
  const std::int64_t most =
      std::min<std::int64_t>(options_.backoff_max_ms, std::int64_t{options_.backoff_min_ms} << doublings);
  std::uniform_int_distribution<std::int64_t> jitter(std::max<std::int64_t>(most / 2, 1), most);
  reconnect_timer_.start(std::chrono::milliseconds(jitter(random_)), [this] { connect(); });
}

std::shared_ptr<DatabaseFeed> SubscriberImpl::feed(const std::string& name) {
  MutexLock lock(mutex_);
  auto& feed = feeds_[name];
  if (!feed) feed = std::make_shared<DatabaseFeed>(context_, name, nullptr);
  return feed;
}

void SubscriberImpl::on_news(std::shared_ptr<DatabaseFeed> feed) {
  loop_.post([this, feed = std::move(feed)] {
    if (session_) {
      session_->news(*feed);
    } else {
      feed->status();  // heard, and of no use now
    }
  });
}

void SubscriberImpl::session_welcomed(const Welcome& welcome) {
  if (welcome.path.size() <= 1) {
    LOG_INFO("connected to the primary {} ({})", welcome.hostname, options_.primary_url);
  } else {
    LOG_INFO("connected to the replica {} ({}) of the primary {}", welcome.hostname, options_.primary_url, welcome.primary_hostname);
  }
  logged_error_.clear();
  MutexLock lock(mutex_);
  status_.connected = true;
  status_.upstream_hostname = welcome.hostname;
  status_.epoch = welcome.epoch;
  note_chain(welcome.primary_hostname, welcome.path);
  status_.last_error.clear();
  primary_behind_ = {};
}

void SubscriberImpl::note_chain(std::string_view primary_hostname, const NodePath& path) {
  // Nodes of an older version say nothing of this, and are primaries.
  status_.primary_hostname = path.size() <= 1 ? status_.upstream_hostname : std::string(primary_hostname);
  status_.path = path;
}

Upstream SubscriberImpl::upstream() const {
  MutexLock lock(mutex_);
  Upstream upstream{status_.primary_hostname, status_.epoch, status_.path, std::nullopt};
  if (!status_.connected) upstream.path.clear();
  if (!ever_synced_) return upstream;
  const MonotonicTime now = clock_.now();
  upstream.lag_ms = to_ms(status_.synced ? lag(now) : now - known_synced_);
  return upstream;
}

void SubscriberImpl::session_synced() {
  LOG_INFO("caught up with the primary");
  MutexLock lock(mutex_);
  status_.synced = true;
  ever_synced_ = true;
  known_synced_ = clock_.now();
}

void SubscriberImpl::session_heartbeat(const Heartbeat& heartbeat) {
  MutexLock lock(mutex_);
  // A number from the network: bounded before it is calculated with.
  primary_behind_ = std::chrono::milliseconds(std::min<std::uint64_t>(heartbeat.behind_ms, std::uint64_t{1} << 40));
  note_chain(heartbeat.primary_hostname, heartbeat.path);
  status_.bytes_received += session_->take_bytes_received();
  if (status_.synced) known_synced_ = clock_.now() - lag(clock_.now());
}

void SubscriberImpl::session_resync() {
  MutexLock lock(mutex_);
  ++status_.resyncs;
}

void SubscriberImpl::request_resync(const std::string& name, const std::string& reason) {
  loop_.post([this, name, reason] {
    wanted_[name] = reason;
    if (session_) session_->resync_if_wanted(name);
  });
}

std::optional<std::string> SubscriberImpl::wanted_resync(const std::string& name) {
  const auto it = wanted_.find(name);
  if (it == wanted_.end()) return std::nullopt;
  std::string reason = std::move(it->second);
  wanted_.erase(it);
  return reason;
}

// Runs inside a call of the session, so it goes away later.
void SubscriberImpl::session_ended(const Error& error) {
  {
    MutexLock lock(mutex_);
    status_.bytes_received += session_->take_bytes_received();
  }
  if (clock_.now() - connected_at_ > kStableAfter) attempts_ = 0;
  loop_.post([gone = std::shared_ptr<UpstreamSession>(std::move(session_))]() mutable { gone.reset(); });
  failed(error);
}

// While connected: what the primary has not sent, or what came and is not applied, whichever is older.
Duration SubscriberImpl::lag(MonotonicTime now) const {
  Duration lag = primary_behind_;
  for (const auto& [name, feed] : feeds_)
    if (const auto since = feed->pending_since()) lag = std::max(lag, now - *since);
  return lag;
}

SubscriberStatus SubscriberImpl::status() const {
  MutexLock lock(mutex_);
  SubscriberStatus status = status_;
  for (const auto& [name, feed] : feeds_) {
    const ResyncProgress progress = feed->progress();
    if (progress.phase != ResyncProgress::Phase::none) status.resyncing[name] = progress;
  }
  if (!ever_synced_) return status;
  const MonotonicTime now = clock_.now();
  status.lag_ms = to_ms(status.synced ? lag(now) : now - known_synced_);
  return status;
}

void SubscriberImpl::stop() {
  {
    MutexLock lock(mutex_);
    if (stopped_) return;
    stopped_ = true;
    status_.connected = status_.synced = false;
    status_.last_error = "stopped";
  }
  loop_.run([this] {
    reconnect_timer_.cancel();
    if (dialer_) dialer_->cancel();
    dialer_ = nullptr;
    if (session_) session_->close("the replica is shutting down");
    // What was begun is aborted before the gate closes; what is queued is dropped.
    session_ = nullptr;
  });
  gate_.close();
  gate_.wait();
  loop_.stop();
}

}  // namespace

std::unique_ptr<Subscriber> Subscriber::create(storage::Replica& replica, Clock& clock, ThreadPool& pool,
                                               SubscriberOptions options) {
  return std::make_unique<SubscriberImpl>(replica, clock, pool, std::move(options));
}

}  // namespace sluice::replication
