// What the commands of the benchmark worker share: arguments, clock, SQLite handles, the handshake with the orchestrator.
// A worker that meets anything unexpected says what on stderr and ends with status 1: a benchmark of failures is none.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::bench {

/// Prints the message to stderr and ends the worker; from a forked helper the whole worker.
[[noreturn]] void fail(const std::string& message);

/// CLOCK_MONOTONIC, the clock of Python's time.monotonic_ns().
std::uint64_t now_ns();
void sleep_until(std::uint64_t at_ns);

/// The words NAME=VALUE of the command line.
class Arguments {
 public:
  Arguments(int argc, char** argv);
  const std::string& text(const std::string& name) const;
  std::string text_or(const std::string& name, const std::string& otherwise) const;
  std::uint64_t number(const std::string& name) const;
  std::uint64_t number_or(const std::string& name, std::uint64_t otherwise) const;
  std::uint64_t seconds_ns() const;  ///< of "seconds", a decimal number

 private:
  std::map<std::string, std::string> values_;
};

/// One line of JSON.
class Report {
 public:
  Report& add(std::string_view name, std::uint64_t value);
  Report& add(std::string_view name, double value);
  Report& add(std::string_view name, std::string_view value);  ///< without characters that JSON escapes
  std::string line() const { return "{" + fields_ + "}\n"; }

 private:
  Report& field(std::string_view name, const std::string& value);
  std::string fields_;
};

/// Setting up is done: says "ready" and waits for "go".
void wait_for_go();
/// Prints the result and waits for "quit"; until then connections stay open, so that closing them is not measured.
void finish(const Report& report);

/// Durations of single operations.
class Latencies {
 public:
  Latencies() { ns_.reserve(1u << 18); }
  void add(std::uint64_t ns) { ns_.push_back(ns); }
  /// Adds PREFIXp50_us, p90, p99, max; sorts. Nothing if there are none.
  void report(Report& report, std::string_view prefix);

 private:
  std::vector<std::uint64_t> ns_;
};

class Database {
 public:
  /// Busy timeout 10 s.
  Database(const std::string& path, bool read_only);
  ~Database();
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;

  sqlite3* handle() const { return db_; }
  void run(const std::string& sql);
  std::int64_t integer(const std::string& sql);
  std::string text(const std::string& sql);
  /// Sets journal mode ("wal", "delete", …) and synchronous ("normal", "full", …); fails if SQLite did not take it.
  void set_modes(const Arguments& arguments);
  std::uint64_t size_bytes();

 private:
  sqlite3* db_ = nullptr;
};

class Statement {
 public:
  Statement(Database& database, const char* sql);
  ~Statement();
  Statement(const Statement&) = delete;
  Statement& operator=(const Statement&) = delete;

  void bind(int index, std::int64_t value);
  void bind(int index, std::string_view text);  ///< must stay alive until the statement is reset
  bool step();  ///< true: a row
  void reset();
  std::int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string_view view(int column) const;

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_ = nullptr;
};

/// The table of every workload: t(id integer primary key, body text). A row's body follows from its id: words of a small
/// vocabulary, which LZ4 compresses about as well as ordinary text.
constexpr const char* kCreateTable = "create table if not exists t(id integer primary key, body text not null)";
std::string_view body_of(std::int64_t id, std::size_t size);

/// splitmix64.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next();
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }

 private:
  std::uint64_t state_;
};

// The commands; main.cc says what each measures.
void run_insert(const Arguments& arguments);
void run_load(const Arguments& arguments);
void run_check(const Arguments& arguments);
void run_read(const Arguments& arguments);
void run_open_close(const Arguments& arguments);
void run_mixed(const Arguments& arguments);
void run_visibility(const Arguments& arguments);

}  // namespace sluice::bench
