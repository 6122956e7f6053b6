// What a process does to the files below one directory, in order: the input of the power-loss model (disk.h).
//
// This program's own open, write, sync, rename … are defined in interpose.cc; everything linked into it (storage, fuse/capture,
// SQLite) calls them. Stores through a shared mapping have no call: they are found by comparing the file with what is known of it
// before each later operation, in pieces of 512 bytes.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "base/bytes.h"

namespace sluice::powerloss {

enum class OpKind { write, truncate, sync, create, make_directory, unlink, remove_directory, rename, sync_directory, note };

/// Files and directories are numbers: their inodes, in order of appearance; the root is 0.
struct Op {
  OpKind kind{};
  int file = -1;       ///< what it is about; of a rename or removal: what the name stands for
  int directory = -1;  ///< that has `name`
  int to_directory = -1;
  std::string name;
  std::string to_name;
  std::uint64_t offset = 0;  ///< of a write; the new size
  Bytes data;
  int note = -1;  ///< index of what the recording test noted here
};

/// One at a time; thread-safe.
class Recorder {
 public:
  static Recorder& instance();

  /// Records what happens below `root`, an existing empty directory.
  void start(const std::string& root);
  std::vector<Op> stop();
  /// Puts a mark at this point of the trace; false: nothing is being recorded (the node ships while it ends).
  bool note(int number);
  std::size_t size();

  // From here on: interpose.cc. `lock` serialises a system call with its record.
  std::recursive_mutex& lock() { return mutex_; }
  bool watches(const char* path) const;
  void opened(const char* path, int fd, bool created, bool truncated);
  void written(int fd, std::uint64_t offset, const void* data, std::size_t n);
  void truncated(int fd, std::uint64_t size);
  void before_sync(int fd);
  void synced(int fd);
  void made_directory(const char* path);
  /// Before the operation: afterwards nothing has the name any more.
  int file_at(const char* path);
  void removed(const char* path, int file, bool directory);
  void renamed(const char* from, const char* to, int file);
  void mapped(int fd);

 private:
  struct MappedFile {
    int fd = -1;
    Bytes known;
  };
  int number_of(dev_t device, ino_t inode, bool add);
  int number_of_fd(int fd, bool* directory = nullptr);
  int parent_of(const char* path, std::string& name);
  void look_at_mappings();
  void add(Op op) { ops_.push_back(std::move(op)); }

  std::recursive_mutex mutex_;
  bool on_ = false;
  std::string root_;
  std::vector<Op> ops_;
  std::map<std::pair<dev_t, ino_t>, int> numbers_;
  std::map<int, MappedFile> mapped_;
  std::map<int, bool> shared_memory_;  ///< -shm: what is in it means nothing after a loss of power
};

/// Told of syncs of the application's descriptors; see app_mount.cc. Returns true if it handled the call.
using AppSync = std::function<bool(int fd, int& result)>;
void set_app_sync(AppSync hook);
/// The system's own calls.
int real_open(const char* path, int flags, mode_t mode);
int real_sync(int fd, bool by_application);
/// Mutation: the node's own syncs of paths that end so are left out of the trace, as if the code did not ask for them.
void forget_syncs(const std::string& suffix);
/// While false, nobody's eventfd is written: capture's tail sleeps, and captures happen when the test asks for them.
void allow_wakeups(bool allow);

}  // namespace sluice::powerloss
