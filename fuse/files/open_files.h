// The file handles that the kernel holds: what an `fh` in a request stands for. Like node ids they are slot and
// generation, so that a RELEASE that comes twice closes nothing twice. With takeover they outlive the process.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mutex.h"
#include "base/strong_int.h"
#include "fuse/inode_table.h"
#include "fuse/takeover/state.h"

namespace sluice::fuse {

using HandleId = StrongInt<struct HandleIdTag, std::uint64_t>;

struct OpenFile {
  NodeId node;
  bool write_access = false;
  bool write_only = false;
  bool own = false;  ///< opened through MountAccess
  /// Virtual files: what the last read from offset 0 saw.
  std::shared_ptr<const std::string> content;
};

/// Thread-safe; every call is short.
class OpenFiles {
 public:
  /// `state`: nullptr without takeover; else the handles of the process before are restored.
  explicit OpenFiles(takeover::State* state = nullptr);

  /// `unique`: of the request that opens it, if another process may have to answer it.
  HandleId add(OpenFile file, std::uint64_t unique = 0) EXCLUDES(mutex_);
  /// The handle that a process before us made for this request.
  std::optional<HandleId> restored(std::uint64_t unique) const EXCLUDES(mutex_);
  std::vector<OpenFile> list() const EXCLUDES(mutex_);
  std::optional<OpenFile> find(HandleId id) const EXCLUDES(mutex_);
  void set_content(HandleId id, std::shared_ptr<const std::string> content) EXCLUDES(mutex_);
  /// Nothing if it was removed before.
  std::optional<OpenFile> remove(HandleId id) EXCLUDES(mutex_);

 private:
  struct Slot {
    std::uint32_t generation = 0;
    bool used = false;
    OpenFile file;
  };
  const Slot* get(HandleId id) const REQUIRES(mutex_);

  takeover::State* const state_;
  mutable Mutex mutex_;
  std::unordered_map<std::uint64_t, HandleId> restored_ GUARDED_BY(mutex_);
  std::vector<Slot> slots_ GUARDED_BY(mutex_);
  std::vector<std::uint32_t> free_ GUARDED_BY(mutex_);
};

}  // namespace sluice::fuse
