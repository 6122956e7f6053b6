#include "storage/mount_access.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include <cerrno>
#include <chrono>
#include <fstream>
#include <limits>
#include <set>
#include <sstream>

#include "base/mutex.h"

namespace sluice::storage {
namespace {

// Nothing announces that another process let go of a lock (F_OFD_SETLKW could not be given up at a deadline).
constexpr auto kRetry = std::chrono::milliseconds(1);

struct flock make_lock(short type, std::uint64_t start, std::uint64_t length) {
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(start);
  lock.l_len = static_cast<off_t>(length);
  return lock;  // l_pid must be 0 for OFD locks
}

std::string range_text(std::uint64_t start, std::uint64_t length) {
  return fmt::format("bytes {}+{}", start, length);
}

/// One line of /proc/locks: "1: POSIX  ADVISORY  WRITE 1234 00:2a:99 120 127" ("EOF" as the last field means no end).
struct LockLine {
  long pid = 0;
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};

bool parse_lock_line(const std::string& line, dev_t device, ino_t inode, LockLine& out) {
  std::istringstream in(line);
  std::string index, family, advice, type, file, last;
  if (!(in >> index >> family)) return false;
  if (family == "->" && !(in >> family)) return false;  // somebody waiting: it does not hold the lock
  if (line.find("->") != std::string::npos) return false;
  if (!(in >> advice >> type >> out.pid >> file >> out.first >> last)) return false;
  if (file != fmt::format("{:02x}:{:02x}:{}", major(device), minor(device), inode)) return false;
  if (last == "EOF") {
    out.last = std::numeric_limits<std::uint64_t>::max();
    return true;
  }
  std::istringstream number(last);
  return static_cast<bool>(number >> out.last);
}

}  // namespace

Result<void> ofd_lock(int fd, short type, std::uint64_t start, std::uint64_t length) {
  struct flock lock = make_lock(type, start, length);
  if (::fcntl(fd, F_OFD_SETLK, &lock) == 0) return boost::system::in_place_value;
  if (errno == EAGAIN || errno == EACCES)
    return Error{Errc::busy, range_text(start, length) + " are locked by another process", errno};
  return errno_error("lock " + range_text(start, length), errno);
}

Result<void> ofd_lock_wait(int fd, short type, std::uint64_t start, std::uint64_t length, int deadline_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  Mutex mutex;
  CondVar never;  // nobody notifies it: a wait that ends by its deadline
  MutexLock hold(mutex);
  for (;;) {
    auto locked = ofd_lock(fd, type, start, length);
    if (locked || locked.error().code != Errc::busy) return locked;
    const auto now = std::chrono::steady_clock::now();
    if (now >= deadline) return locked;
    never.wait_until(mutex, std::min(deadline, now + kRetry));
  }
}

Result<bool> ofd_is_locked(int fd, std::uint64_t start, std::uint64_t length) {
  struct flock lock = make_lock(F_WRLCK, start, length);
  if (::fcntl(fd, F_OFD_GETLK, &lock) != 0) return errno_error("test lock on " + range_text(start, length), errno);
  return lock.l_type != F_UNLCK;
}

std::string lock_holders(int fd, std::uint64_t start, std::uint64_t length) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return {};
  const std::uint64_t last = length == 0 ? std::numeric_limits<std::uint64_t>::max() : start + length - 1;
  std::set<long> pids;
  std::ifstream in("/proc/locks");
  std::string line;
  while (std::getline(in, line)) {
    LockLine lock;
    // An OFD lock belongs to no process: its pid is -1.
    if (parse_lock_line(line, st.st_dev, st.st_ino, lock) && lock.pid > 0 && lock.first <= last && start <= lock.last)
      pids.insert(lock.pid);
  }
  std::string text;
  for (const long pid : pids) text += (text.empty() ? "" : ", ") + std::to_string(pid);
  return text;
}

}  // namespace sluice::storage
