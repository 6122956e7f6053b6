// A real SQLite in a process of its own: sqlite_actor DATABASE. Reads one line of SQL after the other from
// standard input and answers with lines: "row a|b" for each row, "log TEXT" for messages of SQLite's error
// log, then "ok" or "error CODE TEXT". ".hold SUFFIX" makes the next deletion of a file whose name contains
// SUFFIX print "held NAME" and wait for another line of input (or for being killed).
#include <sqlite3.h>

#include <cstdio>
#include <iostream>
#include <string>

namespace {

sqlite3_vfs* real_vfs = nullptr;
std::string hold_suffix;

void say(const std::string& line) {
  std::cout << line << std::endl;
}

void on_log(void*, int, const char* text) {
  say(std::string("log ") + text);
}

int hold_delete(sqlite3_vfs*, const char* name, int sync_dir) {
  if (!hold_suffix.empty() && std::string(name).find(hold_suffix) != std::string::npos) {
    hold_suffix.clear();
    say(std::string("held ") + name);
    std::string line;
    std::getline(std::cin, line);
  }
  return real_vfs->xDelete(real_vfs, name, sync_dir);
}

int on_row(void*, int columns, char** values, char**) {
  std::string line = "row ";
  for (int i = 0; i < columns; ++i) {
    if (i > 0) line += '|';
    line += values[i] == nullptr ? "NULL" : values[i];
  }
  say(line);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  sqlite3_config(SQLITE_CONFIG_LOG, on_log, nullptr);
  sqlite3_initialize();
  real_vfs = sqlite3_vfs_find(nullptr);
  static sqlite3_vfs shim = *real_vfs;
  shim.zName = "hold";
  shim.xDelete = hold_delete;
  sqlite3_vfs_register(&shim, 1);

  sqlite3* db = nullptr;
  if (sqlite3_open(argv[1], &db) != SQLITE_OK) return 3;
  sqlite3_busy_timeout(db, 10000);
  say("ok");
  std::string line;
  while (std::getline(std::cin, line)) {
    if (line.rfind(".hold ", 0) == 0) {
      hold_suffix = line.substr(6);
      say("ok");
      continue;
    }
    const int rc = sqlite3_exec(db, line.c_str(), on_row, nullptr, nullptr);
    say(rc == SQLITE_OK ? "ok"
                        : "error " + std::to_string(sqlite3_extended_errcode(db)) + " " + sqlite3_errmsg(db));
  }
  sqlite3_close(db);
  return 0;
}
