// A FileSystem that counts operations, fails chosen ones, and can lose what was not synced, as a power failure does.
// Nothing is really synced, which makes tests fast.
//
// Fault model: an operation fails before it does anything, except that a failed write leaves its first half behind.
// After power_loss() each file that was written through this object has its content as of the last sync_data() and,
// independently for each later write, any part of it in pieces of 512 bytes; truncations since are done or not.
// Creations, renames and removals are never lost (a journaling file system that orders metadata). Stores through
// mappings are not seen.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/os.h"

namespace sluice::test {

enum class FileOp {
  open,
  read,
  write,
  sync,
  truncate,
  map,
  rename,
  unlink,
  remove_directory,
  make_directories,
  list,
  sync_directory
};

class FaultFileSystem final : public FileSystem {
 public:
  explicit FaultFileSystem(FileSystem& base = real_file_system()) : base_(base) {}

  /// The `n`-th operation of kind `op` from now (1 = the next) fails with `err`; with `forever`, so do all
  /// after it.
  void fail(FileOp op, int n, int err, bool forever = false) EXCLUDES(mutex_);
  /// The `n`-th operation that changes anything (write, sync, truncate, rename, unlink, sync_directory,
  /// creating open) fails with EIO, and every one after it: the process is cut off from its disk.
  void fail_changes_from(int n) EXCLUDES(mutex_);
  void heal() EXCLUDES(mutex_);
  /// Called before each sync_data, without a lock: lets a test act while a sync is under way.
  void on_sync(std::function<void()> hook) EXCLUDES(mutex_);
  /// Called before each operation that changes anything, without a lock: where a process can be killed.
  void on_change(std::function<void()> hook) EXCLUDES(mutex_);

  int count(FileOp op) const EXCLUDES(mutex_);
  int changes() const EXCLUDES(mutex_);

  /// Rewrites the files behind every File of this object. Open Files must no longer be used.
  void power_loss(std::mt19937_64& random) EXCLUDES(mutex_);

  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override;
  Result<void> rename(const std::string& from, const std::string& to) override;
  Result<void> unlink(const std::string& path) override;
  Result<void> remove_directory(const std::string& path) override;
  Result<bool> exists(const std::string& path) override;
  Result<void> make_directories(const std::string& path) override;
  Result<std::vector<DirEntry>> list(const std::string& path) override;
  Result<void> sync_directory(const std::string& path) override;

 private:
  friend class FaultFile;
  /// What a file would be after a crash.
  struct Volatile {
    Bytes synced;
    struct Change {
      bool truncate = false;
      std::uint64_t offset = 0;  ///< of the write, or the new size
      Bytes data;
    };
    std::vector<Change> changes;
  };
  struct Fault {
    FileOp op;
    int at;
    int err;
    bool forever;
  };

  /// Counts; the error that this operation shall have.
  Result<void> enter(FileOp op, const std::string& path, bool changes_something) EXCLUDES(mutex_);
  std::shared_ptr<Volatile> track(const std::string& path) EXCLUDES(mutex_);

  FileSystem& base_;
  mutable Mutex mutex_;
  std::map<FileOp, int> counts_ GUARDED_BY(mutex_);
  int changes_ GUARDED_BY(mutex_) = 0;
  int fail_changes_at_ GUARDED_BY(mutex_) = 0;
  std::vector<Fault> faults_ GUARDED_BY(mutex_);
  std::function<void()> on_sync_ GUARDED_BY(mutex_);
  std::function<void()> on_change_ GUARDED_BY(mutex_);
  std::map<std::string, std::shared_ptr<Volatile>> volatile_ GUARDED_BY(mutex_);
};

}  // namespace sluice::test
