#include "server/node.h"

#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <limits>
#include <thread>

#include "base/log.h"
#include "cluster/lease.h"
#include "fuse/capture/capture.h"
#include "fuse/capture/counters.h"
#include "fuse/mount.h"
#include "fuse/orphans/orphan_fence.h"
#include "fuse/write_guard.h"
#include "server/api.h"
#include "server/connection_watch.h"
#include "server/database_files.h"
#include "server/guardian_child.h"
#include "server/index_process.h"
#include "server/role_change.h"
#include "server/scrub.h"
#include "server/virtual_files.h"
#include "storage/replica.h"

namespace sluice::server {
namespace {

using storage::Role;
constexpr std::size_t kPoolThreads = 8;
constexpr std::uint64_t kSmallestSegment = 64 * 1024;
constexpr auto kRepairDeadline = std::chrono::minutes(10);
constexpr auto kRepairPoll = std::chrono::milliseconds(20);
constexpr auto kLeaseDeadline = std::chrono::seconds(10);

std::string machine_hostname() {
  std::array<char, 256> name{};
  if (::gethostname(name.data(), name.size() - 1) != 0) return "localhost";
  return name.data();
}

storage::RetentionPolicy retention(const Config& config) {
  storage::RetentionPolicy policy;
  policy.max_age_ms =
      config.retention_ms > 0 ? config.retention_ms : std::numeric_limits<std::int64_t>::max();
  policy.max_bytes =
      config.retention_bytes > 0 ? config.retention_bytes : std::numeric_limits<std::uint64_t>::max();
  return policy;
}

fuse::IoPath io_path(IoChoice choice) {
  switch (choice) {
    case IoChoice::native: return fuse::IoPath::native;
    case IoChoice::plain: return fuse::IoPath::plain;
    case IoChoice::automatic: break;
  }
  return fuse::IoPath::automatic;
}

std::map<std::string, std::uint64_t> capture_numbers(const fuse::CaptureCounters& c) {
  return {{"change_sets", c.change_sets},         {"frames", c.frames},
          {"gate_captures", c.gate_captures},     {"chain_captures", c.chain_captures},
          {"generations", c.generations},         {"generations_back", c.generations_back},
          {"torn_headers", c.torn_headers},       {"zero_salt_frames", c.zero_salt_frames},
          {"guarded_writes", c.guarded_writes},   {"anomalies", c.anomalies},
          {"reconciliations", c.reconciliations}, {"unjournaled", c.unjournaled}};
}

// The store's observer: the publisher, and the X-pos files that the kernel may have cached.
class StoreObserver final : public storage::DatabaseObserver {
 public:
  void set_publisher(replication::Publisher* publisher) { publisher_ = publisher; }
  void on_appended(storage::Database& database) override {
    if (auto* publisher = publisher_.load()) publisher->on_appended(database);
  }
  void on_durable(storage::Database& database) override {
    if (auto* publisher = publisher_.load()) publisher->on_durable(database);
  }
  void on_removed(const std::string& name) override {
    if (auto* publisher = publisher_.load()) publisher->on_removed(name);
  }

 private:
  std::atomic<replication::Publisher*> publisher_{nullptr};
};

// Retention, checkpoints of the page checksums, orphans that have ended: at intervals.
class Maintenance {
 public:
  void start(storage::Store& store, fuse::OrphanFence& fence, storage::RetentionPolicy policy, std::int64_t interval_ms,
             storage::Database::Checkpoint checkpoint) {
    if (interval_ms <= 0) return;
    thread_ = std::thread([this, &store, &fence, policy, interval_ms, checkpoint] {
      while (!wait(interval_ms)) {
        run(store, policy, checkpoint);
        fence.sweep();
      }
    });
  }
  void stop() EXCLUDES(mutex_) {
    {
      MutexLock lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_all();
    if (thread_.joinable()) thread_.join();
  }
  static void run(storage::Store& store, const storage::RetentionPolicy& policy,
                  storage::Database::Checkpoint checkpoint) {
    for (const auto& database : store.list()) {
      const auto done = database->maintain(policy, checkpoint);
      if (done.has_error())
        LOG_ERROR("{}: maintenance failed: {}", database->name(), done.error().to_string());
    }
  }

 private:
  // True: stopping.
  bool wait(std::int64_t interval_ms) EXCLUDES(mutex_) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(interval_ms);
    MutexLock lock(mutex_);
    while (!stopping_ && wake_.wait_until(mutex_, deadline)) {
    }
    return stopping_;
  }
  Mutex mutex_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::thread thread_;
};

class NodeImpl final : public Node {
 public:
  NodeImpl(Config config, std::string token, DescriptorStore* descriptors)
      : config_(std::move(config)),
        token_(std::move(token)),
        descriptors_(descriptors),
        takes_over_(fuse::Mount::takes_over(descriptors)) {}
  ~NodeImpl() override {
    const auto stopped = stop();
    if (stopped.has_error()) LOG_ERROR("stopping the node: {}", stopped.error().to_string());
  }

  Result<void> start();
  NodeStatus status() const override;
  NodeStatus summary() const override;
  std::uint16_t http_port() const override { return http_->port(); }
  int ended_fd() const override { return ended_.get(); }
  void beat() override { mount_->beat(); }
  void watch_connection(int guardian) override;
  Result<void> stop() override;

 private:
  Result<void> fence_orphans();
  Result<void> take_role();
  Result<void> start_primary();
  Result<void> start_replica();
  Result<void> mount(fuse::Observer& observer, std::function<Result<void>(storage::MountAccess&)> before_serving);
  void serve_http();
  std::string primary_host() const;
  std::optional<Pos> position(const std::string& name) const;
  Result<void> ask_for_pages(const std::string& name, const std::vector<Pgno>& pages);
  Result<void> repair(const std::string& name, const std::vector<Pgno>& pages, const std::function<bool()>& cancelled);
  void scrub_found(const std::string& name, const VerifyReport& report);

  const Config config_;
  const std::string token_;
  DescriptorStore* const descriptors_;
  const bool takes_over_;
  const MonotonicTime started_ = system_clock().now();
  std::string hostname_;
  Role role_ = Role::primary;
  UniqueFd ended_;

  // In the order of their making; stop() goes the other way.
  ThreadPool pool_{"disk", kPoolThreads};
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<fuse::OrphanFence> fence_;
  std::unique_ptr<HttpServer> http_;
  std::unique_ptr<cluster::Leaser> leaser_;
  std::unique_ptr<cluster::Lease> lease_;  // primary
  Epoch epoch_;
  StoreObserver observer_;
  std::unique_ptr<NodeFiles> files_;
  std::unique_ptr<replication::Publisher> publisher_;
  std::unique_ptr<fuse::Capture> capture_;
  std::unique_ptr<fuse::WriteGuard> guard_;
  std::unique_ptr<fuse::Mount> mount_;
  std::unique_ptr<storage::Replica> replica_;
  std::unique_ptr<replication::Subscriber> subscriber_;
  std::unique_ptr<Api> api_;
  Maintenance maintenance_;
  Scrubber scrubber_;
  // The same objects for the virtual files, which the mount may ask for before these exist.
  std::atomic<storage::Replica*> live_replica_{nullptr};
  std::atomic<replication::Subscriber*> live_subscriber_{nullptr};
  bool watched_ = false;
  bool stopped_ = false;
  std::atomic<bool> stopping_{false};
};

Result<void> NodeImpl::start() {
  hostname_ = config_.hostname.empty() ? machine_hostname() : config_.hostname;
  ended_ = UniqueFd(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!ended_) return errno_error("eventfd", errno);
  storage::StoreOptions store_options;
  store_options.data_dir = config_.data_dir;
  store_options.retention = retention(config_);
  store_options.database.helpers = &pool_;
  const std::uint64_t segment = std::max(config_.log_segment_bytes, kSmallestSegment);
  store_options.database.log.segment_size = segment;
  // Retention keeps what the page checksums still need.
  store_options.database.checkpoint_bytes = std::min(store_options.database.checkpoint_bytes, segment);
  TRY_ASSIGN(store_, storage::Store::open(real_file_system(), system_clock(), store_options));
  HttpServerOptions http_options;
  TRY_ASSIGN(http_options.listen, parse_host_port(config_.listen));
  http_options.upload_dir = store_->tmp_dir();
  TRY_ASSIGN(http_, HttpServer::bind(std::move(http_options)));
  TRY(fence_orphans());
  TRY(take_role());
  store_->set_observer(&observer_);
  NodeFiles::Sources sources;
  sources.store = store_.get();
  sources.primary_host = [this] { return role_ == Role::primary ? std::string() : primary_host(); };
  sources.lag_ms = [this]() -> std::optional<std::int64_t> {
    if (role_ == Role::primary) return 0;
    const auto* subscriber = live_subscriber_.load();
    return subscriber != nullptr ? subscriber->status().lag_ms : std::nullopt;
  };
  sources.position = [this](const std::string& name) { return position(name); };
  files_ = std::make_unique<NodeFiles>(std::move(sources));
  TRY(role_ == Role::primary ? start_primary() : start_replica());
  maintenance_.start(
      *store_, *fence_, store_options.retention, config_.retention_interval_ms,
      role_ == Role::primary ? storage::Database::Checkpoint::if_due : storage::Database::Checkpoint::none);
  serve_http();
  scrubber_.start(*store_, {config_.scrub_interval_ms, config_.scrub_rate},
                  [this](const std::string& name, const VerifyReport& report) { scrub_found(name, report); });
  LOG_INFO("{} {} serves {} from {}, API on port {}", role_ == Role::primary ? "primary" : "replica",
           hostname_, config_.mountpoint, config_.data_dir, http_->port());
  return {};
}

// I9. Before anything looks at a database file, and only when a fresh mount is made: a mount that is taken over has clients, not
// orphans. The dead mount goes first, it keeps files open by itself.
Result<void> NodeImpl::fence_orphans() {
  fence_ = std::make_unique<fuse::OrphanFence>(*store_);
  if (takes_over_) return fence_->resume();
  TRY(fuse::Mount::clear_mount_point(config_.mountpoint));
  return fence_->run();
}

Result<void> NodeImpl::take_role() {
  cluster::StaticLeaseOptions options;
  options.is_primary = !config_.is_replica();
  cluster::PrimaryInfo self;
  self.hostname = hostname_;
  self.url = config_.advertise_url;
  if (options.is_primary) {
    options.primary = self;
  } else {
    TRY_ASSIGN(const HostPort host, parse_http_url(config_.primary_url));
    options.primary.hostname = host.host;
    options.primary.url = config_.primary_url;
  }
  leaser_ = cluster::make_static_leaser(options);
  auto lease = leaser_->acquire(self, system_clock().now() + kLeaseDeadline);
  if (lease) {
    lease_ = std::move(*lease);
    epoch_ = lease_->epoch();
    role_ = Role::primary;
  } else if (lease.error().code == Errc::busy) {
    role_ = Role::replica;
  } else {
    return with_context("taking the lease", lease.error());
  }
  if (!takes_over_) return prepare_role(*store_, role_);
  // What is on disk is in use: it is taken up as it is, not put right.
  if (store_->last_role() == role_) return {};
  return make_error(Errc::invalid_argument, "the node cannot change its role while its mount is taken over; stop it first");
}

Result<void> NodeImpl::mount(fuse::Observer& observer,
                             std::function<Result<void>(storage::MountAccess&)> before_serving) {
  fuse::MountOptions options;
  options.mountpoint = config_.mountpoint;
  options.backing_dir = store_->fs_dir();
  options.allow_other = config_.allow_other;
  options.io = io_path(config_.io);
  options.descriptors = descriptors_;
  options.hidden_dir = store_->data_dir() + "/unlinked";
  options.before_serving = std::move(before_serving);
  TRY_ASSIGN(mount_, fuse::Mount::start(options, observer, *files_, pool_));
  if (!takes_over_) watch_connection(descriptors_ != nullptr ? ::getppid() : 0);
  mount_->on_session_end([fd = ended_.get()] {
    const std::uint64_t one = 1;
    if (::write(fd, &one, sizeof one) != static_cast<ssize_t>(sizeof one))
      LOG_ERROR("cannot tell that the mount ended");
  });
  return {};
}

void NodeImpl::watch_connection(int guardian) {
  if (std::exchange(watched_, true)) return;
  auto abort_file = mount_->open_abort_file();
  if (!abort_file.has_error() && descriptors_ != nullptr && guardian > 0) {
    const auto kept = descriptors_->keep(kAbortName, abort_file->get());
    if (kept.has_error()) LOG_WARN("{}", kept.error().message);
  }
  const Result<void> watched =
      abort_file.has_error() ? Result<void>(abort_file.error()) : start_connection_watch(std::move(*abort_file), guardian);
  if (watched.has_error()) LOG_WARN("nothing watches the connection should this node be killed: {}", watched.error().to_string());
}

// The order matters: what was committed while no daemon ran is captured before anybody can commit more, and
// nothing is served before the tail runs.
Result<void> NodeImpl::start_primary() {
  replication::PublisherOptions publisher_options;
  publisher_options.hostname = hostname_;
  publisher_options.epoch = epoch_;
  publisher_ = replication::Publisher::create(*store_, system_clock(), pool_, publisher_options);
  observer_.set_publisher(publisher_.get());
  fuse::CaptureOptions capture_options;
  capture_options.epoch = epoch_;
  capture_options.recover_client = [this](const std::string& database) {
    return open_in_child(config_.mountpoint + "/" + database, [this] { return stopping_.load(); });
  };
  capture_options.refused = fence_->refused();
  capture_options.clients_connected = takes_over_;
  capture_ = fuse::Capture::create(*store_, pool_, capture_options);
  TRY(capture_->recover());
  // Clients that are connected already may commit, and checkpoint, from the first moment.
  TRY(mount(*capture_, [this](storage::MountAccess& access) { return capture_->start(access); }));
  return takes_over_ ? Result<void>() : capture_->start(mount_->access());
}

Result<void> NodeImpl::start_replica() {
  fuse::WriteGuardOptions guard_options;
  guard_options.allow_write_opens = config_.replica_writes == ReplicaWrites::wait;
  guard_options.is_replicated = [this](std::string_view name) {
    const auto database = store_->find(std::string(name));
    return database != nullptr && !database->deleted();
  };
  guard_options.has_replicated_below = [this](std::string_view directory) {
    const std::string prefix = std::string(directory) + "/";
    for (const auto& database : store_->list())
      if (!database->deleted() && database->name().starts_with(prefix)) return true;
    return false;
  };
  guard_ = std::make_unique<fuse::WriteGuard>(std::move(guard_options));
  if (takes_over_) guard_->start_serving();  // who waits for an open must not be told EAGAIN
  TRY(mount(*guard_, nullptr));
  storage::ReplicaOptions replica_options;
  replica_options.resume = takes_over_;
  replica_options.hold_write_locks = config_.replica_writes == ReplicaWrites::wait;
  replica_options.start_index_helper = start_index_process;
  replica_options.start_asleep = true;
  TRY_ASSIGN(replica_, storage::Replica::open(*store_, mount_->access(), pool_, replica_options));
  live_replica_ = replica_.get();
  guard_->start_serving();
  // Replicas of this replica: served from its own log, like any node's.
  replication::PublisherOptions publisher_options;
  publisher_options.hostname = hostname_;
  publisher_options.upstream = [this] {
    const auto* subscriber = live_subscriber_.load();
    return subscriber != nullptr ? subscriber->upstream() : replication::Upstream{};
  };
  publisher_ = replication::Publisher::create(*store_, system_clock(), pool_, publisher_options);
  observer_.set_publisher(publisher_.get());
  replication::SubscriberOptions subscriber_options;
  subscriber_options.primary_url = config_.primary_url;
  subscriber_options.hostname = hostname_;
  subscriber_options.node_id = store_->node_id();
  subscriber_options.token = token_;
  subscriber_ = replication::Subscriber::create(*replica_, system_clock(), pool_, subscriber_options);
  live_subscriber_ = subscriber_.get();
  return {};
}

void NodeImpl::serve_http() {
  ApiContext context;
  context.store = store_.get();
  context.role = role_;
  context.token = token_;
  context.primary_url = config_.primary_url;
  context.mountpoint = config_.mountpoint;
  context.status = [this] { return status(); };
  context.summary = [this] { return summary(); };
  // The main thread passes it on.
  if (descriptors_ != nullptr)
    context.upgrade = []() -> Result<void> {
      return ::kill(::getpid(), SIGUSR2) == 0 ? Result<void>() : errno_error("kill", errno);
    };
  if (role_ == Role::primary) {
    context.capture_now = [this](const std::string& name) { return capture_->capture_now(name); };
  }
  context.accept_stream = [this](UniqueFd socket, Bytes early, std::string peer) {
    publisher_->accept(std::move(socket), std::move(early), std::move(peer));
  };
  if (role_ == Role::replica) {
    context.repair = [this](const std::string& name, const std::vector<Pgno>& pages,
                            const std::function<bool()>& cancelled) { return repair(name, pages, cancelled); };
  }
  api_ = std::make_unique<Api>(std::move(context));
  http_->serve(*api_);
}

// The pages are left out of what the replica offers the primary, so they come.
Result<void> NodeImpl::ask_for_pages(const std::string& name, const std::vector<Pgno>& pages) {
  TRY_ASSIGN(const auto database, replica_->database(name));
  database->mark_damaged(pages);
  subscriber_->request_resync(name, fmt::format("{} damaged pages are to be repaired", pages.size()));
  return {};
}

Result<void> NodeImpl::repair(const std::string& name, const std::vector<Pgno>& pages,
                              const std::function<bool()>& cancelled) {
  if (!subscriber_->status().connected) {
    return make_error(Errc::unavailable, "the primary has to send the pages, and this node is not connected to it");
  }
  TRY_ASSIGN(const auto database, replica_->database(name));
  TRY(ask_for_pages(name, pages));
  const auto deadline = system_clock().now() + kRepairDeadline;
  while (database->damaged() != 0) {  // nothing tells when; it is a matter of a moment, and asked for by a person
    if ((cancelled && cancelled()) || stopping_) return make_error(Errc::cancelled, name + ": the repair goes on without you");
    if (system_clock().now() > deadline) return make_error(Errc::deadline, name + ": the primary has not sent the pages yet");
    std::this_thread::sleep_for(kRepairPoll);
  }
  return {};
}

void NodeImpl::scrub_found(const std::string& name, const VerifyReport& report) {
  if (role_ == Role::primary) {
    LOG_ERROR("{}: this node is the primary; see docs/OPERATING.md, 'verify says MISMATCH'", name);
    return;
  }
  const auto asked = ask_for_pages(name, report.bad_pages);
  if (asked.has_error()) LOG_ERROR("{}: repair: {}", name, asked.error().to_string());
}

std::string NodeImpl::primary_host() const {
  if (const auto* subscriber = live_subscriber_.load()) {
    const auto heard = subscriber->status().primary_hostname;
    if (!heard.empty()) return heard;
  }
  const auto known = leaser_->primary(system_clock().now() + kLeaseDeadline);
  return known && *known ? (*known)->hostname : std::string();
}

std::optional<Pos> NodeImpl::position(const std::string& name) const {
  auto database = store_->find(name);
  if (database == nullptr || database->deleted()) return std::nullopt;
  if (capture_) {
    const auto captured = capture_->capture_now(name);
    if (captured.has_error())
      LOG_WARN("{}: capture for its position: {}", name, captured.error().to_string());
  }
  if (auto* replica = live_replica_.load()) {
    const auto applied = replica->database(name);
    if (applied) return (*applied)->applied();
  }
  return database->pos();
}

NodeStatus NodeImpl::summary() const {
  NodeStatus s;
  s.role = role_;
  s.node_id = store_->node_id();
  s.hostname = hostname_;
  s.advertise_url = config_.advertise_url;
  s.primary_url = config_.primary_url;
  s.epoch = epoch_;
  s.process = ::getpid();
  s.uptime_ms =
      std::chrono::duration_cast<std::chrono::milliseconds>(system_clock().now() - started_).count();
  s.mountpoint = config_.mountpoint;
  s.data_dir = config_.data_dir;
  if (subscriber_) s.subscriber = subscriber_->status();
  if (role_ == Role::replica) s.primary_hostname = primary_host();
  return s;
}

NodeStatus NodeImpl::status() const {
  NodeStatus s = summary();
  const auto orphans = fence_->orphans();
  for (const auto& database : store_->list()) {
    if (database->pos().txid == Txid(0) && database->fault().empty()) continue;
    DatabaseStatus one = database_status(*database, store_->backing_path(database->name()));
    if (const auto it = orphans.find(database->name()); it != orphans.end()) one.orphans = it->second;
    if (role_ == Role::replica) s.epoch = std::max(s.epoch, database->epoch());
    s.databases.push_back(std::move(one));
  }
  if (replica_) {
    for (const auto& applied : replica_->list())
      if (DatabaseStatus* one = s.find(applied->name())) one->applied = applied->applied();
  }
  if (publisher_) s.replicas = publisher_->replicas();
  if (s.subscriber) {
    for (const auto& [name, progress] : s.subscriber->resyncing)
      if (DatabaseStatus* one = s.find(name)) one->resync = progress;
  }
  for (const auto& [name, scrubbed] : scrubber_.status())
    if (DatabaseStatus* one = s.find(name)) one->scrub = scrubbed;
  if (capture_) s.capture = capture_numbers(capture_->counters());
  if (mount_) s.fuse_requests = mount_->request_counts();
  if (mount_) s.io = mount_->io_path() == fuse::IoPath::native ? "native" : "plain";
  return s;
}

// Graceful stop: (the application has ended) → no more requests → replicas and primary let go → unmount,
// which lets capture or apply finish what clients did → log and checksums made durable → store and its lock.
Result<void> NodeImpl::stop() {
  if (std::exchange(stopped_, true)) return {};
  stopping_ = true;
  Result<void> first;
  const auto keep = [&first](Result<void> result) {
    if (result.has_error() && !first.has_error()) first = std::move(result);
  };
  if (http_) http_->stop();
  scrubber_.stop();
  maintenance_.stop();
  if (subscriber_) subscriber_->stop();
  if (replica_) replica_->stop();
  if (capture_) capture_->release_mount();
  if (mount_) keep(mount_->stop(static_cast<int>(config_.unmount_wait_ms)));
  if (capture_) capture_->stop();
  if (capture_ && store_) {
    // After this the next start has no log to replay into the page checksums.
    Maintenance::run(*store_, store_->options().retention, storage::Database::Checkpoint::now);
  }
  // Last, so that replicas get what the unmount captured.
  if (publisher_) publisher_->stop();
  observer_.set_publisher(nullptr);
  if (lease_) keep(lease_->release(system_clock().now() + kLeaseDeadline));
  pool_.stop();
  return first;
}

}  // namespace

Result<std::unique_ptr<Node>> Node::start(const Config& config, std::string token, DescriptorStore* descriptors) {
  auto node = std::make_unique<NodeImpl>(config, std::move(token), descriptors);
  TRY(node->start());
  return std::unique_ptr<Node>(std::move(node));
}

}  // namespace sluice::server
