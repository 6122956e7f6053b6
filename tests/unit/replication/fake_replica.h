// A replica that keeps its databases in memory and checks everything a change set or snapshot claims, as the real one
// does. Tests can make it slow, make it fail, and look at the whole sequence of positions it went through.
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "storage/replica.h"

namespace sluice::replication::testing {

class FakeDatabase final : public storage::ReplicaDatabase {
 public:
  explicit FakeDatabase(std::string name) : name_(std::move(name)) {}

  const std::string& name() const override { return name_; }
  Pos logged() const override { return pos(); }
  Pos applied() const override { return pos(); }
  Epoch epoch() const override;

  Result<void> begin_change_set(const storage::IncomingChangeSet& head) override;
  Result<void> change_set_bytes(ByteView bytes) override;
  Result<void> finish_change_set() override;
  void abort_change_set() override;
  Result<bool> prepare_offer(storage::PageOffer& offer) override;
  Result<void> offered_sums(Pgno first, std::span<std::uint64_t> out) override;
  Result<void> begin_snapshot(std::uint32_t page_size, std::uint32_t pages) override;
  Result<void> snapshot_page(Pgno pgno, ByteView content) override;
  Result<void> finish_snapshot(const storage::SnapshotEnd& end) override;
  void abort_snapshot() override;
  void mark_damaged(std::span<const Pgno> pages) override EXCLUDES(mutex_);
  std::size_t damaged() override EXCLUDES(mutex_);
  Result<Txid> sync() override;

  Pos pos() const EXCLUDES(mutex_);
  std::map<std::uint32_t, Bytes> pages() const EXCLUDES(mutex_);
  /// Pages that snapshots brought.
  std::size_t pages_received() const EXCLUDES(mutex_);
  /// prepare_offer() says "call again" so often first.
  void slow_offer(int times) { slow_offer_ = times; }
  std::size_t snapshots() const EXCLUDES(mutex_);
  std::size_t change_sets() const EXCLUDES(mutex_);
  /// Empty, or what was wrong with the order of what was applied.
  std::string order_error() const EXCLUDES(mutex_);

  /// While set, every finish_change_set waits. Cleared by release().
  void hold() EXCLUDES(mutex_);
  void release() EXCLUDES(mutex_);
  /// Something waits for release() now.
  bool waiting() const EXCLUDES(mutex_);
  /// The next `times` calls of finish_change_set fail like this.
  void fail_next(int times, Errc code) EXCLUDES(mutex_);
  void fail_snapshots(int times, Errc code) EXCLUDES(mutex_);
  void damage() EXCLUDES(mutex_);  ///< its content is no longer what its position says

 private:
  using Pages = std::map<std::uint32_t, Bytes>;
  void enter();
  void wait_while_held() REQUIRES(mutex_);
  void leave() { --inside_; }

  const std::string name_;
  std::atomic<int> inside_{0};
  storage::IncomingChangeSet head_;
  Bytes image_;
  std::uint32_t staged_page_size_ = 0;
  Pages staged_;
  std::atomic<int> slow_offer_{0};
  Checksum sum_of(std::uint32_t pgno) REQUIRES(mutex_);

  mutable Mutex mutex_;
  CondVar changed_;
  Pos pos_ GUARDED_BY(mutex_);
  Epoch epoch_ GUARDED_BY(mutex_);
  Pages pages_ GUARDED_BY(mutex_);
  std::uint32_t page_size_ GUARDED_BY(mutex_) = 0;
  std::set<std::uint32_t> damaged_ GUARDED_BY(mutex_);
  std::size_t pages_received_ GUARDED_BY(mutex_) = 0;
  std::size_t snapshots_ GUARDED_BY(mutex_) = 0;
  std::size_t change_sets_ GUARDED_BY(mutex_) = 0;
  std::string order_error_ GUARDED_BY(mutex_);
  bool held_ GUARDED_BY(mutex_) = false;
  int waiting_ GUARDED_BY(mutex_) = 0;
  int fail_times_ GUARDED_BY(mutex_) = 0;
  Errc fail_code_ GUARDED_BY(mutex_) = Errc::internal;
  int fail_snapshots_ GUARDED_BY(mutex_) = 0;
  Errc fail_snapshot_code_ GUARDED_BY(mutex_) = Errc::internal;
};

class FakeReplica final : public storage::Replica {
 public:
  Result<std::shared_ptr<storage::ReplicaDatabase>> database(const std::string& name) override EXCLUDES(mutex_);
  std::vector<std::shared_ptr<storage::ReplicaDatabase>> list() const override EXCLUDES(mutex_);
  Result<void> discard(const std::string& name) override EXCLUDES(mutex_);
  void stop() override {}

  /// Created if missing, so that a test can prepare it.
  std::shared_ptr<FakeDatabase> fake(const std::string& name) EXCLUDES(mutex_);
  /// nullptr when it does not exist.
  std::shared_ptr<FakeDatabase> find(const std::string& name) const EXCLUDES(mutex_);
  std::vector<std::string> discarded() const EXCLUDES(mutex_);

 private:
  mutable Mutex mutex_;
  std::map<std::string, std::shared_ptr<FakeDatabase>> databases_ GUARDED_BY(mutex_);
  std::vector<std::string> discarded_ GUARDED_BY(mutex_);
};

}  // namespace sluice::replication::testing
