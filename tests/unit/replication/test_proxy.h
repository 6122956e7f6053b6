// A TCP proxy between replica and primary that cuts, damages, freezes and slows what goes through.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <thread>

#include "tests/unit/replication/test_primary.h"

namespace sluice::replication::testing {

class TestProxy {
 public:
  explicit TestProxy(std::uint16_t target);
  ~TestProxy();
  std::string url() const { return listener_->url(); }

  /// Every connection from now on is cut after so many bytes from the primary; 0: not.
  void cut_after(std::uint64_t bytes) { cut_after_ = bytes; }
  /// The byte that many bytes of the next connection's primary-to-replica direction in is flipped; once. 0: not.
  void flip_at(std::uint64_t offset) { flip_at_ = offset; }
  /// Nothing goes through while set; connections stay open.
  void freeze(bool frozen) { frozen_ = frozen; }
  /// Cuts all connections now.
  void cut();
  std::uint64_t connections() const { return connections_; }
  bool flipped() const { return flipped_; }
  bool take_flipped() { return flipped_.exchange(false); }

 private:
  struct Link {
    UniqueFd replica;
    UniqueFd primary;
    std::thread thread;
  };
  void pump(Link& link);
  bool forward(int from, int to, bool downstream, std::uint64_t& done);

  const std::uint16_t target_;
  std::atomic<std::uint64_t> cut_after_{0};
  std::atomic<std::uint64_t> flip_at_{0};
  std::atomic<bool> flipped_{false};
  std::atomic<bool> frozen_{false};
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> connections_{0};
  Mutex mutex_;
  std::list<Link> links_ GUARDED_BY(mutex_);
  std::unique_ptr<Listener> listener_;
};

}  // namespace sluice::replication::testing
