#include "profile.h"

#include <stdexcept>

namespace sluice::torture {

namespace {

Profile production() {
  Profile p;
  p.journal_modes = {"wal"};
  p.synchronous = {1, 1, 2};
  p.cache_size = {-64000};
  p.mmap_size = {268435456};
  p.auto_vacuum = {2};
  p.incremental_vacuum = 0.2;
  p.vacuum = 0.02;
  p.session_transactions = 4000;
  p.calm_ms = 5;
  return p;
}

Profile wal() {
  Profile p;
  p.journal_modes = {"wal"};
  p.autocheckpoint = {1, 2, 5, 20, 1000};
  p.cache_size = {5, -2000};
  p.mmap_size = {0, 1 << 20};
  p.journal_size_limit = {-1, 0, 20000};
  p.persist_wal = 0.2;
  p.no_close_checkpoint = 0.3;
  p.big = 0.01;
  p.big_parts = 60;
  p.vacuum = 0.05;
  p.checkpoint = 0.01;
  return p;
}

Profile rollback_journal(const char* mode) {
  Profile p;
  p.journal_modes = {mode};
  p.cache_size = {5, -2000};
  p.mmap_size = {0, 1 << 20};
  p.journal_size_limit = {-1, 0, 20000};
  p.big = 0.01;
  p.big_parts = 60;
  p.vacuum = 0.05;
  p.page_size_change = 0.05;
  p.session_transactions = 200;
  return p;
}

// Page sizes stay: a VACUUM that changes it beside switches of the journal mode breaks the database on a plain directory,
// too (SQLite 3.40.1; seen with tests/torture --raw --seed 1).
Profile switching() {
  Profile p;
  p.journal_modes = {"wal", "delete", "truncate", "persist"};
  p.autocheckpoint = {1, 20, 1000};
  p.cache_size = {5, -2000};
  p.auto_vacuum = {0, 1, 2};
  p.persist_wal = 0.2;
  p.vacuum = 0.1;
  p.incremental_vacuum = 0.3;
  p.session_transactions = 60;
  return p;
}

Profile exclusive() {
  Profile p = wal();
  p.exclusive = 0.6;
  p.vacuum = 0.03;
  p.session_transactions = 150;
  return p;
}

Profile big() {
  Profile p;
  p.journal_modes = {"wal"};
  p.autocheckpoint = {1000, 100};
  p.cache_size = {-500, -8000};
  p.big = 0.1;
  p.big_parts = 500;
  p.body_bytes = 6000;
  p.vacuum = 0.3;
  p.session_transactions = 60;
  p.calm_ms = 60;
  return p;
}

Profile zero_salt() {
  Profile p = wal();
  p.cache_size = {5};
  p.savepoint = 0.3;
  p.spill_in_savepoint = true;
  return p;
}

}  // namespace

Profile profile_named(const std::string& name) {
  Profile p;
  if (name == "production") {
    p = production();
  } else if (name == "wal") {
    p = wal();
  } else if (name == "delete" || name == "truncate" || name == "persist") {
    p = rollback_journal(name.c_str());
  } else if (name == "switching") {
    p = switching();
  } else if (name == "exclusive") {
    p = exclusive();
  } else if (name == "big") {
    p = big();
  } else if (name == "zero_salt") {
    p = zero_salt();
  } else {
    throw std::runtime_error("no profile named " + name);
  }
  p.name = name;
  return p;
}

void configure(Database& db, const Profile& profile, Random& random) {
  db.exec("PRAGMA foreign_keys=ON");
  db.exec("PRAGMA temp_store=MEMORY");
  db.exec("PRAGMA synchronous=" + std::to_string(random.pick(profile.synchronous)));
  db.exec("PRAGMA wal_autocheckpoint=" + std::to_string(random.pick(profile.autocheckpoint)));
  db.exec("PRAGMA cache_size=" + std::to_string(random.pick(profile.cache_size)));
  db.exec("PRAGMA mmap_size=" + std::to_string(random.pick(profile.mmap_size)));
  db.exec("PRAGMA journal_size_limit=" + std::to_string(random.pick(profile.journal_size_limit)));
  // Before or after the first access: EXCLUSIVE then uses a heap wal-index or keeps the shared one.
  const bool use_exclusive = random.chance(profile.exclusive);
  const bool early = random.chance(0.5);
  if (use_exclusive && early) db.exec("PRAGMA locking_mode=EXCLUSIVE");
  db.integer("SELECT count(*) FROM sqlite_schema");
  if (use_exclusive && !early) db.exec("PRAGMA locking_mode=EXCLUSIVE");
  int keep_wal = random.chance(profile.persist_wal) ? 1 : 0;
  sqlite3_file_control(db.handle(), "main", SQLITE_FCNTL_PERSIST_WAL, &keep_wal);
  int no_checkpoint = random.chance(profile.no_close_checkpoint) ? 1 : 0;
  sqlite3_db_config(db.handle(), SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, no_checkpoint, nullptr);
}

std::string choose_journal_mode(Database& db, const Profile& profile, Random& random) {
  const std::string wanted = random.pick(profile.journal_modes);
  const std::string now = db.text("PRAGMA journal_mode");
  if (now == wanted) return now;
  // The non-WAL modes are the connection's own choice, the change to or from WAL is the database's.
  return db.text("PRAGMA journal_mode=" + wanted);
}

void maintain(Database& db, const Profile& profile, Random& random) {
  if (random.chance(profile.page_size_change)) {
    // Only outside WAL; whoever else is connected makes this fail with BUSY.
    db.exec("PRAGMA journal_mode=DELETE");
    db.exec("PRAGMA page_size=" + std::to_string(512 << random.below(8)));
    db.exec("VACUUM");
    choose_journal_mode(db, profile, random);
  }
  if (random.chance(profile.vacuum)) {
    db.exec("PRAGMA auto_vacuum=" + std::to_string(random.pick(profile.auto_vacuum)));
    db.exec("VACUUM");
  }
  if (random.chance(profile.incremental_vacuum)) {
    db.exec("PRAGMA incremental_vacuum(" + std::to_string(random.between(1, 100)) + ")");
  }
}

}  // namespace sluice::torture
