// A writer: sessions (connections) of transactions whose fate the ledger knows.
#include <algorithm>
#include <memory>
#include <stdexcept>

#include "database.h"
#include "ledger.h"
#include "model.h"
#include "profile.h"
#include "roles.h"

namespace sluice::torture {

namespace {

constexpr int kBusyTries = 400;
constexpr double kAttach = 0.02;

class Writer {
 public:
  Writer(const Options& options, Control& control)
      : options_(options),
        control_(control),
        random_(options.seed),
        trail_(options.trail),
        profile_(profile_named(options.targets.at(0).profile)) {
    for (const Target& target : options.targets) ledgers_.push_back(std::make_unique<Ledger>(target.ledger));
  }

  int run();

 private:
  /// One database of a transaction.
  struct Part {
    std::string schema;
    Slot* slot;
    std::string partner;
    std::uint64_t seq = 0;
    std::uint64_t tag = 0;
  };

  void session();
  void transactions(std::vector<Part>& parts);
  /// False: rolled back or busy.
  bool transaction(std::vector<Part>& parts);
  void write_parts(const std::vector<Part>& parts);
  void savepoints(const Part& part);
  bool commit();
  void settle(Part& part);

  const Options& options_;
  Control& control_;
  Random random_;
  Trail trail_;
  Profile profile_;
  std::vector<std::unique_ptr<Ledger>> ledgers_;
  Database db_;
  std::uint64_t calm_until_ns_ = 0;
  std::uint64_t burst_until_ns_ = 0;
};

int Writer::run() {
  control_.say("ready");
  int backoff_ms = 1;
  while (control_.proceed()) {
    try {
      session();
      backoff_ms = 1;
    } catch (const SqlError& error) {
      trail_.note("session failed", static_cast<std::uint64_t>(error.extended()));
      db_.close();
      report(control_, options_.targets[0].path, error);
      if (!control_.wait_ms(backoff_ms)) break;
      backoff_ms = std::min(backoff_ms * 2, 200);
    } catch (const std::logic_error& error) {
      db_.close();
      control_.violation(options_.targets[0].path + ": " + error.what());
      return 1;
    }
  }
  control_.say("bye");
  return 0;
}

void Writer::session() {
  const Target& target = options_.targets[0];
  const int busy_ms = random_.pick(std::vector<int>{0, 50, 5000, 5000});
  trail_.note("open");
  db_.open(target.path, SQLITE_OPEN_READWRITE, busy_ms);
  configure(db_, profile_, random_);
  try {
    const std::string mode = choose_journal_mode(db_, profile_, random_);
    trail_.note(("mode " + mode).c_str());
    maintain(db_, profile_, random_);
  } catch (const SqlError& error) {
    if (!error.is_busy()) throw;
    ++control_.busy;
  }
  std::vector<Part> parts;
  parts.push_back({.schema = "main",
                   .slot = &(*ledgers_[0])->slots.at(static_cast<std::size_t>(options_.writer)),
                   .partner = {}});
  if (options_.targets.size() > 1 && random_.chance(0.3)) {
    const std::size_t other = 1 + random_.below(options_.targets.size() - 1);
    // With synchronous=OFF in one of them SQLite writes no super-journal (vdbeCommit()): a kill may commit one half.
    db_.exec("PRAGMA main.synchronous=" + std::to_string(random_.between(1, 3)));
    db_.query("ATTACH ? AS other").bind(options_.targets[other].path).run();
    parts[0].partner = options_.targets[other].id;
    parts.push_back({.schema = "other",
                     .slot = &(*ledgers_[other])->slots.at(static_cast<std::size_t>(options_.writer)),
                     .partner = target.id});
  }
  transactions(parts);
  trail_.note("close");
  db_.close();
}

void Writer::transactions(std::vector<Part>& parts) {
  const int count = random_.between(1, profile_.session_transactions);
  const bool linger = random_.chance(0.5) && profile_.exclusive == 0;
  for (int i = 0; i < count; ++i) {
    if (control_.pause_wanted() && !linger) return;
    if (!control_.proceed()) return;
    if (transaction(parts)) ++control_.done;
    if (random_.chance(profile_.checkpoint)) run_checkpoint(db_, control_, random_, options_.targets[0].path);
    // Bursts at full speed and calm stretches in turn: the tail has to find both.
    const std::uint64_t now = now_ns();
    if (now > burst_until_ns_) {
      calm_until_ns_ = now + random_.below(300'000'000);
      burst_until_ns_ = calm_until_ns_ + random_.below(1'000'000'000);
    }
    if (now < calm_until_ns_ && !control_.wait_ms(random_.between(1, profile_.calm_ms))) return;
  }
}

void Writer::settle(Part& part) {
  const Progress progress = read_progress(db_, part.schema, options_.writer);
  const std::string verdict = part.slot->judge(progress.seq, progress.tag);
  trail_.note("found", progress.seq, progress.tag);
  if (!verdict.empty()) throw std::logic_error(part.schema + ": " + verdict);
  part.slot->acknowledge(progress.seq);
  part.seq = progress.seq + 1;
}

bool Writer::transaction(std::vector<Part>& parts) {
  const bool keep_in_cache = !profile_.spill_in_savepoint;
  const bool savepoint = random_.chance(profile_.savepoint);
  try {
    if (savepoint && keep_in_cache) db_.exec("PRAGMA cache_spill=OFF");
    db_.exec(random_.pick(
        std::vector<std::string>{"BEGIN IMMEDIATE", "BEGIN IMMEDIATE", "BEGIN", "BEGIN EXCLUSIVE"}));
    for (Part& part : parts) settle(part);
    for (Part& part : parts) part.tag = make_tag(random_.next(), part.seq);
    if (savepoint) savepoints(parts[0]);
    if (random_.chance(profile_.rollback)) {
      const int rows = random_.between(1, 50);
      do_garbage(db_, parts[0].schema, options_.writer, rows, profile_.body_bytes, random_);
      trail_.note("rollback", parts[0].seq);
      db_.exec("ROLLBACK");
      if (savepoint && keep_in_cache) db_.exec("PRAGMA cache_spill=ON");
      return false;
    }
    write_parts(parts);
    for (Part& part : parts) part.slot->begin(part.tag);
    trail_.note("begin", parts[0].seq, parts[0].tag);
    const bool committed = commit();
    if (committed) {
      for (Part& part : parts) part.slot->acknowledge(part.seq);
      trail_.note("acked", parts[0].seq, parts[0].tag);
    }
    if (savepoint && keep_in_cache) db_.exec("PRAGMA cache_spill=ON");
    return committed;
  } catch (const SqlError& error) {
    db_.rollback();
    if (!error.is_busy()) throw;
    ++control_.busy;
    trail_.note("busy", static_cast<std::uint64_t>(error.extended()));
    return false;
  }
}

void Writer::write_parts(const std::vector<Part>& parts) {
  const bool big = random_.chance(profile_.big);
  for (const Part& part : parts) {
    Work work;
    work.writer = options_.writer;
    work.seq = part.seq;
    work.tag = part.tag;
    work.parts = big ? random_.between(profile_.big_parts / 4, profile_.big_parts) : random_.between(1, 3);
    work.body_bytes = random_.between(0, profile_.body_bytes);
    work.partner = part.partner;
    do_work(db_, part.schema, work, random_);
  }
}

void Writer::savepoints(const Part& part) {
  db_.exec("SAVEPOINT outer_one");
  if (random_.chance(0.5)) db_.exec("SAVEPOINT inner_one");
  const int rows = random_.between(1, profile_.spill_in_savepoint ? 120 : 20);
  do_garbage(db_, part.schema, options_.writer, rows, profile_.body_bytes, random_);
  db_.exec("ROLLBACK TO outer_one");
  db_.exec("RELEASE outer_one");
}

bool Writer::commit() {
  // In rollback mode readers can keep COMMIT from its exclusive lock; the transaction stays open then.
  for (int tries = 0; tries < kBusyTries; ++tries) {
    if (sqlite3_exec(db_.handle(), "COMMIT", nullptr, nullptr, nullptr) == SQLITE_OK) return true;
    const int code = sqlite3_extended_errcode(db_.handle());
    const SqlError error(
        code, std::string("COMMIT: ") + sqlite3_errmsg(db_.handle()) + " (" + std::to_string(code) + ")");
    if (!error.is_busy() || !db_.in_transaction()) throw error;
    ++control_.busy;
    if (!control_.wait_ms(1)) break;
  }
  trail_.note("commit gave up");
  db_.rollback();
  return false;
}

}  // namespace

int run_writer(const Options& options, Control& control) {
  return Writer(options, control).run();
}

}  // namespace sluice::torture
