// read, open-close.
#include <fcntl.h>
#include <unistd.h>

#include <memory>
#include <vector>

#include "processes.h"
#include "worker.h"

namespace sluice::bench {
namespace {

constexpr const char* kPointQuery = "select body from t where id = ?1";
constexpr std::uint64_t kReadsPerClock = 16;

// Brings the whole file into the page cache of the file system it is read through.
void warm_up(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) fail("open " + path);
  std::vector<char> buffer(1u << 20);
  ssize_t n = 0;
  while ((n = ::read(fd, buffer.data(), buffer.size())) > 0) {
  }
  ::close(fd);
  if (n < 0) fail("read " + path);
}

void point_read(Statement& query, std::int64_t id) {
  query.bind(1, id);
  if (!query.step()) fail("no row " + std::to_string(id));
  const std::string_view body = query.view(0);
  if (body != body_of(id, body.size())) fail("row " + std::to_string(id) + " has a wrong body");
  query.reset();
}

std::uint64_t read_points(Database& database, std::int64_t rows, Random& random, std::uint64_t until_ns) {
  Statement query(database, kPointQuery);
  std::uint64_t reads = 0;
  while (now_ns() < until_ns) {
    for (std::uint64_t i = 0; i < kReadsPerClock; ++i) {
      point_read(query, 1 + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(rows))));
    }
    reads += kReadsPerClock;
  }
  return reads;
}

std::uint64_t read_scans(Database& database, std::int64_t rows, std::uint64_t until_ns) {
  Statement query(database, "select count(*), sum(length(body)) from t");
  std::uint64_t scans = 0;
  while (now_ns() < until_ns) {
    if (!query.step() || query.integer(0) != rows) fail("a scan did not see every row");
    query.reset();
    ++scans;
  }
  return scans;
}

// A WAL with frames in it, or (truncate=1) an empty one: SQLite reads differently.
void prepare_wal(Database& database, const Arguments& arguments) {
  if (const auto rows = arguments.number_or("touch", 0); rows != 0) {
    database.run("update t set body = body where id <= " + std::to_string(rows));
  }
  if (arguments.number_or("truncate", 0) != 0 && database.integer("pragma wal_checkpoint(truncate)") != 0) {
    fail("wal_checkpoint(truncate) was busy");
  }
}

}  // namespace

void run_read(const Arguments& arguments) {
  const bool read_only = arguments.number_or("readonly", 0) != 0;
  const std::string& path = arguments.text("path");
  Database database(path, read_only);
  if (const auto cache = arguments.number_or("cache", 0); cache != 0) database.run("pragma cache_size=" + std::to_string(cache));
  if (!read_only) prepare_wal(database, arguments);
  const std::int64_t rows = database.integer("select count(*) from t");
  if (rows == 0) fail(path + " has no rows");
  const bool scan = arguments.text("kind") == "scan";
  const std::uint64_t budget_ns = arguments.seconds_ns();
  Random random(arguments.number_or("seed", 1));
  warm_up(path);
  read_points(database, rows, random, now_ns() + budget_ns / 10);

  wait_for_go();
  const std::uint64_t start = now_ns();
  const std::uint64_t ops = scan ? read_scans(database, rows, start + budget_ns)
                                 : read_points(database, rows, random, start + budget_ns);
  const std::uint64_t end = now_ns();
  Report report;
  report.add("ops", ops).add("start_ns", start).add("end_ns", end).add("bytes", database.size_bytes());
  finish(report);
}

void run_open_close(const Arguments& arguments) {
  const std::string& path = arguments.text("path");
  const std::uint64_t budget_ns = arguments.seconds_ns();
  const bool held = arguments.number_or("held", 0) != 0;
  Barrier barrier(held ? 2 : 1);
  Helpers helpers;
  if (held) {
    helpers.start([&] {
      Database database(path, false);
      database.integer("select max(id) from t");
      barrier.wait();
      barrier.wait();
    });
  }
  barrier.wait();
  std::int64_t rows = 0;
  {
    Database database(path, false);
    rows = database.integer("select max(id) from t");
  }
  if (rows == 0) fail(path + " has no rows");
  Random random(1);
  const auto one = [&] {
    Database database(path, false);
    Statement query(database, kPointQuery);
    point_read(query, 1 + static_cast<std::int64_t>(random.below(static_cast<std::uint64_t>(rows))));
  };
  for (int i = 0; i < 5; ++i) one();

  wait_for_go();
  Latencies latencies;
  const std::uint64_t start = now_ns();
  std::uint64_t at = start;
  std::uint64_t ops = 0;
  while (at - start < budget_ns) {
    one();
    const std::uint64_t done = now_ns();
    latencies.add(done - at);
    at = done;
    ++ops;
  }
  Report report;
  report.add("ops", ops).add("start_ns", start).add("end_ns", at);
  latencies.report(report, "");
  finish(report);
  barrier.wait();
}

}  // namespace sluice::bench
