#include "worker.h"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "processes.h"

namespace sluice::bench {
namespace {

constexpr int kBusyTimeoutMs = 10'000;

std::string read_line() {
  std::string line;
  char c = 0;
  for (;;) {
    const ssize_t n = ::read(STDIN_FILENO, &c, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) std::exit(1);  // the orchestrator is gone
    if (c == '\n') return line;
    line.push_back(c);
  }
}

void write_all(std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = ::write(STDOUT_FILENO, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) std::exit(1);
    text.remove_prefix(static_cast<std::size_t>(n));
  }
}

void expect_line(std::string_view wanted) {
  if (read_line() != wanted) fail("expected '" + std::string(wanted) + "' on stdin");
}

std::string make_text(std::size_t size) {
  constexpr std::array<const char*, 32> kWords = {
      "order",  "invoice", "customer", "status", "pending", "shipped", "amount", "created", "updated", "2026-11-20", "12:31:07",
      "Berlin", "Paris",   "Toronto",  "null",   "true",    "false",   "email",  "example", "session", "request",    "404",
      "200",    "cache",   "user_id",  "total",  "currency", "EUR",    "USD",    "note",    "delivered", "warehouse"};
  Random random(42);
  std::string text;
  text.reserve(size + 16);
  while (text.size() < size) {
    text += kWords[random.below(kWords.size())];
    text += random.below(4) == 0 ? std::to_string(random.below(100'000)) : std::string(",");
  }
  text.resize(size);
  return text;
}

}  // namespace

void fail(const std::string& message) {
  std::fprintf(stderr, "bench_worker: %s\n", message.c_str());
  end_parent_of_helper();
  std::_Exit(1);
}

std::uint64_t now_ns() {
  timespec ts{};
  ::clock_gettime(CLOCK_MONOTONIC, &ts);
  return static_cast<std::uint64_t>(ts.tv_sec) * 1'000'000'000u + static_cast<std::uint64_t>(ts.tv_nsec);
}

void sleep_until(std::uint64_t at_ns) {
  timespec ts{};
  ts.tv_sec = static_cast<time_t>(at_ns / 1'000'000'000u);
  ts.tv_nsec = static_cast<long>(at_ns % 1'000'000'000u);
  while (::clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, nullptr) == EINTR) {
  }
}

Arguments::Arguments(int argc, char** argv) {
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    const auto equals = word.find('=');
    if (equals == std::string::npos) fail("not NAME=VALUE: " + word);
    values_[word.substr(0, equals)] = word.substr(equals + 1);
  }
}

const std::string& Arguments::text(const std::string& name) const {
  const auto it = values_.find(name);
  if (it == values_.end()) fail("missing " + name + "=");
  return it->second;
}

std::string Arguments::text_or(const std::string& name, const std::string& otherwise) const {
  return values_.contains(name) ? text(name) : otherwise;
}

std::uint64_t Arguments::number(const std::string& name) const {
  const std::string& value = text(name);
  char* end = nullptr;
  const std::uint64_t number = std::strtoull(value.c_str(), &end, 10);
  if (value.empty() || *end != '\0') fail("not a number: " + name + "=" + value);
  return number;
}

std::uint64_t Arguments::number_or(const std::string& name, std::uint64_t otherwise) const {
  return values_.contains(name) ? number(name) : otherwise;
}

std::uint64_t Arguments::seconds_ns() const {
  const double seconds = std::strtod(text("seconds").c_str(), nullptr);
  if (!(seconds > 0 && seconds < 3600)) fail("seconds must be between 0 and 3600");
  return static_cast<std::uint64_t>(seconds * 1e9);
}

Report& Report::field(std::string_view name, const std::string& value) {
  if (!fields_.empty()) fields_ += ", ";
  fields_ += "\"" + std::string(name) + "\": " + value;
  return *this;
}

Report& Report::add(std::string_view name, std::uint64_t value) { return field(name, std::to_string(value)); }
Report& Report::add(std::string_view name, std::string_view value) { return field(name, "\"" + std::string(value) + "\""); }

Report& Report::add(std::string_view name, double value) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.9g", value);
  return field(name, buffer);
}

void wait_for_go() {
  write_all("ready\n");
  expect_line("go");
}

void finish(const Report& report) {
  write_all(report.line());
  expect_line("quit");
}

void Latencies::report(Report& report, std::string_view prefix) {
  if (ns_.empty()) return;
  std::sort(ns_.begin(), ns_.end());
  const auto add = [&](const char* name, std::size_t permille) {
    const std::size_t at = std::min(ns_.size() - 1, ns_.size() * permille / 1000);
    report.add(std::string(prefix) + name, static_cast<double>(ns_[at]) / 1000);
  };
  add("p50_us", 500);
  add("p90_us", 900);
  add("p99_us", 990);
  add("max_us", 1000);
}

Database::Database(const std::string& path, bool read_only) {
  const int flags = read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
  if (sqlite3_open_v2(path.c_str(), &db_, flags, nullptr) != SQLITE_OK) fail("open " + path + ": " + sqlite3_errmsg(db_));
  sqlite3_busy_timeout(db_, kBusyTimeoutMs);
}

Database::~Database() {
  if (sqlite3_close(db_) != SQLITE_OK) fail(std::string("close: ") + sqlite3_errmsg(db_));
}

void Database::run(const std::string& sql) {
  char* message = nullptr;
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, &message) != SQLITE_OK) {
    fail(sql + ": " + (message != nullptr ? message : "?") + " (" + std::to_string(sqlite3_extended_errcode(db_)) + ")");
  }
}

std::int64_t Database::integer(const std::string& sql) {
  Statement statement(*this, sql.c_str());
  return statement.step() ? statement.integer(0) : 0;
}

std::string Database::text(const std::string& sql) {
  Statement statement(*this, sql.c_str());
  return statement.step() ? std::string(statement.view(0)) : std::string();
}

void Database::set_modes(const Arguments& arguments) {
  const std::string& journal = arguments.text("journal");
  if (const auto got = text("pragma journal_mode=" + journal); got != journal) {
    fail("journal_mode=" + journal + " became '" + got + "'");
  }
  run("pragma synchronous=" + arguments.text("synchronous"));
}

std::uint64_t Database::size_bytes() {
  return static_cast<std::uint64_t>(integer("pragma page_count") * integer("pragma page_size"));
}

Statement::Statement(Database& database, const char* sql) : db_(database.handle()) {
  if (sqlite3_prepare_v2(db_, sql, -1, &statement_, nullptr) != SQLITE_OK) {
    fail(std::string(sql) + ": " + sqlite3_errmsg(db_) + " (" + std::to_string(sqlite3_extended_errcode(db_)) + ")");
  }
}

Statement::~Statement() { sqlite3_finalize(statement_); }

void Statement::bind(int index, std::int64_t value) {
  if (sqlite3_bind_int64(statement_, index, value) != SQLITE_OK) fail(std::string("bind: ") + sqlite3_errmsg(db_));
}

void Statement::bind(int index, std::string_view text) {
  if (sqlite3_bind_text(statement_, index, text.data(), static_cast<int>(text.size()), SQLITE_STATIC) != SQLITE_OK) {
    fail(std::string("bind: ") + sqlite3_errmsg(db_));
  }
}

bool Statement::step() {
  const int code = sqlite3_step(statement_);
  if (code == SQLITE_ROW) return true;
  if (code != SQLITE_DONE) {
    fail(std::string(sqlite3_sql(statement_)) + ": " + sqlite3_errmsg(db_) + " (" +
         std::to_string(sqlite3_extended_errcode(db_)) + ")");
  }
  return false;
}

void Statement::reset() { sqlite3_reset(statement_); }

std::string_view Statement::view(int column) const {
  const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(statement_, column));
  return text == nullptr ? std::string_view() : std::string_view(text, static_cast<std::size_t>(sqlite3_column_bytes(statement_, column)));
}

std::uint64_t Random::next() {
  state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

std::string_view body_of(std::int64_t id, std::size_t size) {
  constexpr std::size_t kPool = 4u << 20;
  static const std::string pool = make_text(kPool);
  if (size > kPool / 2) fail("size= is too large");
  const std::size_t at = Random(static_cast<std::uint64_t>(id)).below(kPool - size);
  return std::string_view(pool).substr(at, size);
}

}  // namespace sluice::bench
