// The subcommands of `sluice`. Each registers its flags on the app and sets what is to be run after parsing;
// exit codes are main's table.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace sluice::server {

/// README, "Exit codes".
enum ExitCode : int {
  kExitOk = 0,
  kExitFailure = 1,      ///< the operation failed; `verify` found a mismatch
  kExitUsage = 2,        ///< wrong flags or configuration
  kExitUnreachable = 3,  ///< a client command cannot reach the node
};

using Command = std::function<int()>;

/// `application`: what stood behind "--".
void add_mount_command(CLI::App& app, std::vector<std::string> application, Command& selected);
void add_client_commands(CLI::App& app, Command& selected);
/// Hidden: what an import runs as an ordinary client of the mount.
void add_internal_commands(CLI::App& app, Command& selected);

/// Prints "sluice: MESSAGE" to standard error.
void print_error(const std::string& message);

}  // namespace sluice::server
