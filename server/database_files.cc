#include "server/database_files.h"

#include <sqlite3.h>

#include <array>
#include <memory>

#include "storage/sqlite/database_header.h"

namespace sluice::server {
namespace {

constexpr int kRestoreBusyMs = 10'000;

class CopySink final : public storage::SnapshotSink {
 public:
  explicit CopySink(TempFile& file) : file_(file) {}
  Result<void> begin(std::uint32_t page_size, std::uint32_t) override {
    page_size_ = page_size;
    return file_.truncate(0);
  }
  Result<void> page(Pgno pgno, ByteView content) override {
    return file_.write_at(std::uint64_t{pgno.value() - 1} * page_size_, content);
  }
  Result<void> end(const storage::SnapshotEnd& end) override {
    return file_.truncate(std::uint64_t{end.page_size} * end.commit);
  }

 private:
  TempFile& file_;
  std::uint32_t page_size_ = 0;
};

struct CloseDb {
  void operator()(sqlite3* db) const { sqlite3_close(db); }
};
using Db = std::unique_ptr<sqlite3, CloseDb>;

Error sqlite_error(sqlite3* db, int rc, const std::string& what) {
  const std::string message = what + ": " + (db != nullptr ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
  switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return make_error(Errc::busy, message);
    case SQLITE_READONLY:
      return make_error(Errc::read_only, message);
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return make_error(Errc::corrupt, message);
    case SQLITE_FULL:
      return make_error(Errc::no_space, message);
    default:
      return make_error(Errc::io, message);
  }
}

Result<Db> open_db(const std::string& name, int flags, const std::string& what) {
  sqlite3* raw = nullptr;
  const int rc = sqlite3_open_v2(name.c_str(), &raw, flags, nullptr);
  Db db(raw);
  if (rc != SQLITE_OK) return sqlite_error(raw, rc, "open " + what);
  return db;
}

// A file: URI of a path, with everything but letters and '/' escaped.
std::string immutable_uri(const std::string& path) {
  std::string uri = "file:";
  for (const char c : path) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '/' || c == '.' || c == '-' || c == '_')
      uri += c;
    else
      uri += fmt::format("%{:02X}", static_cast<unsigned>(static_cast<unsigned char>(c)));
  }
  return uri + "?immutable=1";
}

// First column of every row, joined by newlines.
Result<std::string> query(sqlite3* db, const char* sql, const std::string& what) {
  sqlite3_stmt* raw = nullptr;
  int rc = sqlite3_prepare_v2(db, sql, -1, &raw, nullptr);
  const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement(raw, sqlite3_finalize);
  std::string out;
  while (rc == SQLITE_OK || rc == SQLITE_ROW) {
    rc = sqlite3_step(raw);
    if (rc != SQLITE_ROW) break;
    const auto* text = reinterpret_cast<const char*>(sqlite3_column_text(raw, 0));
    if (!out.empty()) out += '\n';
    if (text != nullptr) out += text;
  }
  if (rc != SQLITE_DONE) return sqlite_error(db, rc, what);
  return out;
}

// SQLite refuses to change the page size of a WAL database by its backup: leave WAL first.
Result<void> match_page_size(sqlite3* source, sqlite3* destination, const std::string& name) {
  TRY_ASSIGN(const std::string from, query(source, "PRAGMA page_size", "the imported file"));
  TRY_ASSIGN(const std::string to, query(destination, "PRAGMA page_size", name));
  if (from == to) return {};
  TRY_ASSIGN(const std::string mode, query(destination, "PRAGMA journal_mode", name));
  if (mode != "wal") return {};
  TRY_ASSIGN(const std::string now,
             query(destination, "PRAGMA journal_mode=DELETE", name + " (leaving WAL mode)"));
  if (now == "wal")
    return make_error(Errc::busy,
                      name + ": other connections keep it in WAL mode; try again when they are closed");
  return {};
}

}  // namespace

Result<DatabaseCopy> copy_to_temp(storage::Database& database, const std::string& tmp_dir,
                                  std::function<bool()> cancelled) {
  if (database.deleted())
    return make_error(Errc::not_found, "the database '" + database.name() + "' has no content");
  TRY_ASSIGN(TempFile file, TempFile::create(tmp_dir, "export-"));
  CopySink sink(file);
  storage::SnapshotOptions options;
  options.tmp_dir = tmp_dir;
  options.cancelled = std::move(cancelled);
  TRY_ASSIGN(const storage::SnapshotEnd end, storage::copy_database(database, options, sink));
  return DatabaseCopy{std::move(file), end};
}

Result<std::string> integrity_check(const std::string& path) {
  TRY_ASSIGN(const Db db, open_db(immutable_uri(path), SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, path));
  return query(db.get(), "PRAGMA integrity_check(20)", "integrity_check");
}

Result<void> check_importable(const std::string& path, const std::string& what) {
  TRY_ASSIGN(const auto file, real_file_system().open(path, {}));
  TRY_ASSIGN(const std::uint64_t size, file->size());
  if (size == 0) return make_error(Errc::corrupt, what + " is empty");
  std::array<std::byte, sqlite::kDatabaseHeaderSize> bytes{};
  TRY_ASSIGN(const std::size_t got, file->read_at(0, bytes));
  if (!sqlite::looks_like_database(ByteView(bytes).first(got))) {
    return make_error(Errc::corrupt, what + " is not a SQLite database");
  }
  auto header = sqlite::parse_database_header(ByteView(bytes).first(got));
  if (header.has_error()) return with_context(what, header.error());
  if (size % header->page_size != 0) {
    return make_error(Errc::corrupt,
                      fmt::format("{} has {} bytes, not a whole number of pages of {} bytes: it was cut off",
                                  what, size, header->page_size));
  }
  if (header->pages(size) > size / header->page_size) {
    return make_error(Errc::corrupt, fmt::format("{} has {} pages, its header says {}: it was cut off", what,
                                                 size / header->page_size, header->pages(size)));
  }
  auto findings = integrity_check(path);
  if (findings.has_error()) {
    Error error = findings.error();
    error.message = what + " is damaged: " + error.message;
    return error;
  }
  if (*findings != "ok") return make_error(Errc::corrupt, what + " is damaged: " + findings->substr(0, 500));
  return {};
}

Result<void> open_database(const std::string& path) {
  TRY_ASSIGN(const Db db, open_db(path, SQLITE_OPEN_READWRITE, path));
  sqlite3_busy_timeout(db.get(), kRestoreBusyMs);
  TRY(query(db.get(), "PRAGMA schema_version", path));
  return {};
}

Result<void> restore_database(const std::string& source, const std::string& destination) {
  TRY_ASSIGN(const Db from, open_db(immutable_uri(source), SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, source));
  TRY(real_file_system().make_directories(parent_directory(destination)));
  TRY_ASSIGN(const Db to, open_db(destination, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, destination));
  sqlite3_busy_timeout(to.get(), kRestoreBusyMs);
  TRY(match_page_size(from.get(), to.get(), destination));
  sqlite3_backup* backup = sqlite3_backup_init(to.get(), "main", from.get(), "main");
  if (backup == nullptr) return sqlite_error(to.get(), sqlite3_errcode(to.get()), "restore " + destination);
  const int step = sqlite3_backup_step(backup, -1);
  const int finish = sqlite3_backup_finish(backup);
  if (step != SQLITE_DONE)
    return sqlite_error(finish == SQLITE_OK ? nullptr : to.get(), step, "restore " + destination);
  if (finish != SQLITE_OK) return sqlite_error(to.get(), finish, "restore " + destination);
  return {};
}

}  // namespace sluice::server
