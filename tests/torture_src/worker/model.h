// What every database of the torture holds, and what must be true of it in every read transaction on every
// node:
//   accounts(id, balance)   transfers between accounts: the sum of all balances never changes
//   progress(w, seq, tag)   each writer's last transaction; counter.n is the sum of all seq
//   parts(w, seq, part, …)  the rows of the last transactions: all parts of a transaction or none, each with
//   its checksum pairs(w, partner, n)    number of the last transaction over this and the partner database
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "database.h"
#include "random.h"

namespace sluice::torture {

inline constexpr int kAccounts = 64;
inline constexpr int kBalance = 1000;
inline constexpr int kWindow = 40;  ///< transactions of a writer whose parts are kept

/// Creates the tables (in one transaction) unless they are there.
void create_schema(Database& db);

struct Progress {
  std::uint64_t seq = 0;
  std::uint64_t tag = 0;
};

/// What one transaction of writer `w` writes into one attached database ("main", "other").
struct Work {
  int writer = 0;
  std::uint64_t seq = 0;
  std::uint64_t tag = 0;
  int parts = 1;
  int body_bytes = 100;
  std::string partner;  ///< not empty: a transaction over two databases
};

Progress read_progress(Database& db, const std::string& schema, int writer);
/// Inside a write transaction. Throws SqlError; std::logic_error when a row that must be there is not.
void do_work(Database& db, const std::string& schema, const Work& work, Random& random);
/// Changes that a ROLLBACK or ROLLBACK TO must undo; `rows` rows are written, then changed again (a small
/// cache spills).
void do_garbage(Database& db, const std::string& schema, int writer, int rows, int body_bytes,
                Random& random);

/// State as one read transaction sees it.
struct Snapshot {
  std::uint64_t counter = 0;
  std::vector<Progress> progress;  ///< by writer
};

/// Checks the invariants of one database inside the caller's read transaction; `thorough`: all parts with
/// checksums. Returns problems, empty if none. Throws SqlError.
std::vector<std::string> check_invariants(Database& db, Random& random, bool thorough, Snapshot* out);

/// Hash over the schema and all rows of all tables.
std::uint64_t logical_digest(Database& db);

}  // namespace sluice::torture
