#include "server/connection_watch.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>

#include "base/log.h"
#include "server/spawn_self.h"

namespace sluice::server {
namespace {

// A daemon that is on its way out needs no help; a large one takes a moment to give its memory back.
constexpr int kGrace_ms = 250;
constexpr int kAttempts = 100;

// The main thread has ended: it stays as a zombie for as long as other threads of the process live.
bool is_dead(int process) {
  std::ifstream in("/proc/" + std::to_string(process) + "/stat");
  std::string line;
  if (!std::getline(in, line)) return true;
  const std::size_t name_end = line.rfind(')');  // the name may contain anything
  return name_end != std::string::npos && name_end + 2 < line.size() && line[name_end + 2] == 'Z';
}

}  // namespace

Result<void> start_connection_watch(UniqueFd abort_file, int guardian) {
  TRY(spawn_self({"internal-watch", std::to_string(::getpid()), std::to_string(guardian)}, abort_file.get(), kWatchedConnection));
  return {};
}

Result<void> watch_connection(int parent, int guardian) {
  const UniqueFd process(static_cast<int>(::syscall(SYS_pidfd_open, parent, 0)));
  if (!process) return errno == ESRCH ? Result<void>() : errno_error("pidfd_open", errno);
  sigset_t told;
  sigemptyset(&told);
  sigaddset(&told, SIGUSR1);
  // Comes when the daemon's main thread ends, which is before the process has ended as a whole.
  if (::prctl(PR_SET_PDEATHSIG, SIGUSR1) != 0) return errno_error("prctl(PR_SET_PDEATHSIG)", errno);
  while (::getppid() == parent && !is_dead(parent) && ::sigwaitinfo(&told, nullptr) < 0) {
    if (errno != EINTR) return errno_error("sigwaitinfo", errno);
  }
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    pollfd ended{process.get(), POLLIN, 0};
    if (::poll(&ended, 1, kGrace_ms) > 0) return {};
    if (guardian > 0 && !is_dead(guardian)) {
      attempt = 0;
      continue;
    }
    LOG_WARN("sluice (process {}) was killed and cannot end while it waits for its own mount: aborting the connection", parent);
    if (::write(kWatchedConnection, "1", 1) < 0 && errno != ENOENT) return errno_error("abort the connection", errno);
  }
  return make_error(Errc::deadline, "process " + std::to_string(parent) + " does not end");
}

}  // namespace sluice::server
