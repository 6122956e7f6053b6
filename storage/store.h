// A node's data directory: its identity, its databases, the lock that keeps a second daemon out.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "storage/database.h"

namespace sluice::storage {

enum class Role { primary, replica };

/// Files of DATA/tmp/ with this prefix outlive the daemon: capture's notes of writes that it has not captured yet.
inline constexpr std::string_view kKeptInTmp = "unjournaled-";
/// And with this one: a sync of the database's files failed, and they have not been written again since.
inline constexpr std::string_view kSyncFailedInTmp = "sync-failed-";

struct StoreOptions {
  std::string data_dir;
  Database::Options database;
  RetentionPolicy retention;
};

/// Layout: DATA/lock (held by an open-file-description lock; the pid, then the boot in which recovery
/// was last complete), DATA/node.json (identity,
/// format version, last role), DATA/fs/ (backing tree), DATA/log/<name>/…seg, DATA/checksums/<name>,
/// DATA/install/ (storage/apply/snapshot_files.h), DATA/tmp/ (emptied at open but for kKeptInTmp…),
/// DATA/lost+found/. <name> is the database's path with '%' and '/' percent-encoded. Thread-safe.
class Store {
 public:
  /// Creates the directory if missing, takes DATA/lock (Errc::in_use names the holder's pid), reads node.json
  /// (Errc::corrupt / Errc::unsupported with what to do) and opens every database that has a log.
  static Result<std::unique_ptr<Store>> open(FileSystem& fs, Clock& clock, StoreOptions options);
  ~Store();

  NodeId node_id() const { return node_id_; }
  /// Role this directory was last used in; nullopt for a new one.
  std::optional<Role> last_role() const EXCLUDES(mutex_);
  /// Durable on return.
  Result<void> set_last_role(Role role) EXCLUDES(opening_mutex_, mutex_);

  /// The machine was restarted since recovery last was complete here: what was not synced then may be lost.
  bool machine_restarted() const { return machine_restarted_; }
  /// Recovery is complete. Until then every start says machine_restarted().
  Result<void> note_recovered();

  std::shared_ptr<Database> find(const std::string& name) const EXCLUDES(mutex_);
  /// Opens or creates. Errc::invalid_argument for a name that is not a clean relative path, Errc::too_large
  /// for one whose escaped form leaves no room for a suffix in a file name (over 220 bytes).
  Result<std::shared_ptr<Database>> open_database(const std::string& name) EXCLUDES(opening_mutex_, mutex_);
  /// Sorted by name.
  std::vector<std::shared_ptr<Database>> list() const EXCLUDES(mutex_);
  /// Forgets a database and deletes its log and checksums (not its files under fs/).
  Result<void> remove_database(const std::string& name) EXCLUDES(opening_mutex_, mutex_);

  /// Set before anything is opened for work; passed on to every database.
  void set_observer(DatabaseObserver* observer) EXCLUDES(mutex_);

  const std::string& data_dir() const { return options_.data_dir; }
  std::string fs_dir() const { return options_.data_dir + "/fs"; }
  std::string tmp_dir() const { return options_.data_dir + "/tmp"; }
  std::string lost_found_dir() const { return options_.data_dir + "/lost+found"; }
  std::string backing_path(const std::string& name) const { return fs_dir() + "/" + name; }
  const StoreOptions& options() const { return options_; }
  FileSystem& fs() const { return fs_; }
  Clock& clock() const { return clock_; }

 private:
  Store(FileSystem& fs, Clock& clock, StoreOptions options);
  Result<void> make_layout();
  Result<void> lock_directory();
  Result<void> load_identity();
  Result<void> save_identity(std::optional<Role> role);
  Result<void> clear_tmp();
  Result<void> open_existing();
  std::string identity_path() const { return options_.data_dir + "/node.json"; }
  std::string log_root() const { return options_.data_dir + "/log"; }
  std::string checksums_root() const { return options_.data_dir + "/checksums"; }

  FileSystem& fs_;
  Clock& clock_;
  const StoreOptions options_;
  NodeId node_id_;
  UniqueFd lock_;
  bool machine_restarted_ = false;
  Mutex opening_mutex_
      ACQUIRED_BEFORE(mutex_);  ///< serialises changes of what is on disk; held over file I/O
  mutable Mutex mutex_;
  std::optional<Role> last_role_ GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Database>> databases_ GUARDED_BY(mutex_);
  DatabaseObserver* observer_ GUARDED_BY(mutex_) = nullptr;
};

/// Errc::invalid_argument unless `name` is a relative path of 1…1024 bytes without empty, "." or ".."
/// components.
Result<void> check_database_name(std::string_view name);
std::string escape_name(std::string_view name);
Result<std::string> unescape_name(std::string_view escaped);

}  // namespace sluice::storage
