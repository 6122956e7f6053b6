// When a run of requests begins and ends, and that its worker has its scheduling back afterwards.
#include "fuse/request_run.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <thread>
#include <vector>

namespace sluice::fuse {
namespace {

constexpr auto kMember = RequestRun::Part::member;
constexpr auto kNeutral = RequestRun::Part::neutral;
constexpr auto kOther = RequestRun::Part::other;

struct Scheduling {
  int policy = -1;
  int cpus = 0;
};

Scheduling scheduling(pid_t thread = 0) {
  cpu_set_t set;
  CPU_ZERO(&set);
  ::sched_getaffinity(thread, sizeof set, &set);
  return {::sched_getscheduler(thread), CPU_COUNT(&set)};
}

/// The application whose requests they are; a thread of this process will do.
class RequestRunTest : public ::testing::Test {
 protected:
  /// What a worker does for each request.
  void serve(RequestRun::Part part, pid_t thread) {
    run_.before_read();
    run_.received(part, thread);
    run_.processed();
  }
  void expect_normal(pid_t thread = 0) {
    EXPECT_EQ(scheduling(thread).policy, SCHED_OTHER);
    EXPECT_EQ(scheduling(thread).cpus, before_.cpus);
  }
  /// The calling thread becomes the runner of this application's requests.
  void begin_run() {
    for (int i = 0; i < 1000 && run_.runs() == 0; ++i) serve(kMember, application_);
    ASSERT_EQ(run_.runs(), 1u);
    run_.before_read();
    ASSERT_EQ(scheduling().policy, SCHED_IDLE);
    ASSERT_EQ(scheduling().cpus, 1);
  }

  RequestRun run_;
  const pid_t application_ = ::getpid();
  const Scheduling before_ = scheduling();
};

TEST_F(RequestRunTest, BeginsWithRequestsOfOneThreadAndEndsWithAnythingElse) {
  begin_run();
  for (int i = 0; i < 200; ++i) {
    run_.received(kMember, application_);
    run_.processed();
    run_.before_read();
  }
  EXPECT_EQ(scheduling().policy, SCHED_IDLE);
  run_.received(kOther, application_);
  expect_normal();
  run_.processed();
  serve(kOther, application_);
  run_.leave();
}

// The kernel sends RELEASE in its own time, in nobody's name.
TEST_F(RequestRunTest, AReleaseNeitherEndsARunNorKeepsOneFromBeginning) {
  for (int i = 0; i < 1000 && run_.runs() == 0; ++i) serve(i % 2 == 0 ? kMember : kNeutral, i % 2 == 0 ? application_ : 0);
  ASSERT_EQ(run_.runs(), 1u);
  run_.before_read();
  for (int i = 0; i < 10; ++i) {
    run_.received(kNeutral, 0);
    run_.processed();
    run_.before_read();
  }
  EXPECT_EQ(scheduling().policy, SCHED_IDLE);
  run_.leave();
}

TEST_F(RequestRunTest, RequestsOfSeveralThreadsAreNoRun) {
  for (int i = 0; i < 1000; ++i) serve(kMember, i % 2 == 0 ? application_ : application_ + 1);
  EXPECT_EQ(run_.runs(), 0u);
  run_.leave();
}

TEST_F(RequestRunTest, AnUnknownThreadIsNoRun) {
  for (int i = 0; i < 1000; ++i) serve(kMember, 0);
  EXPECT_EQ(run_.runs(), 0u);
  run_.leave();
}

// A thread inherits policy and CPUs.
TEST_F(RequestRunTest, AWorkerThatTheRunnerStartsIsANormalOne) {
  begin_run();
  run_.received(kMember, application_);
  run_.before_new_worker();
  std::thread([this] { expect_normal(); }).join();
  expect_normal();
  run_.processed();
  serve(kMember, application_);
  run_.leave();
}

// SCHED_IDLE gets nothing on a busy CPU; whoever waits in the meantime sees to it.
TEST_F(RequestRunTest, ARunnerThatIsHeldUpIsGivenItsSchedulingBack) {
  const pid_t runner = ::gettid();
  begin_run();
  run_.received(kMember, application_);  // and is not done with it
  auto other = std::async(std::launch::async, [this] {
    run_.before_read();
    run_.leave();
  });
  ASSERT_EQ(other.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  expect_normal(runner);
  run_.processed();
  run_.before_read();
  run_.leave();
}

TEST_F(RequestRunTest, ARunWithoutFurtherRequestsEnds) {
  const pid_t runner = ::gettid();
  begin_run();
  auto other = std::async(std::launch::async, [this] {
    run_.before_read();
    run_.received(kOther, 0);
    run_.processed();
    run_.leave();
  });
  ASSERT_EQ(other.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  expect_normal(runner);
  run_.received(kMember, application_);  // the old runner, whose run is over
  run_.processed();
  expect_normal();
  run_.leave();
}

// A runner that holds the mutex while it is SCHED_IDLE, or on its way to a busy CPU, keeps everybody from looking at it: for as
// long as that CPU is busy, and it is all a worker can do to read the requests of other applications.
TEST_F(RequestRunTest, ARunnerOnABusyMachineHoldsNobodyUp) {
  std::atomic<bool> stop{false};
  std::vector<std::thread> hogs;
  for (int i = 0; i < 3 * before_.cpus; ++i)
    hogs.emplace_back([&stop] {
      while (!stop) {
      }
    });
  std::thread application([&stop] {  // goes from CPU to CPU, and the runner after it
    while (!stop) {
    }
  });
  std::atomic<std::int64_t> longest_ms{0};
  const auto serve_writes = [&] {
    while (!stop) serve(kMember, application_);
    run_.leave();
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < 2; ++i) workers.emplace_back(serve_writes);
  workers.emplace_back([&] {
    while (!stop) {
      const auto start = std::chrono::steady_clock::now();
      run_.before_read();
      run_.received(kMember, application_);
      run_.processed();
      const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::steady_clock::now() - start).count();
      longest_ms = std::max<std::int64_t>(longest_ms, took);
    }
    run_.leave();
  });
  std::this_thread::sleep_for(std::chrono::seconds(2));
  stop = true;
  for (auto* group : {&hogs, &workers})
    for (std::thread& thread : *group) thread.join();
  application.join();
  RecordProperty("longest_ms", std::to_string(longest_ms));
  EXPECT_GT(run_.runs(), 0u);
  // Some 130 ms on a machine that does nothing else; a held mutex takes seconds.
  EXPECT_LT(longest_ms, 5000);
}

}  // namespace
}  // namespace sluice::fuse
