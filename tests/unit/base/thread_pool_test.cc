#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <thread>

namespace sluice {
namespace {

constexpr auto kDeadline = std::chrono::seconds(30);

// Waits until `done` counts to `expected`, with a deadline.
class Countdown {
 public:
  explicit Countdown(int expected) : left_(expected) {}
  void hit() {
    if (left_.fetch_sub(1) == 1) promise_.set_value();
  }
  bool wait() { return promise_.get_future().wait_for(kDeadline) == std::future_status::ready; }

 private:
  std::atomic<int> left_;
  std::promise<void> promise_;
};

TEST(ThreadPool, RunsEverythingOnItsThreads) {
  ThreadPool pool("a-rather-long-thread-name", 3);
  Countdown all(3000);
  std::atomic<int> here{0};
  std::promise<std::string> name;
  const auto caller = std::this_thread::get_id();
  ASSERT_TRUE(pool.post([&] {
    char buffer[32] = {};
    pthread_getname_np(pthread_self(), buffer, sizeof buffer);
    name.set_value(buffer);
  }));
  for (int i = 0; i < 3000; ++i) {
    ASSERT_TRUE(pool.post([&] {
      here += std::this_thread::get_id() == caller;
      all.hit();
    }));
  }
  EXPECT_TRUE(all.wait());
  EXPECT_EQ(here.load(), 0);
  EXPECT_EQ(name.get_future().get(), "a-rather-long-t");
}

TEST(ThreadPool, TasksRunAtTheSameTime) {
  ThreadPool pool("pair", 2);
  std::promise<void> first;
  std::promise<void> second;
  std::promise<bool> met;
  pool.post([&] {
    first.set_value();
    met.set_value(second.get_future().wait_for(kDeadline) == std::future_status::ready);
  });
  pool.post([&] {
    if (first.get_future().wait_for(kDeadline) == std::future_status::ready) second.set_value();
  });
  EXPECT_TRUE(met.get_future().get());
}

TEST(ThreadPool, OneThreadKeepsTheOrder) {
  ThreadPool pool("one", 1);
  std::vector<int> order;
  for (int i = 0; i < 1000; ++i) pool.post([&order, i] { order.push_back(i); });
  pool.stop();
  ASSERT_EQ(order.size(), 1000u) << "stop() runs what is queued";
  for (int i = 0; i < 1000; ++i) EXPECT_EQ(order[static_cast<std::size_t>(i)], i);
}

TEST(ThreadPool, NothingIsTakenAfterStop) {
  ThreadPool pool("stopped", 2);
  pool.stop();
  pool.stop();
  std::atomic<bool> ran{false};
  EXPECT_FALSE(pool.post([&] { ran = true; }));
  EXPECT_FALSE(SerialQueue::create(pool)->post([&] { ran = true; }));
  EXPECT_FALSE(ran.load());
}

TEST(SerialQueue, KeepsOrderAndNeverOverlapsUnderLoad) {
  constexpr int kQueues = 5;
  constexpr int kProducers = 4;
  constexpr int kTasks = 1500;
  struct Lane {
    std::shared_ptr<SerialQueue> queue;
    std::atomic<int> inside{0};
    std::vector<int> next =
        std::vector<int>(kProducers);  // touched only by the queue's tasks: TSan checks that, too
    int out_of_order = 0;
    int overlapped = 0;
  };
  ThreadPool pool("load", 4);
  std::vector<Lane> lanes(kQueues);
  for (Lane& lane : lanes) lane.queue = SerialQueue::create(pool);
  Countdown all(kQueues * kProducers * kTasks);
  std::vector<std::thread> producers;
  for (int p = 0; p < kProducers; ++p) {
    producers.emplace_back([&, p] {
      for (int i = 0; i < kTasks; ++i) {
        for (Lane& lane : lanes) {
          lane.queue->post([&lane, &all, p, i] {
            lane.overlapped += lane.inside.fetch_add(1) != 0;
            int& next = lane.next[static_cast<std::size_t>(p)];
            lane.out_of_order += next++ != i;
            lane.inside.fetch_sub(1);
            all.hit();
          });
        }
      }
    });
  }
  for (auto& t : producers) t.join();
  ASSERT_TRUE(all.wait());
  pool.stop();
  for (const Lane& lane : lanes) {
    EXPECT_EQ(lane.out_of_order, 0);
    EXPECT_EQ(lane.overlapped, 0);
    for (const int n : lane.next) EXPECT_EQ(n, kTasks);
  }
}

TEST(SerialQueue, WhatWasAcceptedRunsAlsoWhenThePoolStops) {
  std::atomic<int> ran{0};
  ThreadPool pool("stopping", 1);
  const auto queue = SerialQueue::create(pool);
  std::promise<void> started;
  std::promise<void> go;
  int accepted = 0;
  accepted += queue->post([&] {
    started.set_value();
    go.get_future().wait();
    ++ran;
  });
  for (int i = 0; i < 10; ++i) accepted += queue->post([&] { ++ran; });
  started.get_future().wait();
  std::thread stopper([&] { pool.stop(); });
  // The pool refuses new tasks once it is stopping; only then does the first one end.
  while (pool.post([] {})) std::this_thread::yield();
  go.set_value();
  stopper.join();
  EXPECT_EQ(ran.load(), accepted);
}

TEST(SerialQueue, ABusyQueueDoesNotStarveAnother) {
  ThreadPool pool("fair", 1);
  const auto busy = SerialQueue::create(pool);
  const auto quiet = SerialQueue::create(pool);
  std::promise<void> start;
  std::vector<char> order;
  Countdown all(101);
  busy->post([&] { start.get_future().wait_for(kDeadline); });
  for (int i = 0; i < 100; ++i) {
    busy->post([&] {
      order.push_back('b');
      all.hit();
    });
  }
  quiet->post([&] {
    order.push_back('q');
    all.hit();
  });
  start.set_value();
  ASSERT_TRUE(all.wait());
  pool.stop();
  EXPECT_LE(std::find(order.begin(), order.end(), 'q') - order.begin(), 1) << "one task each, in turn";
}

TEST(SerialQueue, TasksMayPostAndTheQueueLivesUntilTheyRan) {
  ThreadPool pool("chain", 2);
  auto queue = SerialQueue::create(pool);
  const std::weak_ptr<SerialQueue> watch = queue;
  Countdown all(1000);
  std::function<void(int)> chain = [&](int left) {
    all.hit();
    if (left > 1) {
      const auto self = watch.lock();
      ASSERT_NE(self, nullptr);
      self->post([&chain, left] { chain(left - 1); });
    }
  };
  std::promise<void> go;
  queue->post([&] {
    go.get_future().wait_for(kDeadline);
    chain(1000);
  });
  queue.reset();
  go.set_value();
  EXPECT_TRUE(all.wait());
  pool.stop();
  EXPECT_TRUE(watch.expired());
}

TEST(SerialQueue, TheTaskIsDestroyedBeforeTheNextRuns) {
  ThreadPool pool("destroy", 1);
  const auto queue = SerialQueue::create(pool);
  auto token = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = token;
  std::promise<bool> gone;
  queue->post([token = std::move(token)] { EXPECT_EQ(*token, 1); });
  queue->post([&] { gone.set_value(watch.expired()); });
  EXPECT_TRUE(gone.get_future().get());
}

}  // namespace
}  // namespace sluice
