// A replica: change sets and snapshots of real databases' histories arrive, are applied, synced and acknowledged.
#include <sqlite3.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <stdexcept>

#include "base/log.h"
#include "storage/replica.h"
#include "tests/powerloss_src/primary_node.h"
#include "tests/powerloss_src/world.h"
#include "tests/unit/apply/support.h"

namespace sluice::powerloss {
namespace {

namespace at = storage::apply_test;
using storage::ReplicaDatabase;

class ReplicaNode {
 public:
  explicit ReplicaNode(std::string data) : data_(std::move(data)) {}
  ~ReplicaNode() { stop(); }

  Result<void> start() {
    storage::StoreOptions options;
    options.data_dir = data_;
    options.retention = {.max_age_ms = 10, .max_bytes = 100'000};
    options.database.log.segment_size = 32 * 1024;
    options.database.checkpoint_bytes = 32 * 1024;
    pool_ = std::make_unique<SteppedPool>();
    TRY_ASSIGN(store_, storage::Store::open(real_file_system(), system_clock(), options));
    TRY(storage::Replica::recover(*store_));
    access_ = std::make_unique<at::PlainDirAccess>(store_->fs_dir());
    storage::ReplicaOptions replica_options;
    replica_options.checkpoint_frames = 12;
    replica_options.idle_checkpoint_ms = 1'000'000'000;
    TRY_ASSIGN(replica_, storage::Replica::open(*store_, *access_, pool_->pool(), replica_options));
    return {};
  }
  void stop() {
    if (replica_) replica_->stop();
    pool_.reset();
    replica_.reset();
    store_.reset();
  }
  std::shared_ptr<ReplicaDatabase> database(const std::string& name) {
    auto database = replica_->database(name);
    if (database.has_error()) throw std::runtime_error(database.error().to_string());
    return *database;
  }
  void drain() { pool_->drain(); }
  void maintain(const std::string& name) {
    if (const auto database = store_->find(name)) {
      (void)database->maintain(store_->options().retention, storage::Database::Checkpoint::none);
    }
  }

 private:
  const std::string data_;
  std::unique_ptr<SteppedPool> pool_;
  std::unique_ptr<storage::Store> store_;
  std::unique_ptr<at::PlainDirAccess> access_;
  std::unique_ptr<storage::Replica> replica_;
};

struct Version {
  Pos pos;
  Bytes content;
  std::optional<at::ChangeSet> change;  ///< that led here
};

struct History {
  std::string name;
  std::unique_ptr<at::Source> source;
  bool exists = true;
  std::map<std::uint64_t, Version> versions;  ///< by TXID
};

struct Ack {
  std::size_t at = 0;
  std::string database;
  Txid txid;
};

class ReplicaWorld final : public World {
 public:
  ReplicaWorld(std::uint64_t seed, std::string scratch)
      : random_(seed), scratch_(std::move(scratch)), data_(scratch_ + "/data") {}

  void record(int steps) override;
  std::string check(const std::string& image, std::size_t point) override;

 private:
  std::uint64_t pick(std::uint64_t n) { return random_() % n; }
  void step();
  void change(History& history);
  void remember(History& history, std::optional<at::ChangeSet> change);
  void next(History& history);
  void snapshot(History& history);
  void recreate(History& history);
  std::string check_database(ReplicaNode& node, const History& history, const std::string& file, Txid acked);

  std::mt19937_64 random_;
  const std::string scratch_;
  const std::string data_;
  std::vector<History> histories_;
  std::vector<Ack> acks_;
  std::unique_ptr<ReplicaNode> node_;
  std::uint64_t boots_ = 2000;
};

void ReplicaWorld::change(History& history) {
  at::Connection& sql = history.source->sql();
  for (std::uint64_t i = 0, n = 1 + pick(pick(6) == 0 ? 40 : 4); i < n; ++i) {
    const std::string id = std::to_string(pick(150));
    sql.exec(pick(4) == 0 ? "delete from t where id=" + id
                          : "insert or replace into t values(" + id + ",randomblob(" + std::to_string(10 + pick(900)) + "))");
  }
  if (pick(12) == 0) sql.exec("vacuum");
  if (pick(25) == 0) sql.exec("pragma page_size=" + std::to_string(1024 << pick(3)) + "; vacuum");
}

void ReplicaWorld::remember(History& history, std::optional<at::ChangeSet> change) {
  const at::Source& source = *history.source;
  history.versions[source.pos().txid.value()] = {source.pos(), source.content(), std::move(change)};
}

void ReplicaWorld::next(History& history) {
  change(history);
  const at::ChangeSet set = history.source->next();
  remember(history, set);
  const Result<void> applied = at::apply_to(*node_->database(history.name), set);
  if (applied.has_error()) LOG_ERROR("{}: {}", history.name, applied.error().to_string());
}

void ReplicaWorld::snapshot(History& history) {
  for (int i = 0; i < 3; ++i) {
    change(history);
    (void)history.source->next();
  }
  remember(history, std::nullopt);
  const at::Source& source = *history.source;
  const auto to = node_->database(history.name);
  Result<void> done = to->begin_snapshot(source.page_size(), source.pages());
  for (std::uint32_t p = 1; p <= source.pages() && !done.has_error(); ++p) {
    done = to->snapshot_page(Pgno(p), ByteView(source.content()).subspan(std::size_t{p - 1} * source.page_size(), source.page_size()));
  }
  if (!done.has_error()) done = to->finish_snapshot(source.end());
  if (done.has_error()) LOG_ERROR("{}: snapshot: {}", history.name, done.error().to_string());
}

void ReplicaWorld::recreate(History& history) {
  const at::ChangeSet removed = history.source->remove();
  remember(history, removed);
  (void)at::apply_to(*node_->database(history.name), removed);
  if (pick(2) == 0) node_->drain();
  if (pick(2) == 0) (void)node_->database(history.name)->sync();
  history.source->create(static_cast<std::uint32_t>(1024 << pick(3)), "delete");
  history.source->sql().exec("create table t(id integer primary key, x)");
  next(history);
}

void ReplicaWorld::step() {
  History& history = histories_[pick(histories_.size())];
  switch (pick(20)) {
    case 0:
      if (pick(2) == 0) snapshot(history);
      break;
    case 1:
      if (pick(3) == 0) recreate(history);
      break;
    case 2: node_->maintain(history.name); break;
    case 3:
      if (pick(8) == 0) {
        node_.reset();
        node_ = std::make_unique<ReplicaNode>(data_);
        if (const auto started = node_->start(); started.has_error()) LOG_ERROR("{}", started.error().to_string());
      }
      break;
    case 4:
    case 5:
    case 6: node_->drain(); break;
    case 7:
    case 8:
    case 9: {
      const auto synced = node_->database(history.name)->sync();
      if (!synced.has_value()) break;
      Recorder::instance().note(0);
      acks_.push_back({Recorder::instance().size(), history.name, *synced});
      break;
    }
    default: next(history); break;
  }
}

void ReplicaWorld::record(int steps) {
  storage_boot(boots_);
  make_directory(data_);
  for (const char* name : {"a.db", "sub/b.db"}) {
    History history;
    history.name = name;
    history.source = std::make_unique<at::Source>(scratch_ + "/source-" + std::to_string(histories_.size()) + ".db", 1024, "delete");
    history.source->sql().exec("create table t(id integer primary key, x)");
    histories_.push_back(std::move(history));
  }
  allow_wakeups(true);
  Recorder::instance().start(data_);
  node_ = std::make_unique<ReplicaNode>(data_);
  if (const auto started = node_->start(); started.has_error()) throw std::runtime_error(started.error().to_string());
  for (int i = 0; i < steps; ++i) step();
  ops_ = Recorder::instance().stop();
  node_.reset();
  remove_tree(data_);
}

std::string ReplicaWorld::check_database(ReplicaNode& node, const History& history, const std::string& file, Txid acked) {
  const auto database = node.database(history.name);
  const Pos logged = database->logged();
  if (logged.txid < acked) {
    return describe(history.name, fmt::format("{} was acknowledged, the replica is at {}", acked, logged));
  }
  if (logged.txid == Txid(0)) return {};
  const auto version = history.versions.find(logged.txid.value());
  if (version == history.versions.end() || version->second.pos != logged) {
    return describe(history.name, fmt::format("it never was at {}", logged));
  }
  if (database->applied() != logged) return describe(history.name, fmt::format("at {}, readers see {}", logged, database->applied()));
  const Bytes& content = version->second.content;
  if (content.empty() != !exists(file)) return describe(history.name, "the file should be there or not");
  if (!content.empty()) {
    const std::string wrong = at::difference(file, content);
    if (!wrong.empty()) return describe(history.name, fmt::format("at {}: {}", logged, wrong));
  }
  const auto following = history.versions.find(logged.txid.value() + 1);
  if (following == history.versions.end() || !following->second.change) return {};
  const Result<void> applied = at::apply_to(*database, *following->second.change);
  if (applied.has_error()) return describe(history.name, "the next change set: " + applied.error().to_string());
  if (following->second.content.empty()) return {};
  const std::string wrong = at::difference(file, following->second.content);
  return wrong.empty() ? "" : describe(history.name, "after the next change set: " + wrong);
}

std::string ReplicaWorld::check(const std::string& image, std::size_t point) {
  storage_boot(++boots_);
  allow_wakeups(true);
  ReplicaNode node(image);
  const auto started = node.start();
  if (started.has_error()) return "start: " + started.error().to_string();
  std::map<std::string, Txid> acked;
  for (const Ack& ack : acks_) {
    if (ack.at <= point) acked[ack.database] = std::max(acked[ack.database], ack.txid);
  }
  for (const History& history : histories_) {
    try {
      std::string wrong = check_database(node, history, image + "/fs/" + history.name, acked[history.name]);
      if (!wrong.empty()) return wrong;
    } catch (const std::exception& error) {
      return describe(history.name, error.what());
    }
  }
  return {};
}

}  // namespace

std::unique_ptr<World> make_replica_world(std::uint64_t seed, const std::string& scratch) {
  return std::make_unique<ReplicaWorld>(seed, scratch);
}

}  // namespace sluice::powerloss
