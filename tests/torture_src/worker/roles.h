// What a worker process can be. Each run_… returns the exit code.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "control.h"

namespace sluice::torture {

/// A database the worker was told of: "ID:PROFILE:PATH"; its ledger is LEDGERS/ID.
struct Target {
  std::string id;
  std::string profile;
  std::string path;
  std::string ledger;
};

struct Options {
  std::string role;
  std::uint64_t seed = 1;
  int writer = 0;  ///< number of this writer in its databases' ledgers
  int node = 0;    ///< 0: primary, 1: replica
  std::string ledgers;
  std::string trail;
  std::string scratch;  ///< directory outside the mount
  int page_size = 4096;
  std::vector<Target> targets;
};

/// Commits to targets[0], at times together with one of the others.
int run_writer(const Options& options, Control& control);
/// Creates, fills, deletes and recreates its databases; nobody else writes to them.
int run_churner(const Options& options, Control& control);
/// Checks the invariants of all targets in turn, with short, long and reused read transactions.
int run_reader(const Options& options, Control& control);
/// Runs all four kinds of checkpoint on the targets.
int run_checkpointer(const Options& options, Control& control);

/// Creates targets[0] with the page size and the tables.
int run_init(const Options& options);
/// Checks targets[0] thoroughly and prints one line of JSON: problems, digest, size, counter, pairs. The path
/// "-" in `ledgers` compares with no ledger.
int run_verify(const Options& options);

/// A checkpoint of any mode. BUSY is counted, and so is IOERR_WRITE: the guard against SQLite's WAL-reset bug
/// refuses a stale checkpointer; anything else is reported. Returns SQLite's code.
class Database;
class Random;
int run_checkpoint(Database& db, Control& control, Random& random, const std::string& where);

/// Tells the orchestrator about an exception from SQLite, unless it is BUSY (counted).
class SqlError;
void report(Control& control, const std::string& where, const SqlError& error);

}  // namespace sluice::torture
