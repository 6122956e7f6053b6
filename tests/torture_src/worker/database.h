// SQLite for the torture worker: a connection with cached statements; failures are exceptions that carry
// SQLite's code.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace sluice::torture {

class SqlError : public std::runtime_error {
 public:
  SqlError(int extended_code, const std::string& what) : std::runtime_error(what), code_(extended_code) {}
  int extended() const { return code_; }
  int primary() const { return code_ & 0xff; }
  /// BUSY, LOCKED and PROTOCOL (SQLite gave up a race for locks): the operation did not happen and may be
  /// tried again.
  bool is_busy() const;

 private:
  int code_;
};

/// A statement being bound and stepped; reset when it goes out of scope. Do not hold two of the same SQL text
/// at once.
class Query {
 public:
  Query(sqlite3* db, sqlite3_stmt* statement) : db_(db), statement_(statement) {}
  Query(const Query&) = delete;
  Query& operator=(const Query&) = delete;
  ~Query();
  Query& bind(std::int64_t value);
  Query& bind(std::string_view text);
  /// The bytes must live until the statement is reset.
  Query& bind_blob(std::string_view bytes);
  /// True: a row is there. Throws SqlError.
  bool step();
  /// Steps to the end.
  void run();
  std::int64_t integer(int column) const { return sqlite3_column_int64(statement_, column); }
  std::string text(int column) const;
  std::string_view blob(int column) const;
  int columns() const { return sqlite3_column_count(statement_); }
  int type(int column) const { return sqlite3_column_type(statement_, column); }

 private:
  sqlite3* db_;
  sqlite3_stmt* statement_;
  int next_ = 1;
};

class Database {
 public:
  Database() = default;
  Database(const std::string& path, int flags, int busy_ms) { open(path, flags, busy_ms); }
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  ~Database() { close(); }

  void open(const std::string& path, int flags, int busy_ms);
  void close() noexcept;
  bool is_open() const { return db_ != nullptr; }
  sqlite3* handle() const { return db_; }

  void exec(const std::string& sql);
  /// Prepared once per connection and SQL text.
  Query query(const std::string& sql);
  /// First column of the first row; throws SqlError(SQLITE_NOTFOUND) without one.
  std::int64_t integer(const std::string& sql);
  std::string text(const std::string& sql);
  bool in_transaction() const { return sqlite3_get_autocommit(db_) == 0; }
  /// ROLLBACK if a transaction is open; errors are SQLite's to have handled (it rolls back itself on I/O
  /// errors).
  void rollback() noexcept;

 private:
  sqlite3* db_ = nullptr;
  std::map<std::string, sqlite3_stmt*, std::less<>> statements_;
};

/// Rows of a one-column query.
std::vector<std::string> texts(Database& db, const std::string& sql);

}  // namespace sluice::torture
