// Runs `sluice internal-…` as an ordinary client of the mount and takes its exit status and what it prints.
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <vector>

#include "server/database_files.h"

extern char** environ;

namespace sluice::server {
namespace {

constexpr auto kRestoreDeadline = std::chrono::hours(6);
constexpr auto kOpenDeadline = std::chrono::minutes(10);

struct Attributes {
  Attributes() {
    posix_spawnattr_init(&attributes);
    posix_spawn_file_actions_init(&actions);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
  }
  ~Attributes() {
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
  }
  posix_spawnattr_t attributes{};
  posix_spawn_file_actions_t actions{};
};

// What the child prints until it closes the pipe, i.e. ends. Nothing: cancelled or over time.
std::optional<std::string> read_until_end(int fd, std::chrono::seconds limit, const std::function<bool()>& cancelled) {
  std::string text;
  const auto deadline = std::chrono::steady_clock::now() + limit;
  while (std::chrono::steady_clock::now() < deadline && !(cancelled && cancelled())) {
    pollfd wait{fd, POLLIN, 0};
    if (::poll(&wait, 1, 250) <= 0) continue;  // the timeout is for `cancelled`
    std::array<char, 1024> buffer{};
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n <= 0) return text;
    if (text.size() < 4096) text.append(buffer.data(), static_cast<std::size_t>(n));
  }
  return std::nullopt;
}

// Runs `sluice ARGUMENTS…`; its message if it fails.
Result<void> run_sluice(std::vector<std::string> arguments, std::chrono::seconds limit,
                        const std::function<bool()>& cancelled) {
  const std::string what = "sluice " + arguments.front();
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_error("pipe", errno);
  UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  Attributes spawn;
  posix_spawn_file_actions_adddup2(&spawn.actions, write_end.get(), STDERR_FILENO);
  std::string name = "sluice";
  std::vector<char*> argv = {name.data()};
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  pid_t pid = 0;
  const int rc =
      ::posix_spawn(&pid, "/proc/self/exe", &spawn.actions, &spawn.attributes, argv.data(), environ);
  if (rc != 0) return errno_error("start " + what, rc);
  write_end.reset();
  const auto text = read_until_end(read_end.get(), limit, cancelled);
  if (!text) ::kill(pid, SIGKILL);  // SQLite's journal undoes what was begun
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return errno_error("wait for " + what, errno);
  }
  if (!text) return make_error(Errc::cancelled, what + " was stopped or took too long; the database is as before");
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return {};
  std::string message = *text;
  while (!message.empty() && message.back() == '\n') message.pop_back();
  if (message.empty()) message = what + " ended with status " + std::to_string(status);
  const bool busy = message.find("busy: ") != std::string::npos;
  return make_error(busy ? Errc::busy : Errc::io, message);
}

}  // namespace

Result<void> restore_in_child(const std::string& source, const std::string& destination,
                              const std::function<bool()>& cancelled) {
  return run_sluice({"internal-restore", source, destination}, kRestoreDeadline, cancelled);
}

Result<void> open_in_child(const std::string& path, const std::function<bool()>& cancelled) {
  return run_sluice({"internal-open", path}, kOpenDeadline, cancelled);
}

}  // namespace sluice::server
