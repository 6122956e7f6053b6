#include "replication/publisher.h"

#include <algorithm>
#include <atomic>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "base/log.h"
#include "replication/replica_session.h"

namespace sluice::replication {
namespace {

constexpr std::size_t kMaxReplicas = 256;
constexpr std::size_t kSnapshotThreads = 2;
constexpr std::uint64_t kTailBudget = 64 * 1024;  // read in the committing thread, from the page cache
constexpr std::uint64_t kMinWindow = 256 * 1024;
constexpr std::size_t kMaxPostedTails = 256;  // when the loop does not come after, replicas read for themselves

PublisherOptions checked(PublisherOptions options) {
  options.window_bytes = std::clamp(options.window_bytes, kMinWindow, kMaxWindow);
  options.chunk_bytes = std::clamp<std::uint32_t>(options.chunk_bytes, 16 * 1024, kMaxPayload);
  options.heartbeat_ms = std::max(options.heartbeat_ms, 1);
  options.peer_timeout_ms = std::max(options.peer_timeout_ms, 2 * options.heartbeat_ms);
  options.stall_timeout_ms = std::max(options.stall_timeout_ms, options.peer_timeout_ms);
  return options;
}

// Where the shared reading of a database's newest change sets stands.
struct Tail {
  Mutex mutex;
  std::optional<Pos> sent GUARDED_BY(mutex);  // nullopt: not known, the replicas' own streams go on
};

struct Entry {
  std::shared_ptr<Tracked> tracked;
  std::shared_ptr<Tail> tail;
};

class PublisherImpl final : public Publisher, public ReplicaSession::Owner {
 public:
  PublisherImpl(storage::Store& store, Clock& clock, ThreadPool& pool, PublisherOptions options)
      : options_(checked(std::move(options))),
        loop_("publisher"),
        snapshots_("snapshot", kSnapshotThreads),
        context_{loop_, pool, snapshots_, clock, store, options_, gate_} {}

  ~PublisherImpl() override { stop(); }

  void accept(UniqueFd socket, Bytes early, std::string peer) override;
  std::vector<ReplicaStatus> replicas() const override EXCLUDES(mutex_);
  void database_added(const std::string& name) override EXCLUDES(mutex_);
  void stop() override EXCLUDES(mutex_);
  void on_appended(storage::Database&) override {}  // I2: not before it is durable
  void on_durable(storage::Database& database) override EXCLUDES(mutex_);
  void on_removed(const std::string& name) override EXCLUDES(mutex_);

 private:
  using Sessions = std::vector<std::shared_ptr<ReplicaSession>>;

  std::vector<std::shared_ptr<Tracked>> all_databases() override EXCLUDES(mutex_);
  void session_ended(ReplicaSession& session) override;
  void session_progressed() override { check_drained(); }
  void drain() EXCLUDES(mutex_);
  void check_drained() EXCLUDES(mutex_);
  bool send_tail(const Entry& entry) EXCLUDES(mutex_);
  void wake_later(const std::string& name) EXCLUDES(mutex_);
  void wake_all() EXCLUDES(mutex_);
  std::shared_ptr<Tracked> track(const std::shared_ptr<storage::Database>& database) REQUIRES(mutex_);

  const PublisherOptions options_;
  EventLoop loop_;
  ThreadPool snapshots_;
  TaskGate gate_;
  PublisherContext context_;
  std::atomic<std::size_t> connections_{0};
  std::atomic<std::size_t> posted_tails_{0};

  mutable Mutex mutex_;
  std::unordered_map<std::string, Entry> databases_ GUARDED_BY(mutex_);
  std::uint32_t last_number_ GUARDED_BY(mutex_) = 0;
  std::unordered_set<std::string> woken_ GUARDED_BY(mutex_);
  bool draining_ GUARDED_BY(mutex_) = false;
  bool drained_ GUARDED_BY(mutex_) = false;
  CondVar drained_changed_;
  bool stopped_ GUARDED_BY(mutex_) = false;
  Sessions sessions_ GUARDED_BY(mutex_);  // changed on the loop thread only
};

void PublisherImpl::accept(UniqueFd socket, Bytes early, std::string peer) {
  {
    MutexLock lock(mutex_);
    if (draining_) return;
  }
  // Counted from here on, so that nothing that becomes durable later is missed.
  ++connections_;
  auto fd = std::make_shared<UniqueFd>(std::move(socket));
  loop_.post([this, fd, early = std::move(early), peer = std::move(peer)]() mutable {
    auto session = std::make_shared<ReplicaSession>(context_, *this, peer);
    {
      MutexLock lock(mutex_);
      if (draining_ || sessions_.size() >= kMaxReplicas) {
        if (!draining_) LOG_WARN("replica {} turned away: {} are connected", peer, sessions_.size());
        --connections_;
        return;
      }
      sessions_.push_back(session);
    }
    session->start(std::move(*fd), std::move(early));
  });
}

// Runs inside a call of the session, so it goes away later.
void PublisherImpl::session_ended(ReplicaSession& session) {
  loop_.post([this, gone = session.shared_from_this()] {
    {
      MutexLock lock(mutex_);
      connections_ -= std::erase(sessions_, gone);
    }
    check_drained();
  });
}

std::shared_ptr<Tracked> PublisherImpl::track(const std::shared_ptr<storage::Database>& database) {
  Entry& entry = databases_[database->name()];
  if (!entry.tracked || entry.tracked->database != database) {
    entry.tracked = std::make_shared<Tracked>(Tracked{++last_number_, database});
    entry.tail = std::make_shared<Tail>();
  }
  return entry.tracked;
}

std::vector<std::shared_ptr<Tracked>> PublisherImpl::all_databases() {
  const auto databases = context_.store.list();
  std::vector<std::shared_ptr<Tracked>> all;
  all.reserve(databases.size());
  MutexLock lock(mutex_);
  for (const auto& database : databases) all.push_back(track(database));
  return all;
}

// Called with whatever lock the caller holds (the commit lock, in a rebase), so nothing here waits for one.
void PublisherImpl::on_durable(storage::Database& database) {
  if (connections_ == 0) return;
  Entry entry;
  {
    MutexLock lock(mutex_);
    if (stopped_) return;
    const auto it = databases_.find(database.name());
    if (it != databases_.end() && it->second.tracked->database.get() == &database) entry = it->second;
  }
  if (entry.tracked && send_tail(entry)) return;
  wake_later(database.name());
}

// The short way for small change sets: read here, once for all replicas, and one hop to the sockets. False: the
// replicas' streams have to read for themselves.
bool PublisherImpl::send_tail(const Entry& entry) {
  Tail& tail = *entry.tail;
  if (!tail.mutex.try_lock()) return false;
  const storage::Database& database = *entry.tracked->database;
  bool sent = false;
  if (tail.sent && posted_tails_ < kMaxPostedTails) {
    const Pos from = *tail.sent;
    Cursor cursor;
    cursor.sent = from;
    auto piece = read_log(database, entry.tracked->id, std::move(cursor), kTailBudget);
    if (piece.has_value() && !piece->needs_snapshot && !piece->more && !piece->cursor.current) {
      tail.sent = piece->cursor.sent;
      if (!piece->frames.empty()) {
        TailBatch batch{entry.tracked, from, piece->cursor,
                        std::make_shared<const Bytes>(std::move(piece->frames)), piece->cost};
        ++posted_tails_;
        loop_.post([this, batch = std::move(batch)] {
          --posted_tails_;
          Sessions sessions;
          {
            MutexLock lock(mutex_);
            sessions = sessions_;
          }
          for (const auto& session : sessions) session->offer(batch);
        });
      }
      sent = true;
    }
  }
  if (!sent) tail.sent = database.log().position_at(database.log().durable());
  tail.mutex.unlock();
  return sent;
}

void PublisherImpl::wake_later(const std::string& name) {
  bool first = false;
  {
    MutexLock lock(mutex_);
    first = woken_.empty();
    woken_.insert(name);
  }
  if (first) loop_.post([this] { wake_all(); });
}

void PublisherImpl::wake_all() {
  std::unordered_set<std::string> names;
  Sessions sessions;
  {
    MutexLock lock(mutex_);
    names.swap(woken_);
    sessions = sessions_;
  }
  for (const std::string& name : names) {
    const auto database = context_.store.find(name);
    if (!database) continue;
    std::shared_ptr<Tracked> tracked;
    {
      MutexLock lock(mutex_);
      tracked = track(database);
    }
    for (const auto& session : sessions) session->wake(tracked);
  }
}

void PublisherImpl::database_added(const std::string& name) {
  {
    MutexLock lock(mutex_);
    if (stopped_) return;
    // Rebased, perhaps: the shared tail must not go on from the old position.
    const auto it = databases_.find(name);
    if (it != databases_.end()) it->second.tail = std::make_shared<Tail>();
  }
  wake_later(name);
}

// Only on a replica, whose primary does not have it: those below are told.
void PublisherImpl::on_removed(const std::string& name) {
  {
    MutexLock lock(mutex_);
    if (stopped_) return;
    databases_.erase(name);
  }
  loop_.post([this, name] {
    Sessions sessions;
    {
      MutexLock lock(mutex_);
      sessions = sessions_;
    }
    for (const auto& session : sessions) session->database_removed(name);
  });
}

std::vector<ReplicaStatus> PublisherImpl::replicas() const {
  Sessions sessions;
  {
    MutexLock lock(mutex_);
    sessions = sessions_;
  }
  std::vector<ReplicaStatus> all;
  for (const auto& session : sessions)
    if (auto status = session->status()) all.push_back(std::move(*status));
  return all;
}

// Replicas that are connected get what was committed last: a clean stop leaves nothing behind that only this node has.
void PublisherImpl::drain() {
  loop_.post([this] {
    Sessions sessions;
    {
      MutexLock lock(mutex_);
      sessions = sessions_;
    }
    for (const auto& session : sessions) session->begin_drain();
    check_drained();
  });
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(options_.stop_wait_ms);
  MutexLock lock(mutex_);
  while (!drained_ && drained_changed_.wait_until(mutex_, deadline)) {
  }
}

void PublisherImpl::check_drained() {
  Sessions sessions;
  {
    MutexLock lock(mutex_);
    if (!draining_ || drained_) return;
    sessions = sessions_;
  }
  if (!std::all_of(sessions.begin(), sessions.end(), [](const auto& session) { return session->drained(); })) return;
  MutexLock lock(mutex_);
  drained_ = true;
  drained_changed_.notify_all();
}

void PublisherImpl::stop() {
  {
    MutexLock lock(mutex_);
    if (draining_) return;
    draining_ = true;
  }
  drain();
  {
    MutexLock lock(mutex_);
    stopped_ = true;
  }
  gate_.close();
  loop_.run([this] {
    Sessions sessions;
    {
      MutexLock lock(mutex_);
      sessions.swap(sessions_);
    }
    for (const auto& session : sessions) session->close("the primary is shutting down");
  });
  connections_ = 0;
  // Snapshots were cancelled above; reads are short.
  gate_.wait();
  snapshots_.stop();
  loop_.stop();
}

}  // namespace

std::unique_ptr<Publisher> Publisher::create(storage::Store& store, Clock& clock, ThreadPool& pool,
                                             PublisherOptions options) {
  return std::make_unique<PublisherImpl>(store, clock, pool, std::move(options));
}

}  // namespace sluice::replication
