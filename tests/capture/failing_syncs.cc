#include "tests/capture/failing_syncs.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <string>

#include "base/mutex.h"

namespace sluice::test {
namespace {

Mutex hook_mutex;
std::function<int(std::string_view)> hook GUARDED_BY(hook_mutex);

int ask(int fd) {
  std::function<int(std::string_view)> ask_now;
  {
    MutexLock lock(hook_mutex);
    ask_now = hook;
  }
  if (!ask_now) return 0;
  std::array<char, 4096> path{};
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path.data(), path.size());
  return n > 0 ? ask_now({path.data(), static_cast<std::size_t>(n)}) : 0;
}

int sync(int fd, long call) {
  if (const int failed = ask(fd); failed != 0) {
    errno = failed;
    return -1;
  }
  return static_cast<int>(::syscall(call, fd));
}

}  // namespace

void before_sync(std::function<int(std::string_view path)> new_hook) {
  MutexLock lock(hook_mutex);
  hook = std::move(new_hook);
}

}  // namespace sluice::test

extern "C" int fdatasync(int fd) { return sluice::test::sync(fd, SYS_fdatasync); }
extern "C" int fsync(int fd) { return sluice::test::sync(fd, SYS_fsync); }
