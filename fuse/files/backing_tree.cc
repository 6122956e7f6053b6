#include "fuse/files/backing_tree.h"

#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <utility>

#include "fuse/files/kind.h"

namespace sluice::fuse {
namespace {

const char* relative(const std::string& path) { return path.empty() ? "." : path.c_str(); }
int result(int rc) { return rc == 0 ? 0 : errno; }

struct KernelDirent {  // struct linux_dirent64
  std::uint64_t ino;
  std::int64_t next;
  std::uint16_t length;
  unsigned char type;
};
constexpr std::size_t kDirentName = 19;

}  // namespace

Result<BackingTree> BackingTree::open(const std::string& directory) {
  UniqueFd root(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!root) return errno_error("open backing directory " + directory, errno);
  std::array<char, PATH_MAX> resolved{};
  if (::realpath(directory.c_str(), resolved.data()) == nullptr)
    return errno_error("resolve backing directory " + directory, errno);
  return BackingTree(std::move(root), std::string(resolved.data()));
}

int BackingTree::stat(const std::string& path, struct stat& st) const {
  return result(::fstatat(root_.get(), relative(path), &st, AT_SYMLINK_NOFOLLOW));
}

int BackingTree::open_file(const std::string& path, int flags, mode_t mode, UniqueFd& out) const {
  const int fd = ::openat(root_.get(), relative(path), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, mode);
  if (fd < 0) return errno;
  out = UniqueFd(fd);
  return 0;
}

int BackingTree::make_directory(const std::string& path, mode_t mode) const {
  return result(::mkdirat(root_.get(), relative(path), mode));
}

int BackingTree::make_symlink(const std::string& target, const std::string& path) const {
  return result(::symlinkat(target.c_str(), root_.get(), relative(path)));
}

int BackingTree::read_symlink(const std::string& path, std::string& target) const {
  std::array<char, PATH_MAX> buffer{};
  const ssize_t n = ::readlinkat(root_.get(), relative(path), buffer.data(), buffer.size());
  if (n < 0) return errno;
  target.assign(buffer.data(), static_cast<std::size_t>(n));
  return 0;
}

int BackingTree::unlink(const std::string& path) const { return result(::unlinkat(root_.get(), relative(path), 0)); }

int BackingTree::remove_directory(const std::string& path) const {
  return result(::unlinkat(root_.get(), relative(path), AT_REMOVEDIR));
}

int BackingTree::rename(const std::string& path, const std::string& new_path, unsigned flags) const {
  return result(::renameat2(root_.get(), relative(path), root_.get(), relative(new_path), flags));
}

int BackingTree::chmod(const std::string& path, mode_t mode) const {
  return result(::fchmodat(root_.get(), relative(path), mode, 0));
}

int BackingTree::chown(const std::string& path, uid_t uid, gid_t gid) const {
  return result(::fchownat(root_.get(), relative(path), uid, gid, AT_SYMLINK_NOFOLLOW));
}

int BackingTree::set_times(const std::string& path, const timespec times[2]) const {
  return result(::utimensat(root_.get(), relative(path), times, AT_SYMLINK_NOFOLLOW));
}

int BackingTree::sync_directory(const std::string& path) const {
  UniqueFd directory;
  if (const int err = open_file(path, O_RDONLY | O_DIRECTORY, 0, directory); err != 0) return err;
  return result(::fsync(directory.get()));
}

int BackingTree::statfs(struct statvfs& st) const { return result(::fstatvfs(root_.get(), &st)); }

int BackingTree::list(const std::string& path, std::int64_t from, std::vector<DirectoryEntry>& out) const {
  out.clear();
  UniqueFd directory;
  if (const int err = open_file(path, O_RDONLY | O_DIRECTORY, 0, directory); err != 0) return err;
  if (from != 0 && ::lseek(directory.get(), from, SEEK_SET) < 0) return errno;
  alignas(KernelDirent) std::array<char, 32768> buffer;
  const long n = ::syscall(SYS_getdents64, directory.get(), buffer.data(), buffer.size());
  if (n < 0) return errno;
  for (long at = 0; at < n;) {
    const char* raw = buffer.data() + at;
    KernelDirent header{};
    std::memcpy(&header, raw, kDirentName);
    out.push_back(DirectoryEntry{raw + kDirentName, header.ino, header.type, header.next});
    at += header.length;
  }
  return 0;
}

int read_all(int fd, std::uint64_t offset, ByteSpan out, std::size_t& done) {
  done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  return 0;
}

int write_all(int fd, std::uint64_t offset, ByteView data, std::size_t& done) {
  done = 0;
  while (done < data.size()) {
    const ssize_t n = ::pwrite(fd, data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    done += static_cast<std::size_t>(n);
  }
  return 0;
}

bool file_has_magic(int fd) {
  std::array<std::byte, kMagicSize> head{};
  std::size_t done = 0;
  return read_all(fd, 0, head, done) == 0 && done == head.size() && begins_with_magic(head);
}

}  // namespace sluice::fuse
