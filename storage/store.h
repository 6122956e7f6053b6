// A node's data directory: its identity, its databases, the lock that keeps a second daemon out.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "storage/database.h"

namespace sluice::storage {

enum class Role { primary, replica };

struct StoreOptions {
  std::string data_dir;
  Database::Options database;
  RetentionPolicy retention;
};

/// Layout: DATA/lock, DATA/node.json (identity, format version, last role), DATA/fs/ (backing tree), DATA/log/<name>/…seg,
/// DATA/checksums/<name>, DATA/tmp/, DATA/lost+found/. <name> is the database's path with '%' and '/' percent-encoded.
/// Thread-safe.
class Store {
 public:
  /// Creates the directory if missing, takes DATA/lock (Errc::in_use names the holder's pid), reads node.json
  /// (Errc::corrupt / Errc::unsupported with what to do) and opens every database that has a log.
  static Result<std::unique_ptr<Store>> open(FileSystem& fs, Clock& clock, StoreOptions options);
  ~Store();

  NodeId node_id() const { return node_id_; }
  /// Role this directory was last used in; nullopt for a new one.
  std::optional<Role> last_role() const { return last_role_; }
  Result<void> set_last_role(Role role);

  std::shared_ptr<Database> find(const std::string& name) const EXCLUDES(mutex_);
  /// Opens or creates. Errc::invalid_argument for a name that is not a clean relative path.
  Result<std::shared_ptr<Database>> open_database(const std::string& name) EXCLUDES(mutex_);
  /// Sorted by name.
  std::vector<std::shared_ptr<Database>> list() const EXCLUDES(mutex_);
  /// Forgets a database and deletes its log and checksums (not its files under fs/).
  Result<void> remove_database(const std::string& name) EXCLUDES(mutex_);

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
  Result<void> lock_directory();
  Result<void> load_identity();
  Result<void> save_identity();

  FileSystem& fs_;
  Clock& clock_;
  const StoreOptions options_;
  NodeId node_id_;
  std::optional<Role> last_role_;
  UniqueFd lock_;
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<Database>> databases_ GUARDED_BY(mutex_);
  DatabaseObserver* observer_ GUARDED_BY(mutex_) = nullptr;
};

/// Errc::invalid_argument unless `name` is a relative path of 1…1024 bytes without empty, "." or ".." components.
Result<void> check_database_name(std::string_view name);
std::string escape_name(std::string_view name);
Result<std::string> unescape_name(std::string_view escaped);

}  // namespace sluice::storage
