// One thread that runs an Asio io_context, and timers on it. Asio itself stays out of this header.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"

namespace boost::asio {
class io_context;
}

namespace sluice {

/// A thread for sockets and timers. Handlers run one at a time, so what only they touch needs no lock. They must not
/// throw, block on files, or wait for contended mutexes (STYLE §5).
class EventLoop {
 public:
  /// `name` becomes the thread's name (15 characters at most).
  explicit EventLoop(std::string name);
  /// Calls stop().
  ~EventLoop();
  EventLoop(const EventLoop&) = delete;
  EventLoop& operator=(const EventLoop&) = delete;

  /// Runs `task` on the thread, in the order of the calls. Thread-safe. After stop(): dropped.
  void post(std::function<void()> task);
  /// Runs `task` on the thread and returns when it is done. Not from the thread itself, not after stop().
  void run(const std::function<void()>& task);
  bool in_thread() const;
  boost::asio::io_context& context();
  /// Ends the thread after what was posted before. Idempotent. Not from the thread itself.
  void stop();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// A one-shot timer. All calls on the loop's thread; the destructor too, or after the loop's stop().
class Timer {
 public:
  explicit Timer(EventLoop& loop);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  /// Calls `task` after `delay`, unless cancelled, destroyed or started again before.
  void start(Duration delay, std::function<void()> task);
  void cancel();
  bool armed() const;

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace sluice
