// The file handles that the kernel holds: what an `fh` in a request stands for. Like node ids they are slot and
// generation, so that a RELEASE that comes twice closes nothing twice.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "base/strong_int.h"
#include "fuse/inode_table.h"

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
  HandleId add(OpenFile file) EXCLUDES(mutex_);
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

  mutable Mutex mutex_;
  std::vector<Slot> slots_ GUARDED_BY(mutex_);
  std::vector<std::uint32_t> free_ GUARDED_BY(mutex_);
};

}  // namespace sluice::fuse
