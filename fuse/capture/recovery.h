// Start-up and clean stop of capture: which databases there are, whether anyone still has their files open, and whether they
// are as the last run left them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "storage/store.h"

namespace sluice::fuse {

/// Errc::in_use when a process still holds a -wal or -shm of the backing tree: it belongs to a mount that died and would go
/// on committing beside us, under other locks (native-path §3). Waits a little for processes that are on their way out.
Result<void> refuse_orphans(storage::Store& store);

/// Names of all SQLite databases in the backing tree, by content.
Result<std::vector<std::string>> find_database_files(storage::Store& store);

/// Size and modification time of every database's files at a clean stop.
class CleanStop {
 public:
  /// Why recovery must not go on from the recorded position; empty: it may. It may after an unclean stop (every write since
  /// then passed a gate), and after a clean one if the files are unchanged; not if somebody changed them while no node ran, nor
  /// if the machine was restarted without a clean stop.
  std::string_view doubt(storage::Store& store, const std::string& name) const;

 private:
  friend CleanStop take_clean_stop(storage::Store& store);
  bool was_clean_ = false;
  std::map<std::string, std::string> stamps_;
};

/// Reads and removes what note_clean_stop left.
CleanStop take_clean_stop(storage::Store& store);
Result<void> note_clean_stop(storage::Store& store);

}  // namespace sluice::fuse
