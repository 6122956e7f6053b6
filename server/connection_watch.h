// A process beside the daemon that cuts its FUSE connection should the daemon be killed and not end.
//
// A daemon that is killed while one of its threads waits for its own mount (a file opened through it, a page of it being
// invalidated) never ends: the thread waits for an answer that no worker gives any more, and as long as it lives so does
// its /dev/fuse, whose closing is what would end the wait (the kernel's Documentation/filesystems/fuse.rst, "Scenario 1").
// Applications would wait with it.
#pragma once

#include "base/errors.h"
#include "base/fd.h"

namespace sluice::server {

/// Starts `sluice internal-watch` for this process. `abort_file`: see fuse::Mount::open_abort_file. It ends by itself, soon
/// after this process has. Call it on the main thread: its end is what the watch is told of.
/// `guardian`: process that takes the connection over should this one die; as long as it lives nothing is aborted. 0: none.
Result<void> start_connection_watch(UniqueFd abort_file, int guardian = 0);

/// What `sluice internal-watch` does. `parent`: process id of the daemon; the abort file is descriptor kWatchedConnection.
inline constexpr int kWatchedConnection = 3;
Result<void> watch_connection(int parent, int guardian = 0);

}  // namespace sluice::server
