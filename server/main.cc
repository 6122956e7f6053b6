// sluice: the one executable. Exit codes, for every command:
//   0    done
//   1    failed (the message says what); `verify` found a mismatch; the mount was taken away from outside
//   2    wrong flags or configuration
//   3    a client command cannot reach the node, or the node cannot answer now
//   126  the application of `mount … -- APP` cannot be executed
//   127  it was not found
//   else the application's own exit status; 128 + n if signal n killed it
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <exception>

#include "server/cli/commands.h"

namespace sluice::server {

void print_error(const std::string& message) {
  std::fprintf(stderr, "sluice: %s\n", message.c_str());
}

namespace {

int run(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  std::vector<std::string> application;
  if (const auto dashes = std::find(arguments.begin(), arguments.end(), "--"); dashes != arguments.end()) {
    application.assign(dashes + 1, arguments.end());
    arguments.erase(dashes, arguments.end());
  }
  const bool mounts = !arguments.empty() && arguments.front() == "mount";
  if (!application.empty() && !mounts) {
    print_error("only 'sluice mount' takes an application behind '--'");
    return kExitUsage;
  }

  CLI::App app("Sluice: a replicated file system for SQLite", "sluice");
  app.require_subcommand(1);
  app.set_version_flag("--version", "sluice " SLUICE_VERSION);
  Command selected;
  add_mount_command(app, std::move(application), selected);
  add_client_commands(app, selected);
  add_internal_commands(app, selected);
  app.add_subcommand("version", "Print the version")->callback([&selected] {
    selected = [] {
      std::puts("sluice " SLUICE_VERSION);
      return static_cast<int>(kExitOk);
    };
  });
  std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the back
  try {
    app.parse(arguments);
  } catch (const CLI::Success& e) {
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    print_error(e.what());
    std::fputs("Run 'sluice --help' or 'sluice COMMAND --help'.\n", stderr);
    return kExitUsage;
  }
  return selected ? selected() : kExitUsage;
}

}  // namespace
}  // namespace sluice::server

int main(int argc, char** argv) {
  try {
    return sluice::server::run(argc, argv);
  } catch (const std::exception& e) {
    sluice::server::print_error(std::string("internal error: ") + e.what());
    return sluice::server::kExitFailure;
  }
}
