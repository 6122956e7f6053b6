#include "database.h"

namespace sluice::torture {

namespace {

[[noreturn]] void raise(sqlite3* db, const std::string& doing) {
  const int code = db != nullptr ? sqlite3_extended_errcode(db) : SQLITE_NOMEM;
  const std::string message = db != nullptr ? sqlite3_errmsg(db) : "out of memory";
  throw SqlError(code, doing + ": " + message + " (" + std::to_string(code) + ")");
}

}  // namespace

bool SqlError::is_busy() const {
  return primary() == SQLITE_BUSY || primary() == SQLITE_LOCKED || primary() == SQLITE_PROTOCOL;
}

Query::~Query() {
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

Query& Query::bind(std::int64_t value) {
  sqlite3_bind_int64(statement_, next_++, value);
  return *this;
}

Query& Query::bind(std::string_view text) {
  sqlite3_bind_text64(statement_, next_++, text.data(), text.size(), SQLITE_TRANSIENT, SQLITE_UTF8);
  return *this;
}

Query& Query::bind_blob(std::string_view bytes) {
  sqlite3_bind_blob64(statement_, next_++, bytes.data(), bytes.size(), SQLITE_STATIC);
  return *this;
}

bool Query::step() {
  const int rc = sqlite3_step(statement_);
  if (rc == SQLITE_ROW) return true;
  if (rc == SQLITE_DONE) return false;
  raise(db_, sqlite3_sql(statement_));
}

void Query::run() {
  while (step()) {
  }
}

std::string Query::text(int column) const {
  const unsigned char* value = sqlite3_column_text(statement_, column);
  return value != nullptr ? reinterpret_cast<const char*>(value) : "";
}

std::string_view Query::blob(int column) const {
  const void* value = sqlite3_column_blob(statement_, column);
  const auto size = static_cast<std::size_t>(sqlite3_column_bytes(statement_, column));
  return value != nullptr ? std::string_view(static_cast<const char*>(value), size) : std::string_view();
}

void Database::open(const std::string& path, int flags, int busy_ms) {
  close();
  if (sqlite3_open_v2(path.c_str(), &db_, flags, nullptr) != SQLITE_OK) {
    const int code = db_ != nullptr ? sqlite3_extended_errcode(db_) : SQLITE_NOMEM;
    const std::string message = db_ != nullptr ? sqlite3_errmsg(db_) : "out of memory";
    close();
    throw SqlError(code, "open " + path + ": " + message + " (" + std::to_string(code) + ")");
  }
  sqlite3_extended_result_codes(db_, 1);
  sqlite3_busy_timeout(db_, busy_ms);
}

void Database::close() noexcept {
  for (auto& [sql, statement] : statements_) sqlite3_finalize(statement);
  statements_.clear();
  sqlite3_close_v2(db_);
  db_ = nullptr;
}

void Database::exec(const std::string& sql) {
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) raise(db_, sql);
}

Query Database::query(const std::string& sql) {
  auto found = statements_.find(sql);
  if (found == statements_.end()) {
    sqlite3_stmt* statement = nullptr;
    if (sqlite3_prepare_v3(db_, sql.c_str(), -1, SQLITE_PREPARE_PERSISTENT, &statement, nullptr) !=
        SQLITE_OK) {
      raise(db_, sql);
    }
    found = statements_.emplace(sql, statement).first;
  }
  return Query(db_, found->second);
}

std::int64_t Database::integer(const std::string& sql) {
  Query q = query(sql);
  if (!q.step()) throw SqlError(SQLITE_NOTFOUND, sql + ": no row");
  return q.integer(0);
}

std::string Database::text(const std::string& sql) {
  Query q = query(sql);
  if (!q.step()) throw SqlError(SQLITE_NOTFOUND, sql + ": no row");
  return q.text(0);
}

void Database::rollback() noexcept {
  if (db_ != nullptr && in_transaction()) sqlite3_exec(db_, "ROLLBACK", nullptr, nullptr, nullptr);
}

std::vector<std::string> texts(Database& db, const std::string& sql) {
  std::vector<std::string> rows;
  Query q = db.query(sql);
  while (q.step()) rows.push_back(q.text(0));
  return rows;
}

}  // namespace sluice::torture
