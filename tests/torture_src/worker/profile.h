// How a writer treats its database: the production settings, and everything that tortures a replicator.
#pragma once

#include <string>
#include <vector>

#include "database.h"
#include "random.h"

namespace sluice::torture {

struct Profile {
  std::string name;
  std::vector<std::string> journal_modes;  ///< one: fixed; more: switched between sessions
  std::vector<int> synchronous{0, 1, 2, 3};
  std::vector<int> autocheckpoint{1000};
  std::vector<int> cache_size{-2000};
  std::vector<std::int64_t> mmap_size{0};
  std::vector<std::int64_t> journal_size_limit{-1};
  std::vector<int> auto_vacuum{0};
  double exclusive = 0;    ///< chance that a session uses locking_mode=EXCLUSIVE
  double persist_wal = 0;  ///< … keeps the WAL at close
  double no_close_checkpoint = 0;
  double big = 0;  ///< chance that a transaction is big
  int big_parts = 0;
  int body_bytes = 200;
  double savepoint = 0.02;
  double rollback = 0.02;
  double vacuum = 0;  ///< chances before a session
  double page_size_change = 0;
  double incremental_vacuum = 0;
  double checkpoint = 0;  ///< chance after a transaction
  bool spill_in_savepoint =
      false;  ///< may make SQLite 3.40 lose commits at a crash (facts: zero-salt frames)
  int session_transactions = 400;
  int calm_ms = 20;  ///< longest pause in a calm stretch
};

/// Throws std::runtime_error for an unknown name.
Profile profile_named(const std::string& name);

/// Settings of a new connection.
void configure(Database& db, const Profile& profile, Random& random);

/// Journal mode in `db` now, after trying to switch to one of the profile's. Throws SqlError (busy) if others
/// hold it.
std::string choose_journal_mode(Database& db, const Profile& profile, Random& random);

/// VACUUM, page size changes and incremental vacuum as the profile's chances say.
void maintain(Database& db, const Profile& profile, Random& random);

}  // namespace sluice::torture
