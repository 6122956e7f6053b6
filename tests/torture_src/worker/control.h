// How the orchestrator steers a worker: words on stdin (pause, resume, quit; end of file = quit), lines on
// stdout.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>

namespace sluice::torture {

/// Nanoseconds of CLOCK_MONOTONIC, the clock Python's time.monotonic_ns() reads too.
std::uint64_t now_ns();

/// Lines written: "ready", "paused", "stat k=v …", "sql <ns> <text>" (an SQL error that this worker may not
/// expect: the orchestrator knows whether the node was down), "violation <ns> <text>" (broken promise, always
/// a failure), "bye". Thread-safe.
class Control {
 public:
  Control();
  ~Control();
  Control(const Control&) = delete;
  Control& operator=(const Control&) = delete;

  /// Between transactions: reports "paused" and blocks while the orchestrator wants a pause. False: end now.
  bool proceed();
  bool pause_wanted() const { return pause_.load(); }
  bool quit() const { return quit_.load(); }
  /// Waits, interrupted by a pause or the end. False: end now.
  bool wait_ms(int ms);
  void say(const std::string& line);
  /// Where the error happened is in the text; the time is when it is reported.
  void sql_error(const std::string& text);
  void violation(const std::string& text);

  std::atomic<std::uint64_t> done{0};  ///< transactions, reads or checkpoints that succeeded
  std::atomic<std::uint64_t> busy{0};
  std::atomic<std::uint64_t> odd{0};  ///< legal but rare results, such as a refused stale checkpoint

 private:
  void listen();
  void handle(const std::string& word);

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> pause_{false};
  std::atomic<bool> quit_{false};
  bool waiting_ = false;  ///< proceed() does, under mutex_
  std::mutex output_mutex_;
  int wake_[2] = {-1, -1};
  std::thread listener_;
};

}  // namespace sluice::torture
