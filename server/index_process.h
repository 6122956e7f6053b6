// The process that maps wal-indexes for a replica on the plain path: storage/apply/index_helper.h.
#pragma once

#include "storage/replica.h"

namespace sluice::server {

/// Starts `sluice internal-wal-index`. It ends when the other end of its socket, which only this process has, is closed.
Result<storage::HelperProcess> start_index_process();

/// What `sluice internal-wal-index` does.
int run_index_process();

}  // namespace sluice::server
