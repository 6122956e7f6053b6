// The guardian (`sluice mount --guardian`): a small process that starts the node as its child, the worker, keeps the descriptors
// that must outlive it (/dev/fuse, the takeover state, …), starts the next worker when one has died, and is the parent of the
// application. It never touches the mount: a process that waits for it could not help it.
//
//   worker                                        guardian
//   mounts, READY=1, keeps fuse, takeover-state   holds duplicates
//   dies                                          waits until it is reaped: nobody serves, requests wait in the kernel
//                                                 starts the next one with the descriptors
//   repeats INIT, asks for the unanswered         counts deaths, waits longer and longer between them, gives up
#pragma once

#include <string>
#include <vector>

#include "server/config.h"

namespace sluice::server {

/// Runs until the node was stopped; the exit code of `sluice`. Single-threaded: call it before anything makes threads.
int run_guardian(const Config& config);

}  // namespace sluice::server
