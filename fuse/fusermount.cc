#include "fuse/fusermount.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <fstream>
#include <sstream>
#include <string_view>
#include <vector>

extern char** environ;

namespace sluice::fuse {
namespace {

constexpr const char* kProgram = "fusermount3";
constexpr const char* kConfiguration = "/etc/fuse.conf";
constexpr auto kDeadline = std::chrono::seconds(20);
constexpr int kTheirSocket = 3;

struct Outcome {
  int status = 0;       ///< as from waitpid
  std::string message;  ///< what it wrote, on one line
};

/// What the process writes until it closes the pipe; at most the deadline.
std::string read_message(int fd) {
  std::string text;
  const auto deadline = std::chrono::steady_clock::now() + kDeadline;
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd wait{fd, POLLIN, 0};
    if (left.count() <= 0 || ::poll(&wait, 1, static_cast<int>(left.count())) <= 0) break;
    std::array<char, 512> buffer{};
    const ssize_t n = ::read(fd, buffer.data(), buffer.size());
    if (n <= 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(n));
  }
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (char& c : text)
    if (c == '\n') c = ' ';
  return text;
}

/// `socket`: becomes its descriptor 3, where it leaves /dev/fuse.
Result<Outcome> run(std::vector<std::string> arguments, int socket) {
  std::array<int, 2> ends{};
  if (::pipe2(ends.data(), O_CLOEXEC) != 0) return errno_error("pipe", errno);
  const UniqueFd read_end(ends[0]);
  UniqueFd write_end(ends[1]);
  std::vector<std::string> variables = {"LC_ALL=C", "_FUSE_COMMFD=" + std::to_string(kTheirSocket)};
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    if (!text.starts_with("LC_ALL=") && !text.starts_with("_FUSE_COMMFD=")) environment.push_back(*entry);
  }
  for (std::string& variable : variables) environment.push_back(variable.data());
  environment.push_back(nullptr);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, write_end.get(), STDERR_FILENO);
  if (socket >= 0) posix_spawn_file_actions_adddup2(&actions, socket, kTheirSocket);
  pid_t pid = 0;
  const int rc = ::posix_spawnp(&pid, kProgram, &actions, nullptr, argv.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  if (rc == ENOENT || rc == EACCES) {
    return make_error(Errc::unsupported, "mounting needs CAP_SYS_ADMIN or fusermount3: run as root, or install the package fuse3");
  }
  if (rc != 0) return errno_error("start fusermount3", rc);
  write_end.reset();
  Outcome outcome;
  outcome.message = read_message(read_end.get());
  while (::waitpid(pid, &outcome.status, 0) < 0) {
    if (errno != EINTR) return errno_error("wait for fusermount3", errno);
  }
  return outcome;
}

bool succeeded(const Outcome& outcome) { return WIFEXITED(outcome.status) && WEXITSTATUS(outcome.status) == 0; }

UniqueFd receive_descriptor(int socket) {
  char byte = 0;
  iovec part{&byte, 1};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  // It has ended: what it sent is there.
  if (::recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT) < 0) return {};
  const cmsghdr* head = CMSG_FIRSTHDR(&message);
  if (head == nullptr || head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS) return {};
  int fd = -1;
  std::memcpy(&fd, CMSG_DATA(head), sizeof fd);
  return UniqueFd(fd);
}

}  // namespace

bool permits_allow_other(const std::string& fuse_conf) {
  std::istringstream lines(fuse_conf);
  std::string line;
  while (std::getline(lines, line)) {
    line.resize(std::min(line.find('#'), line.size()));
    const std::size_t begin = line.find_first_not_of(" \t\r");
    if (begin == std::string::npos) continue;
    if (line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1) == "user_allow_other") return true;
  }
  return false;
}

Result<UniqueFd> fusermount(const std::string& path, bool allow_other) {
  if (allow_other && ::geteuid() != 0) {
    std::ifstream file(kConfiguration);
    std::ostringstream text;
    text << file.rdbuf();
    if (file && !permits_allow_other(text.str())) {
      return make_error(Errc::invalid_argument,
                        std::string("allow-other is for root only, unless the administrator writes the line "
                                    "user_allow_other into ") + kConfiguration + "; leave it out, or run as root");
    }
  }
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends.data()) != 0) return errno_error("socketpair", errno);
  const UniqueFd ours(ends[0]);
  UniqueFd theirs(ends[1]);
  const std::string options = std::string("fsname=sluice,subtype=sluice,nosuid,nodev,noatime,default_permissions") +
                              (allow_other ? ",allow_other" : "");
  TRY_ASSIGN(const Outcome outcome, run({kProgram, "-o", options, "--", path}, theirs.get()));
  theirs.reset();
  if (!succeeded(outcome)) {
    return make_error(Errc::unsupported, "without CAP_SYS_ADMIN mounting is fusermount3's, which says: " +
                                             (outcome.message.empty() ? "nothing" : outcome.message));
  }
  UniqueFd device = receive_descriptor(ours.get());
  if (!device) return make_error(Errc::internal, "fusermount3 mounted " + path + " but gave no /dev/fuse");
  return device;
}

Result<void> fuserunmount(const std::string& path, bool detach) {
  std::vector<std::string> arguments = {kProgram, "-u"};
  if (detach) arguments.emplace_back("-z");
  arguments.insert(arguments.end(), {"--", path});
  TRY_ASSIGN(const Outcome outcome, run(std::move(arguments), -1));
  if (succeeded(outcome)) return {};
  if (outcome.message.find("busy") != std::string::npos) return Error{Errc::busy, "mount point " + path + " is in use", EBUSY};
  return make_error(Errc::io, outcome.message.empty() ? "fusermount3 could not unmount " + path : outcome.message);
}

}  // namespace sluice::fuse
