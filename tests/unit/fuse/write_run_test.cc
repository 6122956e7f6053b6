// When a run of writes begins and ends, and that its worker has its scheduling back afterwards.
#include "fuse/write_run.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <future>
#include <thread>

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

}  // namespace
}  // namespace sluice::fuse
