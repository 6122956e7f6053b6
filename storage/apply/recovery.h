// Bringing a replica's database file to the position of its change log. On a replica -wal and -shm are disposable: what
// counts is the database file, complete up to the checkpoint of the page checksums, and the log above it.
#pragma once

#include <string>

#include "storage/apply/placement.h"
#include "storage/database.h"

namespace sluice::storage::apply {

struct Recovered {
  bool present = false;           ///< there is a database file to serve
  bool needs_snapshot = false;    ///< what is there does not fit the log; `why` says how
  std::string why;
  std::uint64_t change_sets = 0;  ///< replayed
};

/// Directory of the snapshots being installed (storage/apply/snapshot_files.h).
std::string install_directory(const Store& store);

/// True when recover_database() has nothing to do but look: the file is at the log's position and the WAL has no frames.
Result<bool> is_recovered(const Store& store, Database& database);
/// Is the database file whole at the position, and durable? Then the WAL's frames are of no use.
Result<bool> is_recorded(const Store& store, Database& database);

/// Nobody may have the database open: before the mount, or with EXCLUSIVE held. In order: a snapshot whose marker was
/// written is installed again; -wal and -shm go; the log's change sets above the checkpoint are written into the file,
/// which is cut to size and synced; the checkpoint is moved; a WAL of a header only is put beside it.
/// A file that does not fit (missing, too short, other content of page 1) is set aside: needs_snapshot. An error means
/// that the disk failed.
Result<Recovered> recover_database(const Placement& placement, Database& database);

}  // namespace sluice::storage::apply
