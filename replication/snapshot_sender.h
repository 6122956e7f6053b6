// Sends a snapshot of one database to one replica, or of it what differs from the replica's offer: copies it on a thread of
// its own, compresses batches of pages, and waits when the replica or the network is slower than the disk.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "replication/connection.h"
#include "replication/resync_progress.h"
#include "storage/snapshot.h"

namespace sluice::replication {

class SnapshotSender final : private storage::SnapshotSink, private storage::ReceiverPages {
 public:
  /// Takes whole frames that cost `cost` window bytes. Called on the snapshot's thread.
  using Deliver = std::function<void(Buffer frames, std::uint64_t cost)>;

  /// `sent`, `acknowledged`: where the window counters of the database stand now. run() gives up when the replica
  /// acknowledges nothing for `stall` of what it has got, so that its thread is free for others. `offer`: what the replica
  /// has, if it can say so.
  SnapshotSender(std::shared_ptr<storage::Database> database, std::uint32_t id, std::string tmp_dir,
                 std::uint64_t window_bytes, Duration stall, std::uint64_t sent, std::uint64_t acknowledged, Deliver deliver,
                 std::optional<storage::PageOffer> offer);

  /// Copies everything; blocks until done or cancelled. On success all frames including SnapshotEnd were delivered, and
  /// the position sent is durable here (I2). Not on the event loop.
  Result<storage::SnapshotEnd> run();

  /// Thread-safe.
  ResyncProgress progress() const EXCLUDES(mutex_);
  /// Makes run() return Errc::cancelled soon. Thread-safe.
  void cancel() EXCLUDES(mutex_);
  /// The window counters: how much went to the network, and was acknowledged. Thread-safe.
  void set_progress(std::uint64_t written, std::uint64_t acknowledged) EXCLUDES(mutex_);
  /// The answer to a PageSumsRequest; one that was not asked for is ignored. Thread-safe.
  void page_sums_arrived(Pgno first, ByteView payload) EXCLUDES(mutex_);
  /// The database's log may be durable up to a later position. Thread-safe.
  void durable_changed() EXCLUDES(mutex_);

 private:
  const storage::PageOffer& offer() const override { return *offer_; }
  Result<void> page_sums(Pgno first, std::span<std::uint64_t> out) override EXCLUDES(mutex_);
  void differing(std::uint32_t pages) override { differing_ = pages; }
  Result<void> begin(std::uint32_t page_size, std::uint32_t pages) override;
  Result<void> page(Pgno pgno, ByteView content) override;
  Result<void> end(const storage::SnapshotEnd& end) override;
  Result<void> flush();
  Result<void> deliver(const Message& message, ByteView payload) EXCLUDES(mutex_);
  Result<void> wait_for_room(std::uint64_t cost) EXCLUDES(mutex_);
  Result<void> wait_durable(Txid txid) EXCLUDES(mutex_);
  bool cancelled() EXCLUDES(mutex_);

  const std::shared_ptr<storage::Database> database_;
  const std::uint32_t id_;
  const std::string tmp_dir_;
  const std::uint64_t window_bytes_;
  const std::size_t batch_bytes_;
  const Duration stall_;
  const Deliver deliver_;
  const std::optional<storage::PageOffer> offer_;

  // The copying thread's own.
  std::vector<Pgno> pgnos_;
  Bytes raw_;
  Bytes compressed_;
  int skip_compression_ = 0;  // batches to send raw, because the last one did not get smaller
  std::uint64_t delivered_;
  std::optional<std::uint32_t> differing_;

  mutable Mutex mutex_;
  CondVar changed_;
  ResyncProgress progress_ GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point began_ GUARDED_BY(mutex_) = std::chrono::steady_clock::now();
  bool cancelled_ GUARDED_BY(mutex_) = false;
  std::uint64_t written_ GUARDED_BY(mutex_);
  std::uint64_t acknowledged_ GUARDED_BY(mutex_);
  std::uint64_t durable_events_ GUARDED_BY(mutex_) = 0;
  Pgno sums_first_ GUARDED_BY(mutex_);      // asked for now, if sums_count_
  std::size_t sums_count_ GUARDED_BY(mutex_) = 0;
  std::optional<std::vector<std::uint64_t>> sums_ GUARDED_BY(mutex_);
};

}  // namespace sluice::replication
