// Databases that come and go, as with one database per tenant.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "database.h"
#include "ledger.h"
#include "model.h"
#include "roles.h"

namespace sluice::torture {

namespace {

class Churner {
 public:
  Churner(const Options& options, Control& control)
      : options_(options), control_(control), random_(options.seed), trail_(options.trail) {
    for (const Target& target : options.targets) ledgers_.push_back(std::make_unique<Ledger>(target.ledger));
  }
  int run();

 private:
  void visit(std::size_t index);
  void create(std::size_t index);
  void fill(std::size_t index);
  void remove(std::size_t index);
  void set(std::size_t index, Presence presence) {
    (*ledgers_[index])->presence.store(static_cast<std::uint64_t>(presence));
  }
  Slot& slot(std::size_t index) {
    return (*ledgers_[index])->slots.at(static_cast<std::size_t>(options_.writer));
  }

  const Options& options_;
  Control& control_;
  Random random_;
  Trail trail_;
  std::vector<std::unique_ptr<Ledger>> ledgers_;
};

void unlink_file(const std::string& path) {
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    throw SqlError(SQLITE_IOERR_DELETE, "unlink " + path + ": " + std::strerror(errno));
  }
}

void Churner::remove(std::size_t index) {
  const std::string& path = options_.targets[index].path;
  trail_.note("remove", index);
  set(index, Presence::changing);
  // Any order happens in the wild; without the journal first a hot one would meet the next database.
  const bool database_first = random_.chance(0.5);
  if (database_first) unlink_file(path);
  for (const char* suffix : {"-journal", "-wal", "-shm"}) unlink_file(path + suffix);
  if (!database_first) unlink_file(path);
  slot(index).acknowledge(0);
  set(index, Presence::absent);
}

void Churner::create(std::size_t index) {
  trail_.note("create", index);
  set(index, Presence::changing);
  Database db(options_.targets[index].path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, 5000);
  db.exec("PRAGMA page_size=" + std::to_string(512 << random_.below(8)));
  db.text(random_.chance(0.6) ? "PRAGMA journal_mode=WAL" : "PRAGMA journal_mode=DELETE");
  create_schema(db);
  slot(index).acknowledge(0);
  set(index, Presence::present);
}

void Churner::fill(std::size_t index) {
  Database db(options_.targets[index].path, SQLITE_OPEN_READWRITE, 5000);
  db.exec("PRAGMA synchronous=" + std::to_string(random_.below(3)));
  for (int n = random_.between(1, 30); n > 0 && !control_.pause_wanted() && !control_.quit(); --n) {
    db.exec("BEGIN IMMEDIATE");
    const Progress progress = read_progress(db, "main", options_.writer);
    const std::string verdict = slot(index).judge(progress.seq, progress.tag);
    if (!verdict.empty()) throw std::logic_error(options_.targets[index].path + ": " + verdict);
    Work work;
    work.writer = options_.writer;
    work.seq = progress.seq + 1;
    work.tag = make_tag(random_.next(), work.seq);
    work.parts = random_.between(1, 10);
    do_work(db, "main", work, random_);
    slot(index).begin(work.tag);
    db.exec("COMMIT");
    slot(index).acknowledge(work.seq);
    trail_.note("acked", work.seq, work.tag);
    ++control_.done;
  }
}

void Churner::visit(std::size_t index) {
  const auto presence = static_cast<Presence>((*ledgers_[index])->presence.load());
  if (presence == Presence::changing) return remove(index);  // a killed predecessor left it half way
  if (presence == Presence::absent) create(index);
  fill(index);
  if (random_.chance(0.3)) remove(index);
}

int Churner::run() {
  control_.say("ready");
  while (control_.proceed()) {
    try {
      visit(random_.below(options_.targets.size()));
    } catch (const SqlError& error) {
      trail_.note("failed", static_cast<std::uint64_t>(error.extended()));
      report(control_, options_.targets[0].path, error);
      if (!control_.wait_ms(20)) break;
    } catch (const std::logic_error& error) {
      control_.violation(error.what());
      return 1;
    }
    if (!control_.wait_ms(random_.between(0, 40))) break;
  }
  control_.say("bye");
  return 0;
}

}  // namespace

int run_churner(const Options& options, Control& control) {
  return Churner(options, control).run();
}

}  // namespace sluice::torture
