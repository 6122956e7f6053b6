#include "fuse/takeover/hidden_files.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <memory>
#include <string_view>

#include "base/log.h"

namespace sluice::fuse::takeover {
namespace {

std::string name_of(NodeId node) { return fmt::format("{:x}", node.value()); }

}  // namespace

Result<HiddenFiles> HiddenFiles::open(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) return errno_error("create " + directory, errno);
  UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return errno_error("open " + directory, errno);
  return HiddenFiles(std::move(fd));
}

int HiddenFiles::put_aside(const BackingTree& tree, const std::string& path, NodeId node) const {
  return ::renameat(tree.fd(), path.c_str(), directory_.get(), name_of(node).c_str()) == 0 ? 0 : errno;
}

int HiddenFiles::link_aside(const BackingTree& tree, const std::string& path, NodeId node) const {
  const std::string name = name_of(node);
  if (::linkat(tree.fd(), path.c_str(), directory_.get(), name.c_str(), 0) == 0) return 0;
  if (errno != EEXIST) return errno;
  ::unlinkat(directory_.get(), name.c_str(), 0);
  return ::linkat(tree.fd(), path.c_str(), directory_.get(), name.c_str(), 0) == 0 ? 0 : errno;
}

int HiddenFiles::open_file(NodeId node, int flags, UniqueFd& out) const {
  const int fd = ::openat(directory_.get(), name_of(node).c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
  if (fd < 0) return errno;
  out = UniqueFd(fd);
  return 0;
}

void HiddenFiles::remove(NodeId node) const {
  if (::unlinkat(directory_.get(), name_of(node).c_str(), 0) != 0 && errno != ENOENT)
    LOG_WARN("a removed file could not be deleted (unlinked/{:x}, errno {})", node.value(), errno);
}

Result<std::vector<NodeId>> HiddenFiles::list() const {
  const int copy = ::openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(copy < 0 ? nullptr : ::fdopendir(copy), ::closedir);
  if (!dir) return errno_error("list the files that were removed while open", errno);
  std::vector<NodeId> nodes;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    std::uint64_t id = 0;
    const auto parsed = std::from_chars(name.data(), name.data() + name.size(), id, 16);
    if (parsed.ec == std::errc() && parsed.ptr == name.data() + name.size()) nodes.emplace_back(id);
  }
  return nodes;
}

}  // namespace sluice::fuse::takeover
