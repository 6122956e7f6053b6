#include "server/role_change.h"

#include <sqlite3.h>

#include <memory>

#include "base/log.h"
#include "storage/replica.h"

namespace sluice::server {
namespace {

// Lets SQLite itself move the WAL's content into the database file and remove the WAL. Every frame in it is
// in the change log already (I1).
Result<void> fold_wal(const std::string& path) {
  sqlite3* raw = nullptr;
  int rc = sqlite3_open_v2(path.c_str(), &raw, SQLITE_OPEN_READWRITE, nullptr);
  const std::unique_ptr<sqlite3, int (*)(sqlite3*)> db(raw, sqlite3_close);
  if (rc == SQLITE_OK)
    rc = sqlite3_exec(raw, "SELECT count(*) FROM sqlite_schema", nullptr, nullptr, nullptr);
  if (rc == SQLITE_OK) {
    int log = 0;
    int done = 0;
    rc = sqlite3_wal_checkpoint_v2(raw, nullptr, SQLITE_CHECKPOINT_TRUNCATE, &log, &done);
  }
  if (rc == SQLITE_OK) return {};
  return make_error(rc == SQLITE_BUSY ? Errc::in_use : Errc::corrupt,
                    "fold the WAL of " + path + " into it: " + sqlite3_errmsg(raw));
}

}  // namespace

Result<void> prepare_role(storage::Store& store, storage::Role role) {
  const auto last = store.last_role();
  // As a replica: replays the log into the files; if this was a primary's directory, sets its databases aside
  // first.
  if (role == storage::Role::replica) return storage::Replica::recover(store);
  if (last == storage::Role::replica) {
    LOG_INFO("this data directory was last a replica's; making its databases whole for a primary");
    TRY(storage::Replica::recover(store));
    for (const auto& database : store.list()) {
      if (database->deleted()) continue;
      TRY_ASSIGN(const bool there, store.fs().exists(store.backing_path(database->name())));
      if (!there) {
        return make_error(
            Errc::unavailable,
            "the database '" + database->name() +
                "' never reached this replica whole: it cannot become the primary; let it catch up first");
      }
      TRY(fold_wal(store.backing_path(database->name())));
    }
  }
  return store.set_last_role(role);
}

}  // namespace sluice::server
