#include "base/async.h"

#include <pthread.h>

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <future>
#include <thread>
#include <utility>

#include "base/check.h"

namespace sluice {

namespace asio = boost::asio;

struct EventLoop::Impl {
  // Concurrency hint 1: one thread runs it.
  asio::io_context context{1};
  asio::executor_work_guard<asio::io_context::executor_type> work{context.get_executor()};
  std::thread thread;
};

EventLoop::EventLoop(std::string name) : impl_(std::make_unique<Impl>()) {
  impl_->thread = std::thread([impl = impl_.get()] { impl->context.run(); });
  pthread_setname_np(impl_->thread.native_handle(), name.substr(0, 15).c_str());
}

EventLoop::~EventLoop() { stop(); }

void EventLoop::post(std::function<void()> task) { asio::post(impl_->context, std::move(task)); }

void EventLoop::run(const std::function<void()>& task) {
  CHECK(!in_thread());
  std::promise<void> done;
  post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

bool EventLoop::in_thread() const { return std::this_thread::get_id() == impl_->thread.get_id(); }

asio::io_context& EventLoop::context() { return impl_->context; }

void EventLoop::stop() {
  if (!impl_->thread.joinable()) return;
  CHECK(!in_thread());
  post([impl = impl_.get()] { impl->context.stop(); });
  impl_->thread.join();
}

struct Timer::State {
  explicit State(asio::io_context& context) : timer(context) {}
  asio::steady_timer timer;
  std::uint64_t generation = 0;  // a handler that was already queued when the timer was cancelled sees another one
  bool armed = false;
};

Timer::Timer(EventLoop& loop) : state_(std::make_shared<State>(loop.context())) {}

Timer::~Timer() { cancel(); }

void Timer::start(Duration delay, std::function<void()> task) {
  const std::uint64_t generation = ++state_->generation;
  state_->armed = true;
  state_->timer.expires_after(delay);
  state_->timer.async_wait(
      [state = state_, generation, task = std::move(task)](const boost::system::error_code& error) {
        if (error || state->generation != generation) return;
        state->armed = false;
        task();
      });
}

void Timer::cancel() {
  ++state_->generation;
  state_->armed = false;
  state_->timer.cancel();
}

bool Timer::armed() const { return state_->armed; }

}  // namespace sluice
