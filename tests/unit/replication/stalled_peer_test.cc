// Replicas that are alive and do nothing: they cost the others nothing.
#include <atomic>
#include <thread>

#include "tests/unit/replication/raw_peer.h"
#include "tests/unit/replication/stream_fixture.h"

namespace sluice::replication::testing {
namespace {

PublisherOptions impatient() {
  PublisherOptions options = quick();
  options.peer_timeout_ms = 300;
  options.stall_timeout_ms = 300;
  return options;
}

// Says hello, sends heartbeats, and reads or does not.
class Idler {
 public:
  Idler(const TestPrimary& primary, bool reads) : peer_(RawPeer::to_primary(primary.port())), reads_(reads) {
    peer_.greet();
    thread_ = std::thread([this] {
      while (!stop_) {
        peer_.send(Heartbeat{0, 0});
        if (reads_) {
          while (peer_.read(std::chrono::milliseconds(10))) ++frames_;
        }
        wait_for([this] { return stop_.load(); }, std::chrono::milliseconds(20));
      }
    });
  }
  ~Idler() {
    stop_ = true;
    thread_.join();
  }
  int frames() const { return frames_; }

 private:
  RawPeer peer_;
  const bool reads_;
  std::atomic<bool> stop_{false};
  std::atomic<int> frames_{0};
  std::thread thread_;
};

TEST(StalledPeer, SnapshotsThatNobodyAcknowledgesMakeRoomForOthers) {
  PublisherOptions options = impatient();
  options.window_bytes = 256 * 1024;
  TestPrimary primary(options);
  auto& db = primary.database("a.db");
  db.commit(1000, 0);
  db.rebase();  // only a snapshot will do
  std::vector<std::unique_ptr<Idler>> idlers;
  for (int i = 0; i < 4; ++i) {  // more than there are threads for snapshots
    idlers.push_back(std::make_unique<Idler>(primary, true));
    ASSERT_TRUE(wait_for([&] { return idlers.back()->frames() > 1 || i > 1; })) << "its snapshot has not begun";
  }
  TestReplica replica(primary.url());
  replica.start();
  EXPECT_TRUE(replica.reaches("a.db", db.database().pos()));
  EXPECT_EQ(primary.publisher().replicas().size(), 5u) << "those who acknowledge nothing are connected all the same";
}

TEST(StalledPeer, AReplicaThatReadsNothingIsDisconnected) {
  PublisherOptions options = impatient();
  options.window_bytes = kMaxWindow;
  TestPrimary primary(options);
  primary.database("a.db").commit(16'000, 0);  // more than sockets hold
  const Idler idler(primary, false);
  ASSERT_TRUE(wait_for([&] { return primary.publisher().replicas().size() == 1; }));
  EXPECT_TRUE(wait_for([&] { return primary.publisher().replicas().empty(); }));
}

}  // namespace
}  // namespace sluice::replication::testing
