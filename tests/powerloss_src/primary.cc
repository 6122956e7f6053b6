// A primary: SQLite commits through the mount's stand-in, capture makes change sets of it, a publisher that only takes notes "ships"
// what it is told that it may ship.
#include <sqlite3.h>
#include <unistd.h>

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "base/log.h"
#include "tests/powerloss_src/app_mount.h"
#include "tests/powerloss_src/primary_node.h"
#include "tests/powerloss_src/world.h"

namespace sluice::powerloss {
namespace {

/// How an application uses one database. Its transactions count in user_version, which is in page 1.
struct Use {
  std::string name;
  bool safe = true;  ///< no synchronous=OFF, no journal in memory: SQLite itself promises something
  std::string mode;
  std::string synchronous;
  int page_size = 4096;
  int autocheckpoint = 1000;
  std::int64_t count = 0;
  std::int64_t deleted_at = 0;  ///< count of the last deletion
  std::unique_ptr<Connection> connection;
};

struct Note {
  std::size_t at = 0;
  std::string database;
  bool shipped = false;  ///< else: deleted by its application
  Pos pos;
  std::int64_t count = 0;
};

class PrimaryWorld final : public World, public ShipObserver {
 public:
  PrimaryWorld(std::uint64_t seed, const std::string& scratch)
      : random_(seed), seed_(seed), data_(scratch + "/data"), mount_(scratch + "/mnt"), reference_(scratch + "/reference") {}

  void record(int steps) override;
  std::string check(const std::string& image, std::size_t point) override;
  void shipped(const std::string& database, Pos pos, std::int64_t count) override {
    if (!Recorder::instance().note(static_cast<int>(notes_.size()))) return;
    notes_.push_back({Recorder::instance().size(), database, true, pos, count});
  }

 private:
  struct Promise {
    Pos shipped;
    std::int64_t count = 0;
    std::int64_t deleted_at = 0;
  };
  struct Found {
    bool exists = false;
    std::int64_t count = 0;
    std::string trouble;
  };

  std::uint64_t pick(std::uint64_t n) { return random_() % n; }
  std::string path(const Use& use) const { return mount_ + "/" + use.name; }
  void make_uses();
  void choose_settings(Use& use);
  void open(Use& use);
  void step();
  void transaction(Use& use, bool commit);
  void together();
  void remove(Use& use);
  void restart();
  std::map<std::string, Promise> promises(std::size_t point) const;
  Found look(const Use& use);
  std::string check_database(PrimaryNode& node, const Use& use, const Found& reference, const Promise& promise);

  std::mt19937_64 random_;
  const std::uint64_t seed_;
  const std::string data_;
  const std::string mount_;
  const std::string reference_;
  std::vector<Use> uses_;
  std::vector<Note> notes_;
  std::unique_ptr<PrimaryNode> node_;
  std::uint64_t boots_ = 1000;
};

void PrimaryWorld::choose_settings(Use& use) {
  static const char* const modes[] = {"wal", "wal", "delete", "truncate", "persist"};
  static const char* const levels[] = {"normal", "full", "normal", "extra"};
  use.mode = modes[pick(5)];
  use.synchronous = levels[pick(4)];
  if (!use.safe && pick(2) == 0) use.synchronous = "off";
  if (!use.safe && pick(6) == 0) use.mode = "memory";
  use.autocheckpoint = pick(2) == 0 ? 4 : 20;
}

void PrimaryWorld::make_uses() {
  static const int page_sizes[] = {512, 1024, 4096};
  for (const char* name : {"a.db", "sub/b.db", "unsafe.db"}) {
    Use use;
    use.name = name;
    use.safe = std::string_view(name) != "unsafe.db";
    use.page_size = page_sizes[pick(3)];
    choose_settings(use);
    uses_.push_back(std::move(use));
  }
}

void PrimaryWorld::open(Use& use) {
  use.connection = std::make_unique<Connection>(path(use), true);
  Connection& sql = *use.connection;
  (void)sql.run("pragma page_size=" + std::to_string(use.page_size));
  (void)sql.run("pragma synchronous=" + use.synchronous + "; pragma cache_size=8; pragma wal_autocheckpoint=" +
                std::to_string(use.autocheckpoint));
  (void)sql.run("pragma journal_mode=" + use.mode);
  (void)sql.run("pragma auto_vacuum=incremental; create table if not exists t(id integer primary key, x)");
}

void PrimaryWorld::transaction(Use& use, bool commit) {
  const std::int64_t next = use.count + 1;
  std::string sql = "begin immediate; pragma user_version=" + std::to_string(next) + ";";
  for (std::uint64_t i = 0, n = pick(8) == 0 ? 40 : 1 + pick(4); i < n; ++i) {
    const std::string id = std::to_string(pick(200));
    sql += pick(5) == 0 ? "delete from t where id=" + id + ";"
                        : "insert or replace into t values(" + id + ",randomblob(" + std::to_string(10 + pick(700)) + "));";
  }
  sql += commit ? "commit" : "rollback";
  const int rc = use.connection->run(sql);
  if (rc == SQLITE_OK && commit) use.count = next;
  if (rc != SQLITE_OK) LOG_ERROR("seed {}: {}: {}: {}", seed_, use.name, rc, use.connection->message());
}

// One transaction over two databases: with a super-journal, if both have rollback journals.
void PrimaryWorld::together() {
  Use& first = uses_[0];
  Use& second = uses_[1];
  second.connection.reset();
  const std::string n = std::to_string(first.count + 1);
  const std::string m = std::to_string(second.count + 1);
  Connection& sql = *first.connection;
  (void)sql.run("attach '" + path(second) + "' as b; pragma b.synchronous=" + second.synchronous);
  const int rc = sql.run("begin; pragma user_version=" + n + "; insert or replace into t values(1," + n + "); pragma b.user_version=" + m +
                         "; insert or replace into b.t values(1," + m + "); commit");
  if (rc == SQLITE_OK) {
    ++first.count;
    ++second.count;
  }
  first.connection.reset();
  open(first);
  open(second);
}

void PrimaryWorld::remove(Use& use) {
  use.connection.reset();
  ++use.count;
  (void)Recorder::instance().note(static_cast<int>(notes_.size()));
  notes_.push_back({Recorder::instance().size(), use.name, false, {}, use.count});
  for (const char* suffix : {"", "-wal", "-shm", "-journal"}) (void)AppMount::instance().remove(path(use) + suffix);
  if (pick(2) == 0) node_->drain();
  choose_settings(use);
  open(use);
}

void PrimaryWorld::restart() {
  for (Use& use : uses_) use.connection.reset();
  node_->stop();
  node_ = std::make_unique<PrimaryNode>(data_, mount_, this);
  const std::string started = node_->start();
  if (!started.empty()) LOG_ERROR("seed {}: {}", seed_, started);
  for (Use& use : uses_) open(use);
}

void PrimaryWorld::step() {
  Use& use = uses_[pick(uses_.size())];
  switch (pick(24)) {
    case 0: (void)use.connection->run("pragma wal_checkpoint(passive)"); break;
    case 1: (void)use.connection->run(pick(2) == 0 ? "pragma wal_checkpoint(restart)" : "pragma wal_checkpoint(truncate)"); break;
    case 2: (void)use.connection->run(pick(2) == 0 ? "vacuum" : "pragma incremental_vacuum(3)"); break;
    case 3: transaction(use, false); break;
    case 4:
      use.connection.reset();
      if (pick(3) == 0) choose_settings(use);
      open(use);
      break;
    case 5:
      if (pick(3) == 0) remove(use);
      break;
    case 6: node_->maintain(use.name, pick(2) == 0); break;
    case 7:
      if (pick(6) == 0) restart();
      break;
    case 8: together(); break;
    case 9:
    case 10: node_->drain(); break;
    case 11:
    case 12:
    case 13: node_->capture(use.name); break;
    default: transaction(use, true); break;
  }
}

void PrimaryWorld::record(int steps) {
  storage_boot(boots_);
  sqlite3_test_control(SQLITE_TESTCTRL_PRNG_SEED, static_cast<int>(seed_ & 0x7fffffff) | 1, nullptr);
  for (const std::string& directory : {data_, mount_}) make_directory(directory);
  Recorder::instance().start(data_);
  node_ = std::make_unique<PrimaryNode>(data_, mount_, this);
  const std::string started = node_->start();
  if (!started.empty()) LOG_ERROR("seed {}: {}", seed_, started);
  make_directory(data_ + "/fs/sub");
  AppMount::instance().before_operation([this] {
    if (pick(12) == 0) node_->drain();
  });
  make_uses();
  for (Use& use : uses_) open(use);
  for (int i = 0; i < steps; ++i) step();
  for (const Use& use : uses_) node_->capture(use.name);
  ops_ = Recorder::instance().stop();
  AppMount::instance().before_operation(nullptr);
  for (Use& use : uses_) use.connection.reset();
  node_.reset();
  remove_tree(data_);
}

std::map<std::string, PrimaryWorld::Promise> PrimaryWorld::promises(std::size_t point) const {
  std::map<std::string, Promise> all;
  for (const Note& note : notes_) {
    if (note.at > point) break;
    Promise& promise = all[note.database];
    if (!note.shipped) {
      promise.deleted_at = note.count;
      continue;
    }
    promise.shipped = note.pos;
    promise.count = std::max(promise.count, note.count);
  }
  return all;
}

/// What SQLite makes of the files that the mount leads to now.
PrimaryWorld::Found PrimaryWorld::look(const Use& use) {
  Found found;
  Connection sql(path(use), false);
  if (sql.open_code() != SQLITE_OK) return found;  // not there
  int code = SQLITE_OK;
  const std::string count = sql.value("pragma user_version", &code);
  const std::string integrity = code == SQLITE_OK ? sql.value("pragma integrity_check(1)", &code) : std::string();
  const std::string tables = code == SQLITE_OK ? sql.value("select count(*) from sqlite_schema", &code) : std::string();
  found.exists = true;
  if (code != SQLITE_OK) {
    found.trouble = sql.message();
  } else if (integrity != "ok") {
    found.trouble = integrity;
  } else {
    found.count = std::stoll(count);
    (void)sql.value("pragma wal_checkpoint(truncate)");
  }
  return found;
}

std::string PrimaryWorld::check_database(PrimaryNode& node, const Use& use, const Found& reference, const Promise& promise) {
  const std::string fault = node.fault(use.name);
  if (!fault.empty()) return describe(use.name, "refused: " + fault);
  const Pos kept = node.position_at(use.name, promise.shipped.txid);
  if (promise.shipped.txid != Txid(0) && kept != promise.shipped && !node.started_over_after(use.name, promise.shipped.txid)) {
    return describe(use.name, fmt::format("{} was shipped, the log has {} there", promise.shipped, kept));
  }
  if (node.position(use.name).txid < promise.shipped.txid) {
    return describe(use.name, fmt::format("{} was shipped, the database is at {}", promise.shipped, node.position(use.name)));
  }
  const Found found = look(use);
  node.capture(use.name);
  if (!use.safe && !reference.trouble.empty()) return {};
  if (!reference.trouble.empty()) return describe(use.name, "SQLITE: " + reference.trouble);
  if (!found.trouble.empty()) return describe(use.name, "SQLite says: " + found.trouble);
  if (found.exists != reference.exists || found.count != reference.count) {
    return describe(use.name, fmt::format("transaction {} is there, SQLite alone finds {}", found.count, reference.count));
  }
  const bool gone = !found.exists || found.count == 0;
  if (use.safe && found.count < promise.count && !(gone && promise.deleted_at >= promise.count)) {
    return describe(use.name, fmt::format("transaction {} was shipped, {} is there", promise.count, found.count));
  }
  const std::string content = node.check_content(use.name);
  if (!content.empty()) return describe(use.name, content);
  if (!found.exists || found.count == 0) return {};
  const Pos before = node.position(use.name);
  {
    Connection sql(path(use), false);
    if (sql.run("pragma user_version=1000000") != SQLITE_OK) return describe(use.name, "the next transaction: " + sql.message());
  }
  node.capture(use.name);
  if (node.position(use.name).txid <= before.txid) return describe(use.name, "the next transaction was not captured");
  const std::string next = node.check_content(use.name);
  return next.empty() ? "" : describe(use.name, "after the next transaction: " + next);
}

std::string PrimaryWorld::check(const std::string& image, std::size_t point) {
  const auto promised = promises(point);
  remove_tree(reference_);
  std::map<std::string, Found> references;
  if (exists(image + "/fs")) {
    copy_tree(image + "/fs", reference_);
  } else {
    make_directory(reference_);
  }
  AppMount::instance().serve(mount_, reference_, nullptr);
  for (const Use& use : uses_) references[use.name] = look(use);
  storage_boot(++boots_);
  PrimaryNode node(image, mount_, nullptr);
  const std::string started = node.start();
  std::string result = started.empty() ? "" : "start: " + started;
  for (const Use& use : uses_) {
    if (!result.empty()) break;
    const auto promise = promised.find(use.name);
    result = check_database(node, use, references[use.name], promise == promised.end() ? Promise{} : promise->second);
  }
  return result;
}

}  // namespace

std::unique_ptr<World> make_primary_world(std::uint64_t seed, const std::string& scratch) {
  return std::make_unique<PrimaryWorld>(seed, scratch);
}

}  // namespace sluice::powerloss
