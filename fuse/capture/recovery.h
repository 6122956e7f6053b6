// Start-up and clean stop of capture: which databases there are, and whether they are as the last run left them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/function_ref.h"
#include "storage/store.h"

namespace sluice::fuse {

/// Calls `visit` with the path, relative to the mount, of each file in the backing tree.
Result<void> walk_files(storage::Store& store, FunctionRef<Result<void>(const std::string& path)> visit);

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
