// What the mount does for an application, without a mount: SQLite in this process opens files below a prefix, its system calls are
// led to a directory, and an Observer (fuse/observer.h) is asked around them as the file system would ask it: every write of a
// database or journal, no write of a -wal or -shm (passthrough), all syncs, truncations and removals.
//
// SQLite's POSIX locks become locks of open file descriptions: with those of the node's own they would be of one process. Hence
// at most one connection to a database at a time.
#pragma once

#include <sqlite3.h>

#include <functional>
#include <string>

#include "fuse/observer.h"

namespace sluice::powerloss {

class AppMount {
 public:
  static AppMount& instance();
  /// Once, before SQLite is used.
  void install();
  /// Files below `prefix` are those in `directory` from now on. nullptr: nobody is asked.
  void serve(const std::string& prefix, const std::string& directory, fuse::Observer* observer);
  /// Called before each operation that the observer is asked about, not within one.
  void before_operation(std::function<void()> hook);
  /// unlink(2) as an application.
  int remove(const std::string& path);
};

/// A connection; closes on destruction. Functions return SQLite's code.
class Connection {
 public:
  Connection(const std::string& path, bool create);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  int open_code() const { return code_; }
  int run(const std::string& sql) { return sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr); }
  /// First column of the first row; empty if there is none or on an error (then `code` says which).
  std::string value(const std::string& sql, int* code = nullptr);
  std::string message() const { return sqlite3_errmsg(db_); }

 private:
  sqlite3* db_ = nullptr;
  int code_ = 0;
};

}  // namespace sluice::powerloss
