#include "server/guardian.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <optional>

#include "base/log.h"
#include "fuse/mount.h"
#include "server/cli/commands.h"
#include "server/guardian_child.h"
#include "server/supervise.h"

namespace sluice::server {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr auto kTick = milliseconds(250);
constexpr auto kStuck = milliseconds(200);           // a process that was killed and has not ended
constexpr auto kAbortAfter = milliseconds(10'000);   // … and cannot be helped otherwise
constexpr auto kHung = milliseconds(30'000);         // without a sign of life
constexpr auto kStartLimit = milliseconds(120'000);
constexpr auto kStable = milliseconds(10'000);
constexpr auto kFirstPause = milliseconds(100);
constexpr auto kLongestPause = milliseconds(5'000);
constexpr int kMostFailures = 10;
constexpr int kCheckLimit_ms = 10'000;

int pidfd_open(pid_t pid) { return static_cast<int>(::syscall(SYS_pidfd_open, pid, 0)); }

bool is_stop(int number) { return number == SIGTERM || number == SIGINT || number == SIGHUP; }

class Guardian {
 public:
  Guardian(const Config& config, Signals signals, ServiceManager manager)
      : config_(config), signals_(std::move(signals)), manager_(std::move(manager)) {}

  Result<void> prepare();
  int run();

 private:
  struct Worker {
    pid_t pid = -1;
    UniqueFd ended;  ///< pidfd
    Clock::time_point started{};
    bool ready = false;
    bool stopping = false;
    bool too_slow = false;  ///< killed by us because it did not get ready
    std::optional<Clock::time_point> dying;  ///< killed, but not ended
    bool aborted = false;
    std::uint64_t beats = 0;
    Clock::time_point beat_at{};
  };

  void start();
  void poll_once();
  void read_messages();
  void handle(std::string_view message, UniqueFd fd);
  void handle_signals();
  void worker_ready();
  void reap_worker();
  void worker_ended(int status);
  bool can_take_over();
  void count_failure(int status);
  void look_at_worker(Clock::time_point now);
  void look_at_dying(Clock::time_point now);
  void look_at_pulse(Clock::time_point now);
  void stop_worker();
  void finish(int code);
  void run_application();
  void look_at_application();
  void upgrade();
  bool accepts_state(int executable) const;

  const Config& config_;
  Signals signals_;
  const ServiceManager manager_;
  std::string path_;        ///< of the program
  UniqueFd executable_;     ///< that is run
  UniqueFd proven_;         ///< the one before an upgrade, until the new one serves
  UniqueFd socket_;
  UniqueFd worker_socket_;
  KeptDescriptors kept_;
  Worker worker_;
  std::optional<fuse::MountPulse> pulse_;
  std::vector<std::byte> request_ = std::vector<std::byte>(kRequestRoom);
  Clock::time_point death_{};
  std::optional<Clock::time_point> start_at_;
  int failures_ = 0;
  bool served_ = false;   ///< some worker has
  bool synced_ = false;
  bool upgrading_ = false;
  bool stop_ = false;     ///< the worker is to stop
  std::optional<int> code_;  ///< the end: as soon as worker and application have
  std::vector<const ExecCommand*> commands_;
  std::size_t next_command_ = 0;
  std::optional<Child> application_;
  bool interrupted_ = false;
  bool told_end_ = false;
};

Result<void> Guardian::prepare() {
  std::array<char, PATH_MAX> path{};
  if (::readlink("/proc/self/exe", path.data(), path.size() - 1) < 0) return errno_error("readlink /proc/self/exe", errno);
  path_ = path.data();
  executable_ = UniqueFd(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  if (!executable_) return errno_error("open " + path_, errno);
  std::array<int, 2> ends{};
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends.data()) != 0) return errno_error("socketpair", errno);
  socket_ = UniqueFd(ends[0]);
  worker_socket_ = UniqueFd(ends[1]);
  for (const ExecCommand& command : config_.exec)
    if (!command.if_candidate || !config_.is_replica()) commands_.push_back(&command);
  return {};
}

int Guardian::run() {
  start();
  while (!(code_ && worker_.pid < 0 && !application_)) poll_once();
  return *code_;
}

void Guardian::start() {
  start_at_.reset();
  auto pid = start_worker(executable_.get(), kept_, worker_socket_.get());
  if (pid.has_error()) {
    LOG_ERROR("cannot start a worker: {}", pid.error().message);
    count_failure(-1);
    return;
  }
  worker_ = Worker{};
  worker_.pid = *pid;
  worker_.ended = UniqueFd(pidfd_open(*pid));
  worker_.started = worker_.beat_at = Clock::now();
}

void Guardian::poll_once() {
  std::array<pollfd, 3> fds = {pollfd{signals_.fd(), POLLIN, 0}, pollfd{socket_.get(), POLLIN, 0},
                               pollfd{worker_.ended.get(), POLLIN, 0}};
  auto wait = kTick;
  if (start_at_) wait = std::clamp(std::chrono::ceil<milliseconds>(*start_at_ - Clock::now()), milliseconds(0), kTick);
  (void)::poll(fds.data(), worker_.pid >= 0 ? 3 : 2, static_cast<int>(wait.count()));
  read_messages();
  if ((fds[0].revents & POLLIN) != 0) handle_signals();
  if (worker_.pid >= 0 && (fds[2].revents & POLLIN) != 0) reap_worker();
  look_at_application();
  const auto now = Clock::now();
  if (worker_.pid >= 0) look_at_worker(now);
  if (worker_.pid < 0 && start_at_ && now >= *start_at_) start();
}

void Guardian::read_messages() {
  for (;;) {
    std::array<char, 512> text{};
    iovec data{text.data(), text.size() - 1};
    alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
    msghdr message{};
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    const ssize_t n = ::recvmsg(socket_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (n <= 0) return;
    UniqueFd fd;
    if (const cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr && header->cmsg_type == SCM_RIGHTS) {
      int number = -1;
      std::memcpy(&number, CMSG_DATA(header), sizeof number);
      fd = UniqueFd(number);
    }
    handle(std::string_view(text.data(), static_cast<std::size_t>(n)), std::move(fd));
  }
}

void Guardian::handle(std::string_view message, UniqueFd fd) {
  constexpr std::string_view kName = "FDNAME=";
  if (const std::size_t at = message.find(kName); at != std::string_view::npos) {
    std::string_view name = message.substr(at + kName.size());
    name = name.substr(0, name.find('\n'));
    if (message.starts_with("FDSTOREREMOVE=1")) {
      kept_.drop(name);
      if (name == fuse::kTakeoverStateName) pulse_.reset();
    } else if (fd) {
      if (name == fuse::kTakeoverStateName)
        if (auto pulse = fuse::MountPulse::open(fd.get())) pulse_ = std::move(*pulse);
      kept_.keep(name, std::move(fd));
    }
  } else if (message == "READY=1") {
    worker_ready();
  } else if (message == "SYNCED=1") {
    synced_ = true;
  } else if (message == "STOPPING=1") {
    worker_.stopping = true;
    manager_.tell("STOPPING=1");
  } else if (message == "UPGRADE=1") {
    upgrade();
  }
}

void Guardian::worker_ready() {
  worker_.ready = true;
  proven_.reset();
  upgrading_ = false;
  worker_.beat_at = Clock::now();
  if (served_)
    LOG_INFO("process {} serves {} now, {} ms after the end of the one before", worker_.pid, config_.mountpoint,
             std::chrono::duration_cast<milliseconds>(Clock::now() - death_).count());
  else
    manager_.tell("READY=1");
  served_ = true;
  if (stop_) stop_worker();
}

void Guardian::handle_signals() {
  for (;;) {
    const auto received = signals_.wait(0);
    if (received.has_error() || !*received) return;
    const int number = (*received)->number;
    if (number == SIGCHLD) continue;
    if (number == SIGUSR2) {
      upgrade();
      continue;
    }
    interrupted_ = interrupted_ || is_stop(number);
    if (application_) {
      if (!(*received)->from_terminal) application_->signal(number);
    } else if (is_stop(number)) {
      finish(kExitOk);
    }
  }
}

void Guardian::finish(int code) {
  if (!code_) code_ = code;
  start_at_.reset();
  stop_worker();
}

void Guardian::stop_worker() {
  stop_ = true;
  if (worker_.pid >= 0) ::kill(worker_.pid, SIGTERM);
}

void Guardian::reap_worker() {
  int status = 0;
  if (::waitpid(worker_.pid, &status, WNOHANG) != worker_.pid) return;
  read_messages();  // its last ones
  worker_ended(status);
}

void Guardian::worker_ended(int status) {
  const Worker ended = std::exchange(worker_, Worker{});
  death_ = Clock::now();
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (ended.stopping && WIFEXITED(status)) {
    code_ = code_.value_or(kExitOk) == kExitOk ? code : *code_;
  } else if (!served_) {
    if (WIFSIGNALED(status)) LOG_ERROR("the node was killed by signal {} before it served", WTERMSIG(status));
    code_ = code;
  } else if (!can_take_over()) {
    code_ = kExitFailure;
  } else {
    if (WIFSIGNALED(status))
      LOG_ERROR("process {}, which served {}, was killed by signal {}", ended.pid, config_.mountpoint, WTERMSIG(status));
    else
      LOG_ERROR("process {}, which served {}, ended with status {}", ended.pid, config_.mountpoint, code);
    const bool killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    if (WIFSIGNALED(status) && !killed && pulse_) pulse_->suspect();
    if (killed && !ended.too_slow) {  // somebody's doing, not its own
      failures_ = 0;
      start();
    } else {
      if (ended.ready && Clock::now() - ended.started > kStable) failures_ = 0;
      count_failure(status);
    }
  }
}

bool Guardian::can_take_over() {
  const int device = kept_.find(fuse::kConnectionName);
  if (device < 0 || kept_.find(fuse::kTakeoverStateName) < 0) {
    LOG_ERROR("the node died and cannot be taken over; start it again");
    return false;
  }
  pollfd connection{device, 0, 0};
  if (::poll(&connection, 1, 0) > 0 && (connection.revents & POLLERR) != 0) {
    LOG_ERROR("the mount {} was taken away", config_.mountpoint);
    return false;
  }
  return true;
}

// What keeps crashing is tried less and less often, and not for ever: whoever waits for the mount gets an error then.
void Guardian::count_failure(int) {
  if (proven_) {
    LOG_ERROR("the new program {} does not take over; going on with the one before", path_);
    executable_ = std::move(proven_);
    start_at_ = Clock::now();
    return;
  }
  if (++failures_ >= kMostFailures) {
    LOG_ERROR("{} processes in a row failed to serve {}; giving up: the mount's users get errors now", failures_, config_.mountpoint);
    kept_.drop(fuse::kConnectionName);
    code_ = kExitFailure;
    return;
  }
  auto pause = milliseconds(0);
  if (failures_ > 1) pause = std::min(kFirstPause * (1 << std::min(failures_ - 2, 10)), kLongestPause);
  if (pause.count() > 0) LOG_WARN("starting the next process in {} ms ({} failures in a row)", pause.count(), failures_);
  start_at_ = Clock::now() + pause;
}

void Guardian::look_at_worker(Clock::time_point now) {
  if (worker_.dying || is_dying(worker_.pid)) {
    look_at_dying(now);
    return;
  }
  if (!worker_.ready && now - worker_.started > kStartLimit) {
    LOG_ERROR("process {} does not get ready; killing it", worker_.pid);
    worker_.too_slow = true;
    ::kill(worker_.pid, SIGKILL);
  }
  if (worker_.ready && !worker_.stopping && pulse_) look_at_pulse(now);
}

void Guardian::look_at_pulse(Clock::time_point now) {
  const std::uint64_t beats = pulse_->beats();
  if (beats != worker_.beats) {
    worker_.beats = beats;
    worker_.beat_at = now;
  } else if (now - worker_.beat_at > kHung) {
    LOG_ERROR("process {} has given no sign of life for {} s; killing it", worker_.pid, kHung.count() / 1000);
    pulse_->suspect();
    ::kill(worker_.pid, SIGKILL);
    worker_.beat_at = now;
  }
}

// Killed, but some thread of it is still in the kernel. One that waits for the mount itself ends when it is answered, and only then:
// the others have ended, so nobody executes a request any more, and its locks, port and files are free when it has, too.
void Guardian::look_at_dying(Clock::time_point now) {
  if (!worker_.dying) worker_.dying = now;
  if (now - *worker_.dying < kStuck) return;
  const Remains remains = what_remains(worker_.pid);
  const bool helpable = served_ && !worker_.stopping && kept_.find(fuse::kConnectionName) >= 0;
  if (remains == Remains::mount && helpable) {
    LOG_WARN("process {} was killed while it waited for its own mount; answering in its place", worker_.pid);
    answer_waiting(kept_.find(fuse::kConnectionName), worker_.pid, request_);
  }
  if (remains != Remains::none && !worker_.aborted && now - *worker_.dying > kAbortAfter) {
    LOG_ERROR("process {} was killed and cannot end: aborting its FUSE connection, the mount's users get errors now", worker_.pid);
    const int abort_file = kept_.find(kAbortName);
    if (abort_file < 0 || ::write(abort_file, "1", 1) != 1) LOG_ERROR("the FUSE connection could not be aborted");
    worker_.aborted = true;
  }
}

void Guardian::run_application() {
  if (application_ || next_command_ >= commands_.size() || code_ || stop_) return;
  if (!served_ || (!synced_ && !config_.skip_sync)) return;
  const ExecCommand& command = *commands_[next_command_];
  auto child = Child::start(command.argv);
  if (child.has_error()) {
    LOG_ERROR("{}", child.error().message);
    finish(child.error().code == Errc::not_found ? kExitNotFound : kExitNotExecutable);
    return;
  }
  LOG_INFO("started {} as process {}", command.argv[0], child->pid());
  application_.emplace(std::move(*child));
}

void Guardian::look_at_application() {
  if (!application_) {
    run_application();
    return;
  }
  if (code_ && worker_.pid < 0 && !told_end_) {  // the node is gone
    told_end_ = true;
    application_->signal(SIGTERM);
  }
  const auto ended = application_->try_wait();
  if (!ended) return;
  LOG_INFO("{} ended with status {}", commands_[next_command_]->argv[0], *ended);
  application_.reset();
  ++next_command_;
  if (told_end_) {
    code_ = *ended == 0 ? kExitFailure : *ended;
  } else if (*ended != 0 || next_command_ == commands_.size() || interrupted_) {
    finish(*ended);
  }
}

// The next worker is of the program that has our path now, if it understands the state.
void Guardian::upgrade() {
  if (!worker_.ready || worker_.stopping || upgrading_ || stop_) {
    LOG_WARN("no upgrade now: the node is starting or stopping");
    return;
  }
  UniqueFd fresh(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fresh || !accepts_state(fresh.get())) {
    LOG_ERROR("no upgrade: {} cannot take over from this node; it goes on with the program it has", path_);
    return;
  }
  if (!can_take_over()) return;
  LOG_INFO("upgrading to {}", path_);
  upgrading_ = true;
  proven_ = std::exchange(executable_, std::move(fresh));
  ::kill(worker_.pid, SIGKILL);
}

bool Guardian::accepts_state(int executable) const {
  const int state = kept_.find(fuse::kTakeoverStateName);
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::dup2(state, STDIN_FILENO);
    const char* const argv[] = {"sluice", "internal-takeover-check", nullptr};
    ::execveat(executable, "", const_cast<char* const*>(argv), environ, AT_EMPTY_PATH);
    ::_exit(127);
  }
  if (pid < 0) return false;
  pollfd ended{pidfd_open(pid), POLLIN, 0};
  const UniqueFd owner(ended.fd);
  if (::poll(&ended, 1, kCheckLimit_ms) <= 0) ::kill(pid, SIGKILL);
  int status = 0;
  ::waitpid(pid, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

}  // namespace

int run_guardian(const Config& config) {
  ServiceManager manager;
  auto signals = Signals::create();
  if (signals.has_error()) {
    print_error(signals.error().message);
    return kExitFailure;
  }
  Guardian guardian(config, std::move(*signals), std::move(manager));
  if (const auto prepared = guardian.prepare(); prepared.has_error()) {
    LOG_ERROR("cannot start: {}", prepared.error().message);
    return kExitFailure;
  }
  return guardian.run();
}

}  // namespace sluice::server
