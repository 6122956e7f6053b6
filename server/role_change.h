// What a data directory needs before it is mounted in a role, and above all when that is not its last one.
#pragma once

#include "storage/store.h"

namespace sluice::server {

/// Replica: replays the log into the database files (a directory last used by a primary: its databases are
/// set aside in lost+found, as they may hold what the new primary does not have). Primary: a directory last
/// used by a replica is made whole: the log is replayed, the replica's WALs are folded into the files.
/// Records the role.
Result<void> prepare_role(storage::Store& store, storage::Role role);

}  // namespace sluice::server
