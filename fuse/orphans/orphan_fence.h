// I9: no database is served again before every process that outlived the mount it was opened through is fenced off; what such
// orphans committed is kept. Why they exist, and each step: docs/ARCHITECTURE.md, "Orphans".
#pragma once

#include <map>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "fuse/orphans/file_holders.h"
#include "storage/store.h"

namespace sluice::fuse {

/// Works on DATA/fs and DATA/fenced of one node. Thread-safe.
class OrphanFence {
 public:
  /// `ending_ms`: how long processes that were killed together with their node may take to end.
  explicit OrphanFence(storage::Store& store, int ending_ms = 300) : store_(store), ending_ms_(ending_ms) {}

  /// Once, when a fresh mount is about to be made and nobody else reads or writes database files (before recovery). Fences
  /// databases one by one; finishes what an earlier start began. An error means that the directory cannot be searched.
  Result<void> run() EXCLUDES(mutex_);
  /// Instead of run() when the mount of the process before is taken over, clients and all: what it did not serve is not served
  /// now either.
  Result<void> resume() EXCLUDES(mutex_);
  /// Databases that could not be fenced: they must not be served. The errors name processes and remedy.
  const std::map<std::string, Error>& refused() const { return refused_; }

  /// Forgets orphans that have ended and removes what was kept for them. At start-up (run() does), and now and then.
  void sweep() EXCLUDES(mutex_);
  /// Fenced processes as of the last sweep, by database.
  std::map<std::string, std::vector<Holder>> orphans() const EXCLUDES(mutex_);

  /// Where the files of fenced processes are kept.
  static std::string directory(const storage::Store& store) { return store.data_dir() + "/fenced"; }

 private:
  Result<void> save_refused() const;
  Result<void> load_refused();

  storage::Store& store_;
  const int ending_ms_;
  std::map<std::string, Error> refused_;  ///< constant after run() or resume()
  mutable Mutex mutex_;
  std::map<std::string, std::vector<Holder>> orphans_ GUARDED_BY(mutex_);
};

}  // namespace sluice::fuse
