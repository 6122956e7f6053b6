// The poller: watches the wal-index of every busy WAL database at a short interval and waits with inotify for the idle
// ones; asks for a capture when there is something to capture.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "fuse/capture/captured_database.h"

namespace sluice::fuse {

/// What is to be done for a database later.
enum class Timer { unjournaled, abandoned_journal };

/// Thread-safe. One thread.
class Tailer {
 public:
  using Callback = std::function<void(const std::shared_ptr<CapturedDatabase>&)>;
  using TimerCallback = std::function<void(const std::shared_ptr<CapturedDatabase>&, Timer)>;
  /// `capture` and `due` post work; they must not block.
  Tailer(const CaptureOptions& options, Callback capture, TimerCallback due);
  ~Tailer();

  Result<void> start();
  void stop();
  /// Something happened to `database`: poll it for a while. `wal_path`: its backing WAL, for inotify.
  void wake(const std::shared_ptr<CapturedDatabase>& database, std::string wal_path) EXCLUDES(mutex_);
  /// Calls `due` for it after `delay`, counted from the last request.
  void schedule(const std::shared_ptr<CapturedDatabase>& database, Timer timer, Duration delay) EXCLUDES(mutex_);
  void forget(const std::string& name) EXCLUDES(mutex_);

 private:
  struct Entry {
    std::shared_ptr<CapturedDatabase> database;
    std::string wal_path;
    MonotonicTime last_change{};
    bool busy = false;
    int watch = -1;
  };

  void run();
  void take_requests() EXCLUDES(mutex_);
  void read_events();
  void poll_busy(MonotonicTime now);
  bool go_idle(Entry& entry);
  void make_busy(Entry& entry, MonotonicTime now);
  void fire_timers(MonotonicTime now) EXCLUDES(mutex_);
  int timeout_us(MonotonicTime now) EXCLUDES(mutex_);

  const CaptureOptions options_;
  const Callback capture_;
  const TimerCallback due_;
  UniqueFd wakeup_;   ///< eventfd
  UniqueFd inotify_;
  std::thread thread_;

  Mutex mutex_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::map<std::string, std::pair<std::shared_ptr<CapturedDatabase>, std::string>> requests_ GUARDED_BY(mutex_);
  std::vector<std::string> forgotten_ GUARDED_BY(mutex_);
  std::map<std::pair<std::string, Timer>, std::pair<MonotonicTime, std::shared_ptr<CapturedDatabase>>> timers_
      GUARDED_BY(mutex_);

  // The thread's own.
  using Entries = std::map<std::string, Entry>;
  Entries entries_;
  std::unordered_map<int, std::string> by_watch_;
  std::vector<Entry*> busy_;  ///< few of many; their addresses stay as long as they are in entries_
};

}  // namespace sluice::fuse
