#include "fuse/request_run.h"

#include <fcntl.h>
#include <linux/fuse.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <string_view>
#include <thread>

#include "base/fd.h"

namespace sluice::fuse {
namespace {

constexpr int kToBegin = 16;
constexpr int kShortRun = 64;
constexpr int kToFollow = 16;
constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kGap_ns = kMillisecond / 2;       // requests further apart are no run
constexpr std::int64_t kPatience_ns = 3 * kMillisecond;  // for the next one
constexpr std::int64_t kHeldUp_ns = kMillisecond / 2;
constexpr std::int64_t kStuck_ns = 5 * kMillisecond;
constexpr std::int64_t kEqual_ns = 3 * kMillisecond;
constexpr std::int64_t kFirstPenalty_ns = 10 * kMillisecond;
constexpr std::int64_t kLongestPenalty_ns = 2'000 * kMillisecond;
constexpr auto kLookAgain = std::chrono::milliseconds(1);

std::int64_t now_ns() { return std::chrono::steady_clock::now().time_since_epoch().count(); }

bool set_policy(pid_t thread, int policy) {
  const sched_param none{};
  return ::sched_setscheduler(thread, policy, &none) == 0;
}

/// On which CPU the thread runs, or ran last; -1 if that cannot be told (another PID namespace). Field 39 of /proc/PID/stat.
int cpu_of(pid_t thread) {
  std::array<char, 32> path{"/proc/"};
  *std::to_chars(path.data() + 6, path.data() + 20, thread).ptr = '\0';
  std::string_view("/stat").copy(std::find(path.begin(), path.end(), '\0'), 5);
  const UniqueFd fd(::open(path.data(), O_RDONLY | O_CLOEXEC));
  std::array<char, 1024> text{};
  const ssize_t n = fd ? ::read(fd.get(), text.data(), text.size()) : -1;
  if (n <= 0) return -1;
  std::string_view rest(text.data(), static_cast<std::size_t>(n));
  const std::size_t name_end = rest.rfind(')');  // the name may have anything in it
  if (name_end == std::string_view::npos) return -1;
  rest.remove_prefix(name_end + 1);
  for (int field = 2; field < 39; ++field) {
    const std::size_t space = rest.find(' ');
    if (space == std::string_view::npos) return -1;
    rest.remove_prefix(space + 1);
  }
  int cpu = -1;
  std::from_chars(rest.data(), rest.data() + rest.size(), cpu);
  return cpu;
}

}  // namespace

RequestRun::RequestRun() {
  // A policy that the administrator chose stays.
  std::thread([this] {
    possible_ = ::sched_getscheduler(0) == SCHED_OTHER && set_policy(0, SCHED_IDLE) && set_policy(0, SCHED_OTHER);
  }).join();
}

// A thread serves one session for all of its life.
RequestRun::Worker& RequestRun::worker() {
  thread_local Worker worker{.thread = ::gettid()};
  return worker;
}

bool RequestRun::is_runner(Worker& self) {
  if (self.runs && runner_.load(std::memory_order_relaxed) != self.thread) self.runs = false;
  return self.runs;
}

void RequestRun::before_read() {
  Worker& self = worker();
  if (!is_runner(self) && state_.load(std::memory_order_relaxed) != State::none) {
    bool begun = false;
    {
      MutexLock lock(mutex_);
      while (!begun && state_ != State::none) {
        if (state_ == State::gathering && readers_ == 0)
          begun = begin(self);
        else
          watch();
      }
    }
    if (begun) take_place(self);
  }
  if (self.runs) return;
  readers_.fetch_add(1);
  self.reads = true;
}

// The first who waits looks at the runner every millisecond, for all.
void RequestRun::watch() {
  if (watched_) {
    changed_.wait(mutex_);  // whoever ends the run, or ends watching, says so
    return;
  }
  watched_ = true;
  changed_.wait_until(mutex_, std::chrono::steady_clock::now() + kLookAgain);
  watched_ = false;
  look_at_runner();
  if (state_ == State::gathering && readers_ == 0) changed_.notify_all();
}

void RequestRun::look_at_runner() {
  if (state_ == State::none) return;
  const std::int64_t now = now_ns();
  const std::int64_t busy_since = busy_since_ns_.load(std::memory_order_relaxed);
  const std::int64_t idle_for = busy_since == 0 ? now - last_member_ns_.load(std::memory_order_relaxed) : 0;
  if (idle_for > kPatience_ns || (busy_since != 0 && now - busy_since > kStuck_ns)) {
    end_locked(true);
  } else if (runner_ != 0 && (idle_for > kHeldUp_ns || (busy_since != 0 && now - busy_since > kHeldUp_ns))) {
    // Somebody else computes on its CPU: it takes part as an equal for a while.
    set_policy(runner_, SCHED_OTHER);
    equal_until_ns_.store(now + kEqual_ns, std::memory_order_relaxed);
  }
}

// The runner's place and policy follow without the mutex.
bool RequestRun::begin(Worker& self) {
  if (::sched_getaffinity(0, sizeof affinity_, &affinity_) != 0) {
    end_locked(true);
    return false;
  }
  self.affinity = affinity_;
  self.cpu = -1;
  self.members = 0;
  self.runs = true;
  equal_until_ns_.store(0, std::memory_order_relaxed);
  runner_ = self.thread;
  state_ = State::running;
  runs_.fetch_add(1, std::memory_order_relaxed);
  changed_.notify_all();  // it may have been the one who watches
  return true;
}

void RequestRun::take_place(Worker& self) {
  const int cpu = cpu_of(thread_.load(std::memory_order_relaxed));
  if (cpu < 0) {
    self.runs = false;
    end(self, true);
    return;
  }
  move_to(self, cpu);
  become_idle(self);
}

void RequestRun::become_idle(Worker& self) {
  set_policy(0, SCHED_IDLE);
  if (!is_runner(self)) set_policy(0, SCHED_OTHER);
}

void RequestRun::move_to(Worker& self, int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (cpu < 0 || cpu >= CPU_SETSIZE) return;
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  if (::sched_setaffinity(0, sizeof set, &set) == 0) self.cpu = cpu;
  if (!is_runner(self)) ::sched_setaffinity(0, sizeof self.affinity, &self.affinity);
}

void RequestRun::end(Worker& self, bool broken) {
  set_policy(0, SCHED_OTHER);
  MutexLock lock(mutex_);
  if (runner_.load(std::memory_order_relaxed) == self.thread) end_locked(broken);
}

void RequestRun::end_locked(bool broken) {
  if (state_ == State::none) return;
  if (const pid_t runner = runner_.exchange(0); runner != 0) {
    set_policy(runner, SCHED_OTHER);
    ::sched_setaffinity(runner, sizeof affinity_, &affinity_);
  }
  penalty_ns_ = broken ? std::clamp(2 * penalty_ns_, kFirstPenalty_ns, kLongestPenalty_ns) : 0;
  not_before_ns_.store(now_ns() + penalty_ns_, std::memory_order_relaxed);
  busy_since_ns_.store(0, std::memory_order_relaxed);
  consecutive_.store(0, std::memory_order_relaxed);
  state_ = State::none;
  changed_.notify_all();
}

RequestRun::Part RequestRun::part_of(std::uint32_t opcode) {
  switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_GETATTR:
    case FUSE_SETATTR:
    case FUSE_UNLINK:
    case FUSE_OPEN:
    case FUSE_WRITE:
    case FUSE_CREATE:
      return Part::member;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_RELEASE:
      return Part::neutral;
    default:
      return Part::other;
  }
}

void RequestRun::received(Part part, pid_t thread) {
  Worker& self = worker();
  if (self.reads) {
    self.reads = false;
    readers_.fetch_sub(1);
  }
  if (!possible_) return;
  if (!is_runner(self)) {
    count(part, thread);
    return;
  }
  const std::int64_t now = now_ns();
  if (part == Part::neutral) {
    busy_since_ns_.store(now, std::memory_order_relaxed);
    return;
  }
  if (part != Part::member || thread != thread_.load(std::memory_order_relaxed)) {
    // The sync at the end of a checkpoint, or somebody else's request.
    self.runs = false;
    end(self, self.members < kShortRun);
    return;
  }
  last_member_ns_.store(now, std::memory_order_relaxed);
  busy_since_ns_.store(now, std::memory_order_relaxed);
  if (++self.members % kToFollow == 0) follow(self);
  const std::int64_t equal_until = equal_until_ns_.load(std::memory_order_relaxed);
  if (equal_until == 0 || now < equal_until) return;
  equal_until_ns_.store(0, std::memory_order_relaxed);
  become_idle(self);
}

void RequestRun::follow(Worker& self) {
  const int cpu = cpu_of(thread_.load(std::memory_order_relaxed));
  if (cpu >= 0 && cpu != self.cpu) move_to(self, cpu);
}

void RequestRun::processed() {
  if (worker().runs) busy_since_ns_.store(0, std::memory_order_relaxed);
}

void RequestRun::count(Part part, pid_t thread) {
  if (part == Part::neutral) return;
  if (part == Part::other || thread == 0) {
    consecutive_.store(0, std::memory_order_relaxed);
    return;
  }
  const std::int64_t now = now_ns();
  const bool goes_on = thread_.exchange(thread, std::memory_order_relaxed) == thread &&
                       now - last_member_ns_.exchange(now, std::memory_order_relaxed) < kGap_ns;
  if (!goes_on) {
    consecutive_.store(0, std::memory_order_relaxed);
    return;
  }
  if (consecutive_.fetch_add(1, std::memory_order_relaxed) < kToBegin) return;
  if (now < not_before_ns_.load(std::memory_order_relaxed)) return;
  State none = State::none;
  state_.compare_exchange_strong(none, State::gathering);
}

void RequestRun::before_new_worker() {
  Worker& self = worker();
  if (!is_runner(self)) return;
  self.runs = false;
  end(self, self.members < kShortRun);
}

void RequestRun::leave() {
  Worker& self = worker();
  if (self.reads) readers_.fetch_sub(1);
  if (is_runner(self)) end(self, false);
}

}  // namespace sluice::fuse
