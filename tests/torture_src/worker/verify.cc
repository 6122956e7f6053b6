// One-shot roles: making a database and judging one.
#include <cstdio>

#include "database.h"
#include "ledger.h"
#include "model.h"
#include "roles.h"

namespace sluice::torture {

namespace {

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  }
  return out + "\"";
}

void judge_ledger(const Options& options, const Snapshot& seen, std::vector<std::string>* problems) {
  const Ledger ledger(options.targets[0].ledger);
  for (std::size_t writer = 0; writer < kWriters; ++writer) {
    const Progress progress = writer < seen.progress.size() ? seen.progress[writer] : Progress{};
    const std::string verdict = ledger->slots[writer].judge(progress.seq, progress.tag);
    if (!verdict.empty()) problems->push_back("writer " + std::to_string(writer) + ": " + verdict);
  }
}

}  // namespace

int run_init(const Options& options) {
  Database db(options.targets.at(0).path, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, 5000);
  db.exec("PRAGMA page_size=" + std::to_string(options.page_size));
  const std::string& profile = options.targets[0].profile;
  const bool rollback = profile == "delete" || profile == "truncate" || profile == "persist";
  db.exec("PRAGMA auto_vacuum=" + std::string(profile == "production" ? "2" : "0"));
  db.text("PRAGMA journal_mode=" + (rollback ? profile : "wal"));
  create_schema(db);
  return 0;
}

int run_verify(const Options& options) {
  Random random(options.seed);
  std::vector<std::string> problems;
  Snapshot seen;
  std::uint64_t digest = 0;
  std::int64_t pages = 0;
  std::string pairs;
  std::string mode;
  try {
    Database db(options.targets.at(0).path, SQLITE_OPEN_READWRITE, 30000);
    db.exec("BEGIN");
    problems = check_invariants(db, random, true, &seen);
    if (options.ledgers != "-") judge_ledger(options, seen, &problems);
    digest = logical_digest(db);
    const std::string integrity = db.text("PRAGMA integrity_check(5)");
    if (integrity != "ok") problems.push_back("INTEGRITY: " + integrity);
    pages = db.integer("PRAGMA page_count");
    mode = db.text("PRAGMA journal_mode");
    Query q = db.query("SELECT w, partner, n FROM pairs ORDER BY w, partner");
    while (q.step())
      pairs += (pairs.empty() ? "" : ",") + quoted(q.text(0) + ":" + q.text(1)) + ":" + q.text(2);
    db.exec("COMMIT");
  } catch (const SqlError& error) {
    problems.push_back(std::string("SQL: ") + error.what());
  }
  std::string list;
  for (const std::string& problem : problems) list += (list.empty() ? "" : ",") + quoted(problem);
  std::printf(
      "{\"digest\":\"%016llx\",\"pages\":%lld,\"mode\":\"%s\",\"counter\":%llu,\"pairs\":{%s},\"problems\":[%"
      "s]}\n",
      static_cast<unsigned long long>(digest), static_cast<long long>(pages), mode.c_str(),
      static_cast<unsigned long long>(seen.counter), pairs.c_str(), list.c_str());
  return problems.empty() ? 0 : 1;
}

}  // namespace sluice::torture
