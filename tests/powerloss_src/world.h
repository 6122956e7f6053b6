// What is recorded and what must hold afterwards. A world runs some seconds of a node's life under the recorder, from a seed; then
// it is asked for as many images of as many points as wanted, whether a node that starts on them keeps what was promised.
#pragma once

#include <memory>
#include <mutex>
#include <condition_variable>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "tests/powerloss_src/disk.h"

namespace sluice::powerloss {

class World {
 public:
  virtual ~World() = default;
  /// Lives for `steps`; the trace is then complete.
  virtual void record(int steps) = 0;
  const std::vector<Op>& ops() const { return ops_; }
  /// A node starts on what is in `image` (its data directory), the first `point` operations of the trace having happened. Empty: all
  /// is well; else what is not.
  virtual std::string check(const std::string& image, std::size_t point) = 0;

 protected:
  std::vector<Op> ops_;
};

/// `scratch`: an empty directory of its own.
std::unique_ptr<World> make_primary_world(std::uint64_t seed, const std::string& scratch);
std::unique_ptr<World> make_replica_world(std::uint64_t seed, const std::string& scratch);

/// A disk pool whose thread works only while drain() waits for it: what runs when is up to the seed.
class SteppedPool {
 public:
  SteppedPool();
  ~SteppedPool();
  ThreadPool& pool() { return pool_; }
  /// Runs what has been posted before the call.
  void drain();
  /// From now on it works as any other.
  void release();

 private:
  void close_gate();

  ThreadPool pool_{"disk", 1};
  std::mutex mutex_;
  std::condition_variable changed_;
  int gates_ = 0;    ///< posted
  int reached_ = 0;  ///< the thread waits, or has waited, at so many
  int open_ = 0;     ///< so many it may pass
  bool released_ = false;
};

void remove_tree(const std::string& path);
void copy_tree(const std::string& from, const std::string& to);
Bytes load(const std::string& path);
/// Errors that a world may meet are said in one sentence.
std::string describe(const std::string& what, const std::string& why);

}  // namespace sluice::powerloss
