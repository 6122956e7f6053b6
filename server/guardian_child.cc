#include "server/guardian_child.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "base/log.h"
#include "server/descriptor_link.h"

extern char** environ;

namespace sluice::server {
namespace {

/// One small file of /proc, without allocation.
struct ProcText {
  std::array<char, 4096> bytes{};
  std::string_view text;

  explicit ProcText(const char* path) {
    const UniqueFd fd(::open(path, O_RDONLY | O_CLOEXEC));
    const ssize_t n = fd ? ::read(fd.get(), bytes.data(), bytes.size()) : -1;
    if (n > 0) text = std::string_view(bytes.data(), static_cast<std::size_t>(n));
  }
};

/// Field 3 of /proc/…/stat; 0: there is no such thread.
char state_of(const char* stat_path) {
  const ProcText stat(stat_path);
  const std::size_t name_end = stat.text.rfind(')');
  return name_end == std::string_view::npos || name_end + 2 >= stat.text.size() ? '\0' : stat.text[name_end + 2];
}

std::vector<std::string> own_arguments() {
  std::vector<std::string> arguments;
  const UniqueFd fd(::open("/proc/self/cmdline", O_RDONLY | O_CLOEXEC));
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = ::read(fd.get(), buffer.data(), buffer.size())) > 0;) text.append(buffer.data(), static_cast<std::size_t>(n));
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\0', at), text.size());
    arguments.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return arguments;
}

std::vector<std::string> worker_environment(const std::string& guardian) {
  std::vector<std::string> variables;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    const std::string_view text = *variable;
    const bool ours = text.starts_with("NOTIFY_SOCKET=") || text.starts_with("LISTEN_") || text.starts_with("WATCHDOG_");
    if (!ours) variables.emplace_back(text);
  }
  variables.push_back(std::string(kGuardianVariable) + "=" + guardian);
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> result;
  for (std::string& word : words) result.push_back(word.data());
  result.push_back(nullptr);
  return result;
}

}  // namespace

void KeptDescriptors::keep(std::string_view name, UniqueFd fd) {
  drop(name);
  std::size_t at = 0;
  while (at < used_ && slots_[at].fd) ++at;
  if (at == slots_.size() || name.empty() || name.size() >= slots_[at].name.size()) return;
  slots_[at].fd = std::move(fd);
  slots_[at].name.fill('\0');
  name.copy(slots_[at].name.data(), name.size());
  used_ = std::max(used_, at + 1);
}

void KeptDescriptors::drop(std::string_view name) {
  for (std::size_t at = 0; at < used_; ++at)
    if (slots_[at].fd && name == slots_[at].name.data()) slots_[at].fd.reset();
}

int KeptDescriptors::find(std::string_view name) const {
  for (std::size_t at = 0; at < used_; ++at)
    if (slots_[at].fd && name == slots_[at].name.data()) return slots_[at].fd.get();
  return -1;
}

Result<void> KeptDescriptors::write_list(int fd) const {
  std::array<char, 96> line{};
  for (std::size_t at = 0; at < used_; ++at) {
    if (!slots_[at].fd) continue;
    const auto end = fmt::format_to_n(line.data(), line.size(), "{} {}\n", slots_[at].fd.get(), slots_[at].name.data());
    if (::write(fd, line.data(), end.size) != static_cast<ssize_t>(end.size)) return errno_error("list the descriptors", errno);
  }
  return {};
}

void KeptDescriptors::pass_on() const {
  for (std::size_t at = 0; at < used_; ++at)
    if (slots_[at].fd) ::fcntl(slots_[at].fd.get(), F_SETFD, 0);
}

Result<pid_t> start_worker(int executable, const KeptDescriptors& kept, int socket) {
  const UniqueFd list(::memfd_create("sluice-descriptors", MFD_CLOEXEC));
  if (!list) return errno_error("list the descriptors", errno);
  TRY(kept.write_list(list.get()));
  std::vector<std::string> arguments = own_arguments();
  std::vector<std::string> variables = worker_environment(fmt::format("{}:{}", socket, list.get()));
  const std::vector<char*> argv = pointers(arguments);
  const std::vector<char*> envp = pointers(variables);
  const pid_t pid = ::fork();
  if (pid < 0) return errno_error("fork", errno);
  if (pid > 0) return pid;
  ::setpgid(0, 0);  // the terminal's signals are for the guardian
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  kept.pass_on();
  for (const int fd : {socket, list.get()}) ::fcntl(fd, F_SETFD, 0);
  ::execveat(executable, "", argv.data(), envp.data(), AT_EMPTY_PATH);
  ::_exit(127);
}

bool is_dying(pid_t process) {
  std::array<char, 64> path{};
  *fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/stat", process).out = '\0';
  const char state = state_of(path.data());
  if (state == 'Z' || state == 'X' || state == '\0') return true;
  if (state != 'D') return false;
  *fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/status", process).out = '\0';
  const ProcText status(path.data());
  constexpr std::string_view kPending = "SigPnd:\t";
  const std::size_t at = status.text.find(kPending);
  std::uint64_t signals = 0;
  if (at == std::string_view::npos) return false;
  std::from_chars(status.text.data() + at + kPending.size(), status.text.data() + status.text.size(), signals, 16);
  return (signals >> (SIGKILL - 1) & 1) != 0;
}

// A thread that is killed while it waits for an answer of the mount waits on, for what nobody serves any more (the kernel's
// Documentation/filesystems/fuse.rst).
Remains what_remains(pid_t process) {
  std::array<char, 96> path{};
  *fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/task", process).out = '\0';
  const std::unique_ptr<DIR, int (*)(DIR*)> tasks(::opendir(path.data()), ::closedir);
  if (!tasks) return Remains::none;
  Remains remains = Remains::none;
  while (const dirent* entry = ::readdir(tasks.get())) {
    if (entry->d_name[0] == '.') continue;
    *fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/task/{}/stat", process, entry->d_name).out = '\0';
    const char state = state_of(path.data());
    if (state == 'Z' || state == 'X' || state == '\0') continue;
    *fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/task/{}/wchan", process, entry->d_name).out = '\0';
    const ProcText where(path.data());
    // fuse_…: waits for its own connection by other ways than a request.
    const bool mount = state == 'D' && (where.text == "request_wait_answer" || where.text.starts_with("fuse_") ||
                                        where.text.starts_with("__fuse_"));
    if (!mount) return Remains::other;
    remains = Remains::mount;
  }
  return remains;
}

// What was sent to the dead process comes again after FUSE_NOTIFY_RESEND, and once more when the next worker asks for it.
void answer_waiting(int device, pid_t process, std::vector<std::byte>& buffer) {
  struct In {
    std::uint32_t length, opcode;
    std::uint64_t unique, node;
    std::uint32_t uid, gid, thread, padding;
  };
  struct Out {
    std::uint32_t length;
    std::int32_t error;
    std::uint64_t unique;
  };
  constexpr std::int32_t kResend = 7;
  constexpr int kMost = 10'000;
  const Out resend{sizeof(Out), kResend, 0};
  if (::write(device, &resend, sizeof resend) != static_cast<ssize_t>(sizeof resend)) return;
  const int flags = ::fcntl(device, F_GETFL);
  ::fcntl(device, F_SETFL, flags | O_NONBLOCK);
  for (int i = 0; i < kMost; ++i) {
    const ssize_t n = ::read(device, buffer.data(), buffer.size());
    if (n < static_cast<ssize_t>(sizeof(In))) break;
    In in{};
    std::memcpy(&in, buffer.data(), sizeof in);
    std::array<char, 96> path{};
    *fmt::format_to_n(path.data(), path.size() - 1, "/proc/{}/task/{}", process, in.thread).out = '\0';
    if (::access(path.data(), F_OK) != 0) continue;
    const Out out{sizeof(Out), -EIO, in.unique};
    if (::write(device, &out, sizeof out) < 0 && errno != ENOENT) LOG_WARN("a request could not be answered (errno {})", errno);
  }
  ::fcntl(device, F_SETFL, flags);
}

}  // namespace sluice::server
