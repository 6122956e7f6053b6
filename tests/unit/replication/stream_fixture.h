// Primary and replica in one process, over loopback.
#pragma once

#include <gtest/gtest.h>

#include "replication/subscriber.h"
#include "tests/unit/replication/fake_replica.h"
#include "tests/unit/replication/test_primary.h"

namespace sluice::replication::testing {

/// A replica with a subscriber. Defaults are quick: short backoff, heartbeats every 50 ms.
class TestReplica {
 public:
  explicit TestReplica(std::string url, NodeId node_id = NodeId(99)) {
    options_.primary_url = std::move(url);
    options_.hostname = "the-replica";
    options_.node_id = node_id;
    options_.heartbeat_ms = 50;
    options_.backoff_min_ms = 5;
    options_.backoff_max_ms = 50;
  }
  ~TestReplica() { stop(); }

  SubscriberOptions& options() { return options_; }
  void start() { subscriber_ = Subscriber::create(fake_, system_clock(), pool_, options_); }
  void stop() {
    if (subscriber_) subscriber_->stop();
    subscriber_ = nullptr;
  }
  SubscriberStatus status() const { return subscriber_->status(); }
  Subscriber& subscriber() { return *subscriber_; }
  FakeReplica& fake() { return fake_; }
  Pos pos(const std::string& name) const {
    const auto database = fake_.find(name);
    return database ? database->pos() : Pos{};
  }
  bool reaches(const std::string& name, const Pos& pos,
               std::chrono::milliseconds limit = std::chrono::seconds(20)) const {
    return wait_for([&] { return this->pos(name) == pos; }, limit);
  }
  bool synced() const {
    return wait_for([&] { return status().synced; });
  }

 private:
  SubscriberOptions options_;
  FakeReplica fake_;
  ThreadPool pool_{"replica", 3};
  std::unique_ptr<Subscriber> subscriber_;
};

inline PublisherOptions quick() {
  PublisherOptions options;
  options.heartbeat_ms = 50;
  options.stop_wait_ms = 200;
  return options;
}

/// The same content, page by page.
inline void expect_same(TestDatabase& primary, TestReplica& replica) {
  const auto fake = replica.fake().find(primary.database().name());
  ASSERT_NE(fake, nullptr);
  EXPECT_EQ(fake->pos(), primary.database().pos());
  EXPECT_TRUE(fake->pages() == primary.pages()) << "pages differ at the same position";
  EXPECT_EQ(fake->order_error(), "");
}

}  // namespace sluice::replication::testing
