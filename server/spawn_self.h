// Processes of our own program beside the node.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/errors.h"

namespace sluice::server {

/// Starts `sluice ARGUMENTS…` with the descriptor `inherited` as its descriptor `as`, all others that are close-on-exec closed, and all
/// signals blocked: the terminal's and the service manager's are for the node.
Result<pid_t> spawn_self(std::vector<std::string> arguments, int inherited, int as);

}  // namespace sluice::server
