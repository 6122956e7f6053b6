// Whole databases as files: consistent copies out, checked copies in, integrity checks by SQLite itself.
#pragma once

#include <functional>
#include <string>

#include "base/mutex.h"
#include "server/temp_file.h"
#include "storage/snapshot.h"
#include "storage/store.h"

namespace sluice::server {

struct DatabaseCopy {
  TempFile file;
  storage::SnapshotEnd end;
};
/// A copy of `database` at one position, while writers and readers go on. Slow-pool threads. Errc::not_found:
/// it has no content; Errc::cancelled; Errc::busy: a rollback transaction stayed open.
Result<DatabaseCopy> copy_to_temp(storage::Database& database, const std::string& tmp_dir,
                                  std::function<bool()> cancelled);

/// PRAGMA integrity_check of a file that nobody changes (opened immutable: no locks, no journal files). "ok",
/// or SQLite's findings. Errc::corrupt: SQLite cannot read it as a database at all.
Result<std::string> integrity_check(const std::string& path);

/// Errc::corrupt with what is wrong: not a SQLite database, size not a whole number of pages, pages missing,
/// damaged by integrity_check. `what` names the file in messages.
Result<void> check_importable(const std::string& path, const std::string& what);

/// What `sluice internal-restore SRC DST` does, in its own process: makes DST (a path in the mount, used as
/// an ordinary client) a copy of the database SRC in one SQLite transaction. Creates DST and its directories
/// if missing.
Result<void> restore_database(const std::string& source, const std::string& destination);

/// Runs restore_database in a child process: this process may not use SQLite on its own mount (closing a file
/// drops a process' POSIX locks, and capture tells clients by their process).
Result<void> restore_in_child(const std::string& source, const std::string& destination,
                              const std::function<bool()>& cancelled);

/// What `sluice internal-open PATH` does: opens and reads the database as any client would, which rolls a hot
/// journal back.
Result<void> open_database(const std::string& path);
/// open_database in a child process, for as long as the rollback of a large transaction may take.
Result<void> open_in_child(const std::string& path, const std::function<bool()>& cancelled);

}  // namespace sluice::server
