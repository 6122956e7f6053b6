// Files that were removed while open. Their descriptors die with the process, so with takeover they keep a name, in a directory
// beside the backing tree, until their last close: DATA/unlinked/<node id in hexadecimal>.
#pragma once

#include <string>
#include <vector>

#include "base/errors.h"
#include "base/fd.h"
#include "fuse/files/backing_tree.h"
#include "fuse/inode_table.h"

namespace sluice::fuse::takeover {

/// Thread-safe. Errors are errno values.
class HiddenFiles {
 public:
  /// On the backing tree's file system; created if missing.
  static Result<HiddenFiles> open(const std::string& directory);

  /// Instead of unlink(): `path` becomes the hidden file of `node`.
  int put_aside(const BackingTree& tree, const std::string& path, NodeId node) const;
  /// Before a rename over `path`: gives it a second, hidden name. One that is there already is replaced.
  int link_aside(const BackingTree& tree, const std::string& path, NodeId node) const;
  int open_file(NodeId node, int flags, UniqueFd& out) const;
  void remove(NodeId node) const;
  Result<std::vector<NodeId>> list() const;

 private:
  explicit HiddenFiles(UniqueFd directory) : directory_(std::move(directory)) {}
  UniqueFd directory_;
};

}  // namespace sluice::fuse::takeover
