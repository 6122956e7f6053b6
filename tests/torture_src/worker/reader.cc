// Readers check the invariants; checkpointers check nothing and get in everybody's way.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <memory>

#include "database.h"
#include "ledger.h"
#include "model.h"
#include "roles.h"

namespace sluice::torture {

namespace {

class Reader {
 public:
  Reader(const Options& options, Control& control)
      : options_(options), control_(control), random_(options.seed), trail_(options.trail) {
    for (const Target& target : options.targets) ledgers_.push_back(std::make_unique<Ledger>(target.ledger));
  }
  int run();

 private:
  void visit(std::size_t index);
  void connect(std::size_t index);
  void read(std::size_t index);
  void hold(Database& db, const Snapshot& first, const std::string& where);
  void try_to_write(std::size_t index);
  void back_up(std::size_t index);
  void check_promises(std::size_t index, const Snapshot& seen, std::uint64_t floor,
                      const std::vector<std::uint64_t>& acked);
  void complain(std::size_t index, const std::vector<std::string>& problems);
  /// Deleted and created again, now and then.
  bool comes_and_goes(std::size_t index) const {
    const std::string& profile = options_.targets[index].profile;
    return profile == "churn" || (profile == "zero_salt" && options_.node == 1);
  }

  const Options& options_;
  Control& control_;
  Random random_;
  Trail trail_;
  std::vector<std::unique_ptr<Ledger>> ledgers_;
  std::map<std::size_t, std::unique_ptr<Database>> connections_;
};

void Reader::complain(std::size_t index, const std::vector<std::string>& problems) {
  for (const std::string& problem : problems) {
    trail_.note("violation", index);
    control_.violation((options_.node == 0 ? "primary " : "replica ") + options_.targets[index].path + ": " +
                       problem);
  }
}

void Reader::connect(std::size_t index) {
  auto& connection = connections_[index];
  if (connection != nullptr && connection->is_open()) return;
  const int flags = random_.chance(0.5) ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
  // Nobody but its owner reads a database in EXCLUSIVE mode: no use in waiting long.
  const int busy_ms = options_.node == 0 && options_.targets[index].profile == "exclusive" ? 20 : 5000;
  connection = std::make_unique<Database>(options_.targets[index].path, flags, busy_ms);
  connection->exec("PRAGMA cache_size=" + std::to_string(random_.pick(std::vector<int>{5, -2000, -64000})));
  connection->exec("PRAGMA mmap_size=" + std::to_string(random_.chance(0.5) ? 0 : 268435456));
  if (random_.chance(0.5)) connection->exec("PRAGMA query_only=ON");
}

void Reader::check_promises(std::size_t index, const Snapshot& seen, std::uint64_t floor,
                            const std::vector<std::uint64_t>& acked) {
  if (comes_and_goes(index)) return;
  if (seen.counter < floor) {
    complain(index,
             {"BACKWARDS: counter " + std::to_string(seen.counter) + " after " + std::to_string(floor)});
  }
  std::atomic<std::uint64_t>& shared = (*ledgers_[index])->floor[static_cast<std::size_t>(options_.node)];
  for (std::uint64_t old = shared.load();
       old < seen.counter && !shared.compare_exchange_weak(old, seen.counter);) {
  }
  if (options_.node != 0) return;
  for (std::size_t writer = 0; writer < acked.size(); ++writer) {
    const std::uint64_t here = writer < seen.progress.size() ? seen.progress[writer].seq : 0;
    if (here < acked[writer]) {
      complain(index, {"LOST: writer " + std::to_string(writer) + " at " + std::to_string(here) +
                       ", acknowledged " + std::to_string(acked[writer])});
    }
  }
}

void Reader::hold(Database& db, const Snapshot& first, const std::string& where) {
  for (int round = random_.between(2, 30); round > 0 && !control_.pause_wanted(); --round) {
    if (!control_.wait_ms(50)) return;
    const auto counter = static_cast<std::uint64_t>(db.integer("SELECT n FROM counter"));
    if (counter == first.counter) continue;
    control_.violation(where + ": SNAPSHOT: counter moved from " + std::to_string(first.counter) + " to " +
                       std::to_string(counter) + " inside a read transaction");
    return;
  }
}

void Reader::read(std::size_t index) {
  Database& db = *connections_[index];
  const LedgerData& ledger = **ledgers_[index];
  const std::uint64_t floor = ledger.floor[static_cast<std::size_t>(options_.node)].load();
  std::vector<std::uint64_t> acked;
  for (const Slot& slot : ledger.slots) acked.push_back(slot.acked.load(std::memory_order_acquire));
  db.exec("BEGIN");
  Snapshot seen;
  const bool thorough = random_.chance(0.05);
  const auto problems = check_invariants(db, random_, thorough, &seen);
  complain(index, problems);
  check_promises(index, seen, floor, acked);
  if (random_.chance(0.01)) hold(db, seen, options_.targets[index].path);
  if (random_.chance(0.02)) {
    const std::string result = db.text("PRAGMA integrity_check(3)");
    if (result != "ok") complain(index, {"INTEGRITY: " + result});
  }
  db.exec("COMMIT");
}

void Reader::try_to_write(std::size_t index) {
  Database db(options_.targets[index].path, SQLITE_OPEN_READWRITE, 0);
  try {
    db.exec("UPDATE accounts SET balance=balance+1");
  } catch (const SqlError& error) {
    if (error.primary() == SQLITE_READONLY || error.is_busy()) return;
    throw;
  }
  complain(index, {"WRITTEN: a replica accepted a write"});
}

void Reader::back_up(std::size_t index) {
  const std::string copy = options_.scratch + "/backup-" + std::to_string(::getpid());
  ::unlink(copy.c_str());
  connections_[index]->exec("PRAGMA query_only=OFF");  // VACUUM INTO counts as a write
  connections_[index]->query("VACUUM INTO ?").bind(copy).run();
  Database db(copy, SQLITE_OPEN_READWRITE, 0);
  complain(index, check_invariants(db, random_, true, nullptr));
  db.close();
  ::unlink(copy.c_str());
}

// A database that is being created has no tables yet; one that was deleted cannot be opened, or is found to
// be gone between two steps of opening it (IOERR_FSTAT: its name; READONLY_DIRECTORY: its WAL).
bool came_or_went(const SqlError& error) {
  return error.primary() == SQLITE_ERROR || error.primary() == SQLITE_CANTOPEN ||
         error.primary() == SQLITE_NOTFOUND || error.extended() == SQLITE_IOERR_FSTAT ||
         error.extended() == SQLITE_READONLY_DIRECTORY || error.extended() == SQLITE_READONLY_DBMOVED;
}

void Reader::visit(std::size_t index) {
  if (comes_and_goes(index)) connections_.erase(index);
  if (comes_and_goes(index) && ::access(options_.targets[index].path.c_str(), F_OK) != 0) return;
  connect(index);
  read(index);
  if (options_.node == 1 && !comes_and_goes(index) && random_.chance(0.02)) try_to_write(index);
  if (random_.chance(0.002)) back_up(index);
  if (random_.chance(0.1)) connections_.erase(index);
}

int Reader::run() {
  control_.say("ready");
  while (control_.proceed()) {
    const std::size_t index = random_.below(options_.targets.size());
    try {
      visit(index);
      ++control_.done;
    } catch (const SqlError& error) {
      trail_.note("failed", index, static_cast<std::uint64_t>(error.extended()));
      connections_.erase(index);
      // A connection opened read-only may not roll back the journal that a killed writer left on the primary.
      const bool expected = options_.node == 0 ? error.extended() == SQLITE_READONLY_ROLLBACK
                                               : comes_and_goes(index) && came_or_went(error);
      if (!expected) report(control_, options_.targets[index].path, error);
      if (!control_.wait_ms(5)) break;
    }
    if (random_.chance(0.3) && !control_.wait_ms(random_.between(0, 10))) break;
  }
  control_.say("bye");
  return 0;
}

}  // namespace

int run_reader(const Options& options, Control& control) {
  return Reader(options, control).run();
}

int run_checkpoint(Database& db, Control& control, Random& random, const std::string& where) {
  const int mode = random.between(SQLITE_CHECKPOINT_PASSIVE, SQLITE_CHECKPOINT_TRUNCATE);
  const int rc = sqlite3_wal_checkpoint_v2(db.handle(), nullptr, mode, nullptr, nullptr);
  if (rc == SQLITE_IOERR_WRITE) {
    ++control.odd;
  } else if (rc != SQLITE_OK) {
    const std::string message = sqlite3_errmsg(db.handle());
    report(control, where, SqlError(rc, "checkpoint: " + message + " (" + std::to_string(rc) + ")"));
  }
  return rc;
}

int run_checkpointer(const Options& options, Control& control) {
  Random random(options.seed);
  Trail trail(options.trail);
  control.say("ready");
  Database db;
  std::size_t open = 0;
  while (control.proceed()) {
    try {
      if (!db.is_open() || random.chance(0.1)) {
        open = random.below(options.targets.size());
        db.open(options.targets[open].path, SQLITE_OPEN_READWRITE, random.chance(0.5) ? 0 : 2000);
        db.integer("SELECT count(*) FROM sqlite_schema");
      }
      const int rc = run_checkpoint(db, control, random, options.targets[open].path);
      trail.note("checkpoint", open, static_cast<std::uint64_t>(rc));
      if (rc == SQLITE_OK) ++control.done;
      if (rc != SQLITE_OK && rc != SQLITE_BUSY) db.close();
    } catch (const SqlError& error) {
      db.close();
      report(control, options.targets[open].path, error);
    }
    if (!control.wait_ms(random.between(0, 60))) break;
  }
  db.close();
  control.say("bye");
  return 0;
}

}  // namespace sluice::torture
