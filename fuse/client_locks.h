// The node's own way through its mount: it opens files there like any client, so that the locks it takes meet SQLite's.
#pragma once

#include <string>

#include "fuse/files/backing_tree.h"
#include "fuse/inode_table.h"
#include "fuse/invalidator.h"
#include "fuse/io_path.h"
#include "fuse/own_threads.h"
#include "storage/mount_access.h"

namespace sluice::fuse {

/// Thread-safe. See storage::MountAccess for what each call promises.
class ClientLocks : public storage::MountAccess {
 public:
  ClientLocks(const BackingTree& tree, InodeTable& nodes, Invalidator& invalidator, OwnThreads& own_threads)
      : tree_(tree), nodes_(nodes), invalidator_(invalidator), own_threads_(own_threads) {}

  /// Where the mount is and which path (native or plain) it took, once it serves.
  void set_mount(std::string mountpoint, dev_t device, IoPath path);
  void set_descriptors(DescriptorStore* descriptors) { descriptors_ = descriptors; }

  Result<UniqueFd> open(const std::string& path, int flags, unsigned mode) override;
  Result<UniqueFd> open_backing(const std::string& path, int flags, unsigned mode) override;
  Result<void> truncate(int mount_fd, std::uint64_t size) override;
  void invalidate(const std::string& path, std::uint64_t offset, std::uint64_t length) override;
  void invalidate_entry(const std::string& path) override;
  std::string backing_path(const std::string& path) const override;
  bool passthrough() const override { return path_ == IoPath::native; }
  DescriptorStore* descriptors() override { return descriptors_; }

 private:
  const BackingTree& tree_;
  InodeTable& nodes_;
  Invalidator& invalidator_;
  OwnThreads& own_threads_;
  std::string mountpoint_;
  dev_t device_ = 0;
  IoPath path_ = IoPath::native;
  DescriptorStore* descriptors_ = nullptr;
};

}  // namespace sluice::fuse
