#include "server/supervise.h"

#include <poll.h>
#include <spawn.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdlib>

#include "base/log.h"

extern char** environ;

namespace sluice::server {
namespace {

constexpr std::array kHandled = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD};

}  // namespace

Result<Signals> Signals::create() {
  sigset_t set;
  sigemptyset(&set);
  for (const int number : kHandled) sigaddset(&set, number);
  if (const int err = ::pthread_sigmask(SIG_BLOCK, &set, nullptr)) return errno_error("block signals", err);
  ::signal(SIGPIPE, SIG_IGN);
  UniqueFd fd(::signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (!fd) return errno_error("signalfd", errno);
  return Signals(std::move(fd));
}

Result<std::optional<Signals::Received>> Signals::wait(int timeout_ms, int also_fd) {
  std::array<pollfd, 2> fds = {pollfd{fd_.get(), POLLIN, 0}, pollfd{also_fd, POLLIN, 0}};
  const int n = ::poll(fds.data(), also_fd >= 0 ? 2 : 1, timeout_ms);
  if (n < 0 && errno != EINTR) return errno_error("poll", errno);
  if (n <= 0 || (fds[0].revents & POLLIN) == 0) return std::optional<Received>();
  signalfd_siginfo info{};
  if (::read(fd_.get(), &info, sizeof info) != static_cast<ssize_t>(sizeof info))
    return std::optional<Received>();
  return std::optional<Received>(Received{static_cast<int>(info.ssi_signo), info.ssi_code == SI_KERNEL});
}

Result<Child> Child::start(const std::vector<std::string>& argv) {
  std::vector<std::string> copy = argv;
  std::vector<char*> pointers;
  for (std::string& word : copy) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none;
  sigemptyset(&none);
  sigset_t defaults;
  sigemptyset(&defaults);
  sigaddset(&defaults, SIGPIPE);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &defaults);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  pid_t pid = -1;
  const int err = ::posix_spawnp(&pid, pointers[0], nullptr, &attributes, pointers.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (err != 0) return errno_error("start " + argv[0], err);
  return Child(pid);
}

Child::Child(Child&& other) noexcept : pid_(std::exchange(other.pid_, -1)), code_(other.code_) {}
Child& Child::operator=(Child&& other) noexcept {
  pid_ = std::exchange(other.pid_, -1);
  code_ = other.code_;
  return *this;
}

ServiceManager::ServiceManager() {
  const char* const path = std::getenv("NOTIFY_SOCKET");
  if (path == nullptr) return;
  socket_ = path;
  ::unsetenv("NOTIFY_SOCKET");
}

void ServiceManager::tell(const std::string& state) const {
  sockaddr_un address{};
  if (socket_.empty() || socket_.size() >= sizeof address.sun_path) return;
  address.sun_family = AF_UNIX;
  socket_.copy(address.sun_path, socket_.size());
  if (address.sun_path[0] == '@') address.sun_path[0] = 0;  // an abstract address
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + socket_.size());
  const UniqueFd fd(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  const ssize_t sent = ::sendto(fd.get(), state.data(), state.size(), MSG_NOSIGNAL,
                                reinterpret_cast<const sockaddr*>(&address), length);
  if (sent != static_cast<ssize_t>(state.size()))
    LOG_WARN("cannot tell the service manager '{}': {}", state, errno_error(socket_, errno).message);
}

bool Child::signal(int number) const {
  return !code_ && pid_ > 0 && ::kill(pid_, number) == 0;
}

std::optional<int> Child::try_wait() {
  if (code_ || pid_ <= 0) return code_;
  int status = 0;
  // Only this child: others (internal-restore) are waited for by who started them.
  const pid_t got = ::waitpid(pid_, &status, WNOHANG);
  if (got == pid_)
    code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  else if (got < 0 && errno != EINTR)
    code_ = 1;
  return code_;
}

Result<int> Child::wait(Signals& signals) {
  for (;;) {
    if (const auto code = try_wait()) return *code;
    TRY_ASSIGN(const auto received, signals.wait(-1));
    if (!received || received->number == SIGCHLD || received->from_terminal) continue;
    signal(received->number);
  }
}

}  // namespace sluice::server
