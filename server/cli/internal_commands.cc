#include <CLI/CLI.hpp>
#include <memory>

#include "fuse/mount.h"
#include "server/cli/commands.h"
#include "server/connection_watch.h"
#include "server/database_files.h"
#include "server/index_process.h"

namespace sluice::server {

void add_internal_commands(CLI::App& app, Command& selected) {
  auto* restore =
      app.add_subcommand("internal-restore", "Make DESTINATION a copy of SOURCE (used by imports)")
          ->group("");
  auto paths = std::make_shared<std::pair<std::string, std::string>>();
  restore->add_option("SOURCE", paths->first)->required();
  restore->add_option("DESTINATION", paths->second)->required();
  restore->callback([paths, &selected] {
    selected = [paths]() -> int {
      const auto restored = restore_database(paths->first, paths->second);
      if (restored.has_error()) print_error(restored.error().to_string());
      return restored.has_error() ? kExitFailure : kExitOk;
    };
  });
  auto* open = app.add_subcommand("internal-open", "Open PATH, which rolls a hot journal back")->group("");
  open->add_option("PATH", paths->first)->required();
  open->callback([paths, &selected] {
    selected = [paths]() -> int {
      const auto opened = open_database(paths->first);
      if (opened.has_error()) print_error(opened.error().to_string());
      return opened.has_error() ? kExitFailure : kExitOk;
    };
  });
  app.add_subcommand("internal-wal-index", "Store into the wal-indexes of a mount for the node that serves it")
      ->group("")
      ->callback([&selected] { selected = [] { return run_index_process(); }; });
  auto* watch = app.add_subcommand("internal-watch", "Abort the mount of PROCESS if it is killed and does not end")->group("");
  auto process = std::make_shared<int>(0);
  watch->add_option("PROCESS", *process)->required();
  auto guardian = std::make_shared<int>(0);
  watch->add_option("GUARDIAN", *guardian);
  watch->callback([process, guardian, &selected] {
    selected = [process, guardian]() -> int {
      const auto watched = watch_connection(*process, *guardian);
      if (watched.has_error()) print_error(watched.error().to_string());
      return watched.has_error() ? kExitFailure : kExitOk;
    };
  });
  auto* check = app.add_subcommand("internal-takeover-check", "Can this program take over from the node whose state is "
                                                              "standard input?")->group("");
  check->callback([&selected] {
    selected = []() -> int {
      const auto checked = fuse::Mount::check_takeover(STDIN_FILENO);
      if (checked.has_error()) print_error(checked.error().message);
      return checked.has_error() ? kExitFailure : kExitOk;
    };
  });
}

}  // namespace sluice::server
