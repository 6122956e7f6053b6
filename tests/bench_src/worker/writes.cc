// insert, load, check.
#include <algorithm>

#include "worker.h"

namespace sluice::bench {
namespace {

constexpr std::uint64_t kWarmUpTransactions = 20;

class Inserter {
 public:
  Inserter(Database& database, std::size_t size)
      : begin_(database, "begin immediate"), insert_(database, "insert into t(id, body) values(?1, ?2)"),
        commit_(database, "commit"), size_(size), next_(database.integer("select coalesce(max(id), 0) from t") + 1) {}

  void autocommit() { insert(); }

  void transaction(std::uint64_t rows) {
    once(begin_);
    for (std::uint64_t i = 0; i < rows; ++i) insert();
    once(commit_);
  }

  std::int64_t next_id() const { return next_; }

 private:
  void insert() {
    insert_.bind(1, next_);
    insert_.bind(2, body_of(next_, size_));
    once(insert_);
    ++next_;
  }
  static void once(Statement& statement) {
    statement.step();
    statement.reset();
  }

  Statement begin_;
  Statement insert_;
  Statement commit_;
  const std::size_t size_;
  std::int64_t next_;
};

}  // namespace

void run_insert(const Arguments& arguments) {
  Database database(arguments.text("path"), false);
  database.set_modes(arguments);
  database.run(kCreateTable);
  const std::uint64_t rows = arguments.number_or("rows", 1);
  const std::uint64_t budget_ns = arguments.seconds_ns();
  Inserter inserter(database, arguments.number_or("size", 100));
  const auto one = [&] { rows == 1 ? inserter.autocommit() : inserter.transaction(rows); };
  for (std::uint64_t i = 0; i < kWarmUpTransactions; ++i) one();

  wait_for_go();
  Latencies latencies;
  const std::uint64_t start = now_ns();
  std::uint64_t at = start;
  std::uint64_t transactions = 0;
  while (at - start < budget_ns) {
    one();
    const std::uint64_t done = now_ns();
    latencies.add(done - at);
    at = done;
    ++transactions;
  }
  Report report;
  report.add("ops", transactions).add("rows", transactions * rows).add("start_ns", start).add("end_ns", at);
  report.add("rows_total", static_cast<std::uint64_t>(inserter.next_id() - 1)).add("bytes", database.size_bytes());
  latencies.report(report, "");
  finish(report);
}

void run_load(const Arguments& arguments) {
  Database database(arguments.text("path"), false);
  database.set_modes(arguments);
  database.run(kCreateTable);
  const std::uint64_t size = arguments.number_or("size", 1000);
  constexpr std::uint64_t kRowOverhead = 10;
  const std::uint64_t rows = std::max<std::uint64_t>(1, arguments.number("bytes") / (size + kRowOverhead));
  const std::uint64_t per_transaction =
      std::clamp<std::uint64_t>(arguments.number("transaction") / (size + kRowOverhead), 1, rows);
  Inserter inserter(database, size);

  wait_for_go();
  const std::uint64_t start = now_ns();
  std::uint64_t done = 0;
  std::uint64_t transactions = 0;
  for (; done < rows; ++transactions) {
    const std::uint64_t batch = std::min(per_transaction, rows - done);
    inserter.transaction(batch);
    done += batch;
  }
  const std::uint64_t end = now_ns();
  Report report;
  report.add("ops", transactions).add("rows", rows).add("start_ns", start).add("end_ns", end);
  report.add("rows_total", static_cast<std::uint64_t>(inserter.next_id() - 1)).add("bytes", database.size_bytes());
  finish(report);
}

void run_check(const Arguments& arguments) {
  Database database(arguments.text("path"), true);
  Report report;
  report.add("rows_total", static_cast<std::uint64_t>(database.integer("select count(*) from t")));
  report.add("max_id", static_cast<std::uint64_t>(database.integer("select coalesce(max(id), 0) from t")));
  if (arguments.number_or("quick_check", 0) != 0) report.add("quick_check", database.text("pragma quick_check(1)"));
  finish(report);
}

}  // namespace sluice::bench
