// Reads an accounts database until its standard input ends, and checks what every reader may rely on: a transaction sees
// one state, states never go backwards, no error but BUSY on opening.
//
//   apply_reader MODE PATH      MODE: point | reopen | long | readonly | mmap | hold
//
// Prints "ready" after the first read, then "reads N states M" and exits with 0; or says what was wrong and exits with 1.
// hold: one transaction, open until a line comes on the standard input; then prints the n of the state after it.
#include <poll.h>
#include <sqlite3.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

namespace {

[[noreturn]] void wrong(const std::string& what) {
  std::printf("WRONG %s\n", what.c_str());
  std::fflush(stdout);
  std::_Exit(1);
}

sqlite3* open_database(const std::string& path, const std::string& mode) {
  sqlite3* db = nullptr;
  const int flags = mode == "readonly" ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE;
  if (sqlite3_open_v2(path.c_str(), &db, flags, nullptr) != SQLITE_OK) wrong("open");
  sqlite3_busy_timeout(db, 10000);
  if (mode == "mmap") sqlite3_exec(db, "PRAGMA mmap_size=268435456", nullptr, nullptr, nullptr);
  if (mode == "point") sqlite3_exec(db, "PRAGMA cache_size=5", nullptr, nullptr, nullptr);
  return db;
}

void exec(sqlite3* db, const char* sql) {
  if (sqlite3_exec(db, sql, nullptr, nullptr, nullptr) != SQLITE_OK) {
    wrong(std::string(sql) + ": " + sqlite3_errmsg(db) + " " + std::to_string(sqlite3_extended_errcode(db)));
  }
}

long long integer(sqlite3* db, const char* sql) {
  sqlite3_stmt* statement = nullptr;
  if (sqlite3_prepare_v2(db, sql, -1, &statement, nullptr) != SQLITE_OK || sqlite3_step(statement) != SQLITE_ROW) {
    wrong(std::string(sql) + ": " + sqlite3_errmsg(db) + " " + std::to_string(sqlite3_extended_errcode(db)));
  }
  const long long value = sqlite3_column_int64(statement, 0);
  sqlite3_finalize(statement);
  return value;
}

void integrity(sqlite3* db) {
  sqlite3_stmt* statement = nullptr;
  sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &statement, nullptr);
  if (sqlite3_step(statement) != SQLITE_ROW) wrong(std::string("integrity_check: ") + sqlite3_errmsg(db));
  const std::string answer = reinterpret_cast<const char*>(sqlite3_column_text(statement, 0));
  sqlite3_finalize(statement);
  if (answer != "ok") wrong("integrity_check: " + answer);
}

void hold(sqlite3* db) {
  exec(db, "BEGIN");
  const long long n = integer(db, "SELECT n FROM meta");
  std::printf("ready %lld\n", n);
  std::fflush(stdout);
  char c = 0;
  while (read(0, &c, 1) == 1 && c != '\n') continue;
  if (integer(db, "SELECT COUNT(*) FROM journal") != n) wrong("count changed inside a transaction");
  if (integer(db, "SELECT SUM(v) FROM account") != 0) wrong("sum of accounts");
  exec(db, "COMMIT");
  std::printf("then %lld\n", integer(db, "SELECT n FROM meta"));
  std::fflush(stdout);
  integrity(db);
  sqlite3_close(db);
}

bool input_ended() {
  pollfd in{0, POLLIN, 0};
  return poll(&in, 1, 0) > 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string mode = argv[1];
  const std::string path = argv[2];
  sqlite3* db = open_database(path, mode);
  if (mode == "hold") {
    hold(db);
    return 0;
  }
  long long last = -1;
  long long reads = 0;
  long long states = 0;
  while (!input_ended()) {
    if (mode == "reopen") {
      sqlite3_close(db);
      db = open_database(path, mode);
    }
    exec(db, "BEGIN");
    const long long n = integer(db, "SELECT n FROM meta");
    if (n < last) wrong("went back from " + std::to_string(last) + " to " + std::to_string(n));
    if (integer(db, "SELECT SUM(v) FROM account") != 0) wrong("sum of accounts");
    if (integer(db, "SELECT COUNT(*) FROM journal") != n) wrong("count of journal");
    if (reads % 50 == 0) integrity(db);
    if (mode == "long") {
      std::this_thread::sleep_for(std::chrono::milliseconds(150));
      if (integer(db, "SELECT COUNT(*) FROM journal") != n) wrong("count changed inside a transaction");
    }
    if (integer(db, "SELECT n FROM meta") != n) wrong("n changed inside a transaction");
    exec(db, "COMMIT");
    if (reads++ == 0) {
      std::printf("ready\n");
      std::fflush(stdout);
    }
    if (n != last) ++states;
    last = n;
  }
  sqlite3_close(db);
  std::printf("reads %lld states %lld\n", reads, states);
  return 0;
}
