#include "fuse/client_locks.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace sluice::fuse {

void ClientLocks::set_mount(std::string mountpoint, dev_t device, IoPath path) {
  mountpoint_ = std::move(mountpoint);
  device_ = device;
  path_ = path;
}

Result<UniqueFd> ClientLocks::open(const std::string& path, int flags, unsigned mode) {
  // The root is opened for each call and checked: a descriptor kept open would make the mount busy for ever, and without
  // the check a mount that somebody took away would have us create files in the directory below it.
  UniqueFd root(::open(mountpoint_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!root) return errno_error("open mount point " + mountpoint_, errno);
  struct stat st {};
  if (::fstat(root.get(), &st) != 0) return errno_error("stat mount point " + mountpoint_, errno);
  if (st.st_dev != device_)
    return make_error(Errc::unavailable, "mount point " + mountpoint_ + " is not mounted any more");
  const OwnThreads::Scope own(own_threads_);
  const int fd = ::openat(root.get(), path.c_str(), flags | O_CLOEXEC, mode);
  if (fd < 0) return errno_error("open " + path + " through the mount", errno);
  return UniqueFd(fd);
}

Result<UniqueFd> ClientLocks::open_backing(const std::string& path, int flags, unsigned mode) {
  UniqueFd fd(::openat(tree_.fd(), path.empty() ? "." : path.c_str(), flags | O_CLOEXEC, mode));
  if (!fd) return errno_error("open " + backing_path(path), errno);
  return fd;
}

Result<void> ClientLocks::truncate(int mount_fd, std::uint64_t size) {
  const OwnThreads::Scope own(own_threads_);
  if (::ftruncate(mount_fd, static_cast<off_t>(size)) != 0) return errno_error("ftruncate through the mount", errno);
  return boost::system::in_place_value;
}

void ClientLocks::invalidate(const std::string& path, std::uint64_t offset, std::uint64_t length) {
  if (const auto node = nodes_.find_path(path)) invalidator_.inode(*node, offset, length);
}

void ClientLocks::invalidate_entry(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  const std::string name = slash == std::string::npos ? path : path.substr(slash + 1);
  const auto parent = nodes_.find_path(slash == std::string::npos ? "" : path.substr(0, slash));
  if (!parent) return;
  nodes_.detach_idle(*parent, name);
  invalidator_.entry(*parent, name);
}

std::string ClientLocks::backing_path(const std::string& path) const {
  return path.empty() ? tree_.directory() : tree_.directory() + "/" + path;
}

}  // namespace sluice::fuse
