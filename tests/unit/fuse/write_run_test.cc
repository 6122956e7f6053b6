// When a run of writes begins and ends, and that its worker has its scheduling back afterwards.
#include "fuse/write_run.h"

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

using Clock = std::chrono::steady_clock;

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

/// The application whose writes they are; a thread of this process will do.
class WriteRunTest : public ::testing::Test {
 protected:
  /// What a worker does for each request.
  void serve(bool is_write, pid_t thread) {
    run_.before_read();
    run_.received(is_write, thread);
    run_.processed();
  }
  void expect_normal(pid_t thread = 0) {
    EXPECT_EQ(scheduling(thread).policy, SCHED_OTHER);
    EXPECT_EQ(scheduling(thread).cpus, before_.cpus);
  }
  /// The calling thread becomes the runner of this application's writes.
  void begin_run() {
    for (int i = 0; i < 1000 && run_.runs() == 0; ++i) serve(true, application_);
    ASSERT_EQ(run_.runs(), 1u);
    run_.before_read();
    ASSERT_EQ(scheduling().policy, SCHED_IDLE);
    ASSERT_EQ(scheduling().cpus, 1);
  }

  WriteRun run_;
  const pid_t application_ = ::getpid();
  const Scheduling before_ = scheduling();
};

TEST_F(WriteRunTest, BeginsWithWritesOfOneThreadAndEndsWithAnythingElse) {
  begin_run();
  for (int i = 0; i < 200; ++i) {
    run_.received(true, application_);
    run_.processed();
    run_.before_read();
  }
  EXPECT_EQ(scheduling().policy, SCHED_IDLE);
  run_.received(false, application_);
  expect_normal();
  run_.processed();
  serve(false, application_);
  run_.leave();
}

TEST_F(WriteRunTest, WritesOfSeveralThreadsAreNoRun) {
  for (int i = 0; i < 1000; ++i) serve(true, i % 2 == 0 ? application_ : application_ + 1);
  EXPECT_EQ(run_.runs(), 0u);
  run_.leave();
}

TEST_F(WriteRunTest, AnUnknownThreadIsNoRun) {
  for (int i = 0; i < 1000; ++i) serve(true, 0);
  EXPECT_EQ(run_.runs(), 0u);
  run_.leave();
}

// A thread inherits policy and CPUs.
TEST_F(WriteRunTest, AWorkerThatTheRunnerStartsIsANormalOne) {
  begin_run();
  run_.received(true, application_);
  run_.before_new_worker();
  std::thread([this] { expect_normal(); }).join();
  expect_normal();
  run_.processed();
  serve(true, application_);
  run_.leave();
}

// SCHED_IDLE gets nothing on a busy CPU; whoever waits in the meantime sees to it.
TEST_F(WriteRunTest, ARunnerThatIsHeldUpIsGivenItsSchedulingBack) {
  const pid_t runner = ::gettid();
  begin_run();
  run_.received(true, application_);  // and is not done with it
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

TEST_F(WriteRunTest, ARunWithoutFurtherWritesEnds) {
  const pid_t runner = ::gettid();
  begin_run();
  auto other = std::async(std::launch::async, [this] {
    run_.before_read();
    run_.received(false, 0);
    run_.processed();
    run_.leave();
  });
  ASSERT_EQ(other.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  expect_normal(runner);
  run_.received(true, application_);  // the old runner, whose run is over
  run_.processed();
  expect_normal();
  run_.leave();
}

// A runner that holds the mutex while it is SCHED_IDLE, or on its way to a busy CPU, keeps everybody from looking at it: for as
// long as that CPU is busy, and it is all a worker can do to read the requests of other applications.
TEST_F(WriteRunTest, ARunnerOnABusyMachineHoldsNobodyUp) {
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
    while (!stop) serve(true, application_);
    run_.leave();
  };
  std::vector<std::thread> workers;
  for (int i = 0; i < 2; ++i) workers.emplace_back(serve_writes);
  workers.emplace_back([&] {
    while (!stop) {
      const auto start = Clock::now();
      run_.before_read();
      run_.received(true, application_);
      run_.processed();
      const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
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
