#include "fuse/orphans/file_holders.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <signal.h>
#include <sys/fsuid.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>

#include "base/fd.h"
#include "storage/sqlite/wal_index.h"

namespace sluice::fuse {
namespace {

struct CloseDir {
  void operator()(DIR* d) const { ::closedir(d); }
};
using DirPtr = std::unique_ptr<DIR, CloseDir>;

// Leases are for the file's owner. Who may not ask for others' (CAP_LEASE, which containers lack) becomes the owner for it: clients
// of any user make files in the mount.
int set_lease_as_owner(int fd, int type) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return -1;
  const auto self = static_cast<uid_t>(::setfsuid(st.st_uid));  // of this thread only
  const int rc = ::fcntl(fd, F_SETLEASE, type);
  const int err = errno;
  ::setfsuid(self);
  errno = err;
  return rc;
}

bool lease_refused(const std::string& path, int type) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK));
  if (!fd) return false;
  // Whoever opens the file just now has the kernel tell us; SIGIO, the usual way, would end the process.
  ::fcntl(fd.get(), F_SETSIG, SIGURG);
  int rc = ::fcntl(fd.get(), F_SETLEASE, type);
  if (rc != 0 && errno == EACCES) rc = set_lease_as_owner(fd.get(), type);
  if (rc == 0) {
    ::fcntl(fd.get(), F_SETLEASE, F_UNLCK);
    return false;
  }
  return errno == EAGAIN || errno == EBUSY;
}

std::string read_link(const std::string& path) {
  std::array<char, PATH_MAX> target{};
  const ssize_t n = ::readlink(path.c_str(), target.data(), target.size());
  return n > 0 ? std::string(target.data(), static_cast<std::size_t>(n)) : std::string();
}

// A process that has closed the file may still have it mapped, but SQLite keeps both as long as it is connected.
ino_t inode_of_descriptor(const std::string& fdinfo) {
  std::ifstream in(fdinfo);
  std::string key;
  ino_t ino = 0;
  while (in >> key) {
    if (key == "ino:") {
      in >> ino;
      break;
    }
  }
  return ino;
}

std::string_view base_name(std::string_view path) {
  constexpr std::string_view kDeleted = " (deleted)";
  if (path.ends_with(kDeleted)) path.remove_suffix(kDeleted.size());
  return path.substr(path.rfind('/') + 1);
}

}  // namespace

bool is_held(const std::string& path) { return lease_refused(path, F_WRLCK); }

bool is_written_directly(const std::string& path) { return lease_refused(path, F_RDLCK); }

std::string to_string(const std::vector<Holder>& holders) {
  std::string text;
  for (const Holder& h : holders) {
    text += (text.empty() ? "process " : ", ") + std::to_string(h.pid) + " (" + h.command + ")";
  }
  return text.empty() ? "a process that cannot be seen from here" : text;
}

std::vector<std::vector<Holder>> find_holders(const std::vector<FileIdentity>& files) {
  std::vector<std::vector<Holder>> found(files.size());
  if (files.empty()) return found;
  std::multimap<std::string, std::size_t, std::less<>> by_name;
  for (std::size_t i = 0; i < files.size(); ++i) by_name.emplace(files[i].base_name, i);
  const DirPtr proc(::opendir("/proc"));
  while (const dirent* entry = proc ? ::readdir(proc.get()) : nullptr) {
    const std::string_view id = entry->d_name;
    pid_t pid = 0;
    if (std::from_chars(id.data(), id.data() + id.size(), pid).ptr != id.data() + id.size() || pid == ::getpid()) continue;
    const std::string process = "/proc/" + std::string(id);
    const DirPtr fds(::opendir((process + "/fd").c_str()));
    while (const dirent* fd = fds ? ::readdir(fds.get()) : nullptr) {
      if (fd->d_name[0] == '.') continue;
      const std::string target = read_link(process + "/fd/" + fd->d_name);
      const auto [first, last] = by_name.equal_range(base_name(target));
      if (first == last) continue;
      const ino_t ino = inode_of_descriptor(process + "/fdinfo/" + fd->d_name);
      for (auto it = first; it != last; ++it) {
        std::vector<Holder>& list = found[it->second];
        const bool known = !list.empty() && list.back().pid == pid;
        if (files[it->second].ino != ino || known) continue;
        Holder holder{pid, {}};
        std::ifstream comm(process + "/comm");
        std::getline(comm, holder.command);
        list.push_back(std::move(holder));
      }
    }
  }
  for (auto& list : found) std::sort(list.begin(), list.end(), [](const Holder& a, const Holder& b) { return a.pid < b.pid; });
  return found;
}

ShmLocks shm_locks(ino_t ino) {
  // "12: POSIX  ADVISORY  READ 4711 00:2a:131073 128 128"; waiting ones have "->" behind the number.
  ShmLocks locks;
  std::ifstream in("/proc/locks");
  std::string line;
  while (std::getline(in, line)) {
    std::istringstream fields(line);
    std::string number, kind, advisory, type, pid, file, first, last;
    if (!(fields >> number >> kind >> advisory >> type >> pid >> file >> first >> last)) continue;
    if (kind != "POSIX" && kind != "OFDLCK") continue;
    unsigned major = 0;
    unsigned minor = 0;
    unsigned long inode = 0;
    if (std::sscanf(file.c_str(), "%x:%x:%lu", &major, &minor, &inode) != 3 || inode != ino || major != 0) continue;
    const std::uint64_t begin = std::strtoull(first.c_str(), nullptr, 10);
    const std::uint64_t end = last == "EOF" ? UINT64_MAX : std::strtoull(last.c_str(), nullptr, 10);
    const auto covers = [&](sqlite::ShmLock lock) {
      const auto byte = static_cast<std::uint64_t>(lock);
      return begin <= byte && byte <= end;
    };
    locks.connected = locks.connected || covers(sqlite::ShmLock::dms);
    locks.writing = locks.writing || (type == "WRITE" && covers(sqlite::ShmLock::write));
  }
  return locks;
}

Result<void> can_be_immutable(const std::string& directory) {
  const UniqueFd file(::open(directory.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file) return errno_error("create a temporary file in " + directory, errno);
  unsigned flags = 0;
  if (::ioctl(file.get(), FS_IOC_GETFLAGS, &flags) != 0)
    return Error{Errc::unsupported, "the file system of " + directory + " has no immutable files", errno};
  flags |= FS_IMMUTABLE_FL;
  if (::ioctl(file.get(), FS_IOC_SETFLAGS, &flags) != 0) {
    const int err = errno;
    if (err == EPERM)
      return Error{Errc::unsupported, "making files immutable needs the capability CAP_LINUX_IMMUTABLE", err};
    return Error{Errc::unsupported, "the file system of " + directory + " has no immutable files", err};
  }
  const char byte = 0;
  const bool stopped = ::pwrite(file.get(), &byte, 1, 0) < 0 && errno == EPERM;
  flags &= ~static_cast<unsigned>(FS_IMMUTABLE_FL);
  (void)::ioctl(file.get(), FS_IOC_SETFLAGS, &flags);
  if (!stopped)
    return make_error(Errc::unsupported, "the file system of " + directory + " lets open files be written although they are immutable");
  return boost::system::in_place_value;
}

Result<void> set_immutable(const std::string& path, bool immutable) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file) return errno_error("open " + path, errno);
  unsigned flags = 0;
  if (::ioctl(file.get(), FS_IOC_GETFLAGS, &flags) != 0) {
    if (!immutable) return boost::system::in_place_value;  // it never was
    return errno_error("read the attributes of " + path, errno);
  }
  const bool is = (flags & FS_IMMUTABLE_FL) != 0;
  if (is == immutable) return boost::system::in_place_value;
  flags ^= FS_IMMUTABLE_FL;
  if (::ioctl(file.get(), FS_IOC_SETFLAGS, &flags) != 0) {
    const int err = errno;
    return errno_error((immutable ? "make " : "make mutable (an earlier start fenced it; needs CAP_LINUX_IMMUTABLE, or chattr -i) ") +
                           path + (immutable ? " immutable" : ""),
                       err);
  }
  return boost::system::in_place_value;
}

}  // namespace sluice::fuse
