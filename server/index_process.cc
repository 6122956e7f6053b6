#include "server/index_process.h"

#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <string>

#include "storage/apply/index_helper.h"

extern char** environ;

namespace sluice::server {
namespace {

constexpr int kSocket = 3;

}  // namespace

Result<storage::HelperProcess> start_index_process() {
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return errno_error("socketpair", errno);
  storage::HelperProcess process;
  process.socket = UniqueFd(ends[0]);
  const UniqueFd theirs(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, theirs.get(), kSocket);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t blocked;
  sigfillset(&blocked);  // the terminal's and the service manager's signals are for the daemon
  posix_spawnattr_setsigmask(&attributes, &blocked);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  std::string name = "sluice";
  std::string command = "internal-wal-index";
  const std::array<char*, 3> argv = {name.data(), command.data(), nullptr};
  const int rc = ::posix_spawn(&process.pid, "/proc/self/exe", &actions, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  posix_spawn_file_actions_destroy(&actions);
  if (rc != 0) return errno_error("start sluice internal-wal-index", rc);
  return process;
}

int run_index_process() { return storage::apply::serve_index_helper(kSocket); }

}  // namespace sluice::server
