// Runs of WRITE requests, as a checkpoint sends them: one page each, the next as soon as the last was answered. Waking a
// sleeping worker on an idle CPU for each costs more than the write itself (on a virtual machine 10 to 20 us for the
// interrupt alone, docs/PERFORMANCE.md). So in such a run one worker, the runner, looks for the next request without
// sleeping for as long as it is due, and no other sleeps where the kernel would wake it.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/clock.h"
#include "base/mutex.h"

namespace sluice::fuse {

/// Called by the workers of one session, each around its own requests, in the order of the declarations. Thread-safe.
class WriteRun {
 public:
  /// About to read the next request from `device`. The runner comes back when there is one or it is overdue; the others, in a
  /// run, when it is over or the runner is held up by its request for a millisecond.
  void before_read(int device) EXCLUDES(mutex_);
  void received(bool is_write) EXCLUDES(mutex_);
  /// The request was answered (or given to another thread).
  void processed() EXCLUDES(mutex_);
  /// This worker ends.
  void leave() EXCLUDES(mutex_);

 private:
  enum class State {
    none,
    gathering,  ///< there is a run; workers that come back from a request stay away, the last one becomes the runner
    running,
  };
  struct Worker {
    bool reads = false;
    bool runs = false;
    bool wrote = false;
  };
  static Worker& worker();
  void end() EXCLUDES(mutex_);
  bool is_held_up() const;

  std::atomic<State> state_{State::none};
  std::atomic<int> readers_{0};              ///< workers in read(2), or on their way
  std::atomic<std::int64_t> busy_since_{0};  ///< the runner's current request; 0: it is looking for the next
  std::atomic<std::int64_t> last_write_{0};
  std::atomic<int> consecutive_{0};
  Mutex mutex_;
  CondVar changed_;
};

}  // namespace sluice::fuse
