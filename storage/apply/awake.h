// Which databases of a replica have their files open. Of thousands only some change: the others sleep (replica_database.h).
#pragma once

#include <cstddef>
#include <list>
#include <memory>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"

namespace sluice::storage::apply {

class LiveReplicaDatabase;

/// Thread-safe; calls nothing.
class AwakeDatabases {
 public:
  explicit AwakeDatabases(std::size_t limit) : limit_(limit) {}

  /// Its files are open; it is the one used last.
  void used(LiveReplicaDatabase& database) EXCLUDES(mutex_);
  void gone(const LiveReplicaDatabase& database) EXCLUDES(mutex_);
  /// Those beyond the limit that were used least lately, at most `most`; nobody but them should be asked to sleep.
  std::vector<std::shared_ptr<LiveReplicaDatabase>> surplus(std::size_t most) const EXCLUDES(mutex_);
  std::size_t count() const EXCLUDES(mutex_);

 private:
  struct Entry {
    LiveReplicaDatabase* key;
    std::weak_ptr<LiveReplicaDatabase> database;
  };
  const std::size_t limit_;
  mutable Mutex mutex_;
  std::list<Entry> order_ GUARDED_BY(mutex_);  ///< the one used last in front
  std::unordered_map<const LiveReplicaDatabase*, std::list<Entry>::iterator> places_ GUARDED_BY(mutex_);
};

}  // namespace sluice::storage::apply
