// The application beside the node (`sluice mount … -- APP ARG…`): started when the node is ready, told our
// signals, waited for. Its exit status becomes ours.
#pragma once

#include <sys/types.h>

#include <csignal>
#include <optional>
#include <string>
#include <vector>

#include "base/errors.h"
#include "base/fd.h"

namespace sluice::server {

/// Blocks the signals that a node handles in this and every later thread, and delivers them through a
/// descriptor. SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD; SIGPIPE is ignored. Create before other
/// threads.
class Signals {
 public:
  static Result<Signals> create();
  struct Received {
    int number = 0;
    /// Sent by the terminal: children in the same process group have got it themselves.
    bool from_terminal = false;
  };
  /// Waits at most `timeout_ms` (-1: for ever) for a signal or until `also_fd` (if >= 0) becomes readable.
  /// Nothing: timeout or also_fd.
  Result<std::optional<Received>> wait(int timeout_ms, int also_fd = -1);
  /// Readable when there is one.
  int fd() const { return fd_.get(); }

 private:
  explicit Signals(UniqueFd fd) : fd_(std::move(fd)) {}
  UniqueFd fd_;
};

class Child {
 public:
  /// Runs argv[0] (looked up in PATH) with the signals unblocked and SIGPIPE's default. Errc::not_found: no
  /// such program; Errc::io: cannot be executed.
  static Result<Child> start(const std::vector<std::string>& argv);
  Child(Child&& other) noexcept;
  Child& operator=(Child&& other) noexcept;
  /// A child that still runs is left alone: the owner has waited or decided otherwise.
  ~Child() = default;

  pid_t pid() const { return pid_; }
  /// False when it has ended.
  bool signal(int number) const;
  /// Exit code if it has ended: its own, or 128 + the signal that killed it. Does not block.
  std::optional<int> try_wait();
  /// Waits for the end, passing signals on.
  Result<int> wait(Signals& signals);

 private:
  explicit Child(pid_t pid) : pid_(pid) {}
  pid_t pid_ = -1;
  std::optional<int> code_;
};

/// systemd's sd_notify protocol, for Type=notify. Takes NOTIFY_SOCKET out of the environment, so that the application does
/// not speak for the node: create before other threads.
class ServiceManager {
 public:
  ServiceManager();
  /// "READY=1", "STOPPING=1". Does nothing without a service manager.
  void tell(const std::string& state) const;

 private:
  std::string socket_;
};

/// Exit codes for an application that could not be started, as a shell has them.
inline constexpr int kExitNotExecutable = 126;
inline constexpr int kExitNotFound = 127;

}  // namespace sluice::server
