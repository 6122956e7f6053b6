// Drives sqlite_actor, and keeps the files of a test in a directory of its own.
//
// The test process itself never opens a database with SQLite: closing any descriptor of a file drops all
// POSIX locks that the process holds on it, so a test that reads files beside its own SQLite would break the
// locks it wants to look at.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/fd.h"

namespace sluice::test {

/// mkdtemp under $TMPDIR or /tmp; removed with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string path(std::string_view name) const { return dir_ + "/" + std::string(name); }

 private:
  std::string dir_;
};

Bytes read_bytes(const std::string& path);
void write_bytes(const std::string& path, ByteView bytes);
/// Copies from+suffix to to+suffix.
void copy_files(const std::string& from, const std::string& to, const std::vector<std::string>& suffixes);

/// One SQLite connection in its own process. Failures are reported to GoogleTest. Every wait has a deadline
/// of 30 s.
class SqliteProcess {
 public:
  explicit SqliteProcess(const std::string& database);
  ~SqliteProcess();
  SqliteProcess(const SqliteProcess&) = delete;
  SqliteProcess& operator=(const SqliteProcess&) = delete;

  /// Runs statements; the rows. An SQL error is a test failure.
  std::vector<std::string> sql(const std::string& statements);
  /// Single value of a query.
  std::string value(const std::string& statement);
  /// Sends a line and does not wait for its end; the next held() does.
  void send(const std::string& line);
  /// Waits until a deletion is held (see sqlite_actor's .hold); the file's name.
  std::string held();
  /// SQLite's log messages so far.
  const std::vector<std::string>& log() const { return log_; }
  /// N of "recovered N frames/pages from …" in the log, 0 if there was none.
  std::uint32_t recovered() const;
  /// Closes the connection and waits for the process.
  void close();
  void kill();

 private:
  /// Reads answers until "ok", "error …" or "held …"; that line.
  std::string read_answer(std::vector<std::string>& rows);
  bool read_line(std::string& line);
  void reap();

  pid_t pid_ = -1;
  UniqueFd to_;
  UniqueFd from_;
  std::string buffer_;
  std::vector<std::string> log_;
};

}  // namespace sluice::test
