#include <dirent.h>
#include <fcntl.h>

#include <algorithm>
#include <cstring>

#include "fuse/files/kind.h"
#include "fuse/lowlevel.h"
#include "fuse/operations_internal.h"

// READDIR, FSYNCDIR, STATFS. There is no OPENDIR (ENOSYS saves two requests for every fsync of a directory), hence no
// handle: a position in a listing is the backing file system's own, which stays right while entries come and go. Virtual
// files follow after the last entry, at positions no file system gives out (ext4 excludes this range by construction:
// the hash 0x7fffffff is reserved for the end of a directory).
namespace sluice::fuse {
namespace {

constexpr std::int64_t kVirtualBase = 0x7fffffff'00000000;
constexpr std::int64_t kVirtualLimit = kVirtualBase + 0x0fffffff;

class Listing {
 public:
  explicit Listing(std::size_t size) : buffer_(size) {}

  bool add(const std::string& name, ino_t ino, mode_t mode, std::int64_t next) {
    struct stat st {};
    st.st_ino = ino;
    st.st_mode = mode;
    const std::size_t room = buffer_.size() - used_;
    const std::size_t need = fuse_add_direntry(nullptr, buffer_.data() + used_, room, name.c_str(), &st, next);
    if (need > room) return false;
    used_ += need;
    return true;
  }
  ByteView bytes() const { return std::as_bytes(std::span(buffer_.data(), used_)); }

 private:
  std::vector<char> buffer_;
  std::size_t used_ = 0;
};

}  // namespace

// X-pos files are there for who asks by name but not listed: `rm X*`, `cp -r` and `tar` see only what they can handle
// (docs/decisions/0002).
std::vector<std::string> Operations::virtual_names(NodeId id, const std::string& path) {
  std::vector<std::string> names;
  struct stat st {};
  const std::string prefix = path.empty() ? "" : path + "/";
  auto absent = [&](std::string_view name) {
    struct stat ignored {};
    return p_.tree.stat(prefix + std::string(name), ignored) == ENOENT;
  };
  if (id == kRootNode) {
    if (virtual_attr(p_.virtual_files, VirtualKind::primary, kPrimaryName, st) == 0 && absent(kPrimaryName))
      names.emplace_back(kPrimaryName);
    if (absent(kLagName)) names.emplace_back(kLagName);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void Operations::readdir(Request request, NodeId id, std::size_t size, std::int64_t offset) {
  Listing listing(size);
  int err = 0;
  bool full = false;
  {
    const TreeShared tree(tree_mutex_);
    const auto node = p_.nodes.find(id);
    if (!node || !node->linked || node->kind != FileKind::directory) {
      err = ESTALE;
      full = true;
    }
    bool at_end = offset >= kVirtualBase && offset <= kVirtualLimit;
    std::vector<DirectoryEntry> entries;
    std::int64_t at = offset;
    while (!full && !at_end) {
      if (err = p_.tree.list(node->names->path, at, entries); err != 0) break;
      at_end = entries.empty();
      for (const DirectoryEntry& entry : entries) {
        if (!listing.add(entry.name, entry.ino, static_cast<mode_t>(DTTOIF(entry.type)), entry.next)) {
          full = true;
          break;
        }
        at = entry.next;
      }
    }
    if (err == 0 && !full) {
      const auto names = virtual_names(id, node->names->path);
      std::size_t next = offset >= kVirtualBase && offset <= kVirtualLimit
                             ? static_cast<std::size_t>(offset - kVirtualBase)
                             : 0;
      while (next < names.size() &&
             listing.add(names[next], 0x7000000000000000ULL + next, S_IFREG,
                         kVirtualBase + static_cast<std::int64_t>(next) + 1))
        ++next;
    }
  }
  if (err != 0)
    request.error(err == ENOENT ? ESTALE : err);
  else
    request.data(listing.bytes());
}

void Operations::fsyncdir(Request request, NodeId id) {
  UniqueFd directory;
  int err = ESTALE;
  {
    const TreeShared tree(tree_mutex_);
    const auto node = p_.nodes.find(id);
    if (node && node->linked)
      err = p_.tree.open_file(node->names->path, O_RDONLY | O_DIRECTORY, 0, directory);
  }
  if (err == 0 && ::fsync(directory.get()) != 0) err = errno;
  request.error(err);
}

void Operations::statfs(Request request) {
  struct statvfs st {};
  if (const int err = p_.tree.statfs(st); err != 0)
    request.error(err);
  else
    request.statfs(st);
}

}  // namespace sluice::fuse
