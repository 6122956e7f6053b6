// Runs of requests of one thread, the next as soon as the last was answered: a checkpoint writes page by page, a program opens
// database after database. What such a request costs is mostly the waking of idle CPUs, twice: of a worker's, and of the
// application's for the reply (docs/PERFORMANCE.md: 25 to 100 us on a virtual machine, where 11 us are enough on one CPU). So in
// such a run one worker, the runner, takes all requests, on the CPU on which the application runs, and with the scheduling policy
// SCHED_IDLE: the kernel counts a CPU with nothing else to do than that as idle, so the reply wakes the application where it was,
// not on the CPU next door. A read or a sync, which can keep the runner from the others' requests, ends the run.
//
// On a CPU that somebody else keeps busy, SCHED_IDLE gets next to nothing: another worker watches the runner, and gives it back its
// normal policy, or ends the run, within some milliseconds. For that it needs the mutex, so nobody holds it as SCHED_IDLE, or while
// changing CPUs: such a thread may get a CPU only after seconds. The runner makes itself SCHED_IDLE without the mutex, then
// looks whether the run was ended meanwhile, and takes it back if so:
//
//   runner                               whoever ends the run (mutex held)
//   SCHED_IDLE                           runner_ = 0
//   runner_ is me?                       runner: SCHED_OTHER
//     no: SCHED_OTHER
#pragma once

#include <sched.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>

#include "base/mutex.h"

namespace sluice::fuse {

/// Called by the workers of one session, each around its own requests, in the order of the declarations. Thread-safe.
class RequestRun {
 public:
  enum class Part {
    member,   ///< short, and its sender waits for the answer
    neutral,  ///< sent by nobody in particular, whenever the kernel comes to it (RELEASE, FORGET)
    other,    ///< ends a run
  };
  static Part part_of(std::uint32_t opcode);

  /// Without the right to change back from SCHED_IDLE, or with another policy than SCHED_OTHER, there are no runs.
  RequestRun();

  /// About to wait for a request. In a run, only the runner comes back before it is over.
  void before_read() EXCLUDES(mutex_);
  /// `thread`: who sent the request; 0 if it is not known here.
  void received(Part part, pid_t thread) EXCLUDES(mutex_);
  /// The request was answered, or given to another thread.
  void processed();
  /// This worker is about to start another one. A thread inherits scheduling policy and CPUs from the one that creates it, so a
  /// runner ends its run: all others are busy then, and a worker that stayed SCHED_IDLE would serve nobody on busy CPUs.
  void before_new_worker() EXCLUDES(mutex_);
  /// This worker ends.
  void leave() EXCLUDES(mutex_);

  std::uint64_t runs() const { return runs_.load(std::memory_order_relaxed); }

 private:
  enum class State {
    none,
    gathering,  ///< there is a run; workers that come back from a request stay away, the last one becomes the runner
    running,
  };
  struct Worker {
    pid_t thread = 0;
    bool reads = false;
    bool runs = false;  ///< unless a watcher ended the run: is_runner() tells
    int cpu = -1;
    int members = 0;  ///< of this run
    cpu_set_t affinity{};  ///< before this run
  };
  static Worker& worker();
  bool is_runner(Worker& self);
  void count(Part part, pid_t thread);
  bool begin(Worker& self) REQUIRES(mutex_);
  void take_place(Worker& self) EXCLUDES(mutex_);
  void become_idle(Worker& self) EXCLUDES(mutex_);
  void move_to(Worker& self, int cpu) EXCLUDES(mutex_);
  void end(Worker& self, bool broken) EXCLUDES(mutex_);
  void end_locked(bool broken) REQUIRES(mutex_);
  void watch() REQUIRES(mutex_);
  void look_at_runner() REQUIRES(mutex_);
  void follow(Worker& self) EXCLUDES(mutex_);

  bool possible_ = false;
  std::atomic<State> state_{State::none};
  std::atomic<int> readers_{0};  ///< workers in read(2), or on their way; not the runner
  std::atomic<pid_t> thread_{0};
  std::atomic<std::int64_t> last_member_ns_{0};
  std::atomic<int> consecutive_{0};
  std::atomic<std::int64_t> not_before_ns_{0};
  std::atomic<std::int64_t> busy_since_ns_{0};  ///< the runner's current request; 0: it waits for the next
  std::atomic<std::int64_t> equal_until_ns_{0};  ///< until then the runner is no SCHED_IDLE; 0: it is
  std::atomic<std::uint64_t> runs_{0};

  Mutex mutex_;
  CondVar changed_;
  std::atomic<pid_t> runner_{0};  ///< changed under the mutex
  cpu_set_t affinity_ GUARDED_BY(mutex_) {};  ///< the runner's before
  bool watched_ GUARDED_BY(mutex_) = false;
  std::int64_t penalty_ns_ GUARDED_BY(mutex_) = 0;
};

}  // namespace sluice::fuse
