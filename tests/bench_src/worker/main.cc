// bench_worker COMMAND NAME=VALUE…: one measured run on one database. Sets up, prints "ready", waits for "go" on stdin,
// measures, prints one line of JSON, waits for "quit". With uid=N it gives up root first.
//
//   insert      path journal synchronous seconds rows size      autocommit inserts, or transactions of `rows` rows
//   load        path journal synchronous bytes transaction size transactions of `transaction` bytes up to `bytes`
//   read        path seconds kind=point|scan [cache] [touch] [truncate] [readonly]
//   open-close  path seconds [held]                             open, one query, close
//   mixed       path seconds readers                            one writer and some readers, each a process
//   visibility  path replica seconds pace_us poll_us            from COMMIT here to a reader there
//   check       path [quick_check]                              counts rows; starts at once
#include <grp.h>
#include <unistd.h>

#include <string>

#include "worker.h"

namespace {

void become(std::uint64_t uid) {
  const auto id = static_cast<uid_t>(uid);
  if (::setgroups(0, nullptr) != 0 || ::setgid(id) != 0 || ::setuid(id) != 0) {
    sluice::bench::fail("cannot become user " + std::to_string(uid));
  }
}

}  // namespace

int main(int argc, char** argv) {
  using namespace sluice::bench;
  if (argc < 2) fail("usage: bench_worker COMMAND NAME=VALUE… (see main.cc)");
  const std::string command = argv[1];
  const Arguments arguments(argc - 2, argv + 2);
  if (const auto uid = arguments.number_or("uid", 0); uid != 0) become(uid);
  if (command == "insert") run_insert(arguments);
  else if (command == "load") run_load(arguments);
  else if (command == "check") run_check(arguments);
  else if (command == "read") run_read(arguments);
  else if (command == "open-close") run_open_close(arguments);
  else if (command == "mixed") run_mixed(arguments);
  else if (command == "visibility") run_visibility(arguments);
  else fail("no command '" + command + "'");
  return 0;
}
