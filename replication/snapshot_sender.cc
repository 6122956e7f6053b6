#include "replication/snapshot_sender.h"

#include <fmt/format.h>
#include <lz4.h>

#include <algorithm>
#include <chrono>
#include <utility>

namespace sluice::replication {
namespace {

constexpr std::size_t kBatchBytes = 256 * 1024;
constexpr std::uint64_t kMaxUnwritten = 1u << 20;  // frames waiting for the network
constexpr int kLz4Acceleration = 4;                // a gigabyte a second or so, for a few per cent in size
constexpr int kSkipAfterIncompressible = 15;
constexpr auto kDurableTimeout = std::chrono::seconds(30);

Error cancelled_error() { return make_error(Errc::cancelled, "the snapshot was cancelled"); }

}  // namespace

SnapshotSender::SnapshotSender(std::shared_ptr<storage::Database> database, std::uint32_t id, std::string tmp_dir,
                               std::uint64_t window_bytes, Duration stall, std::uint64_t sent,
                               std::uint64_t acknowledged, Deliver deliver,
                               std::optional<storage::PageOffer> offer)
    : database_(std::move(database)),
      id_(id),
      tmp_dir_(std::move(tmp_dir)),
      window_bytes_(window_bytes),
      batch_bytes_(std::min<std::size_t>(kBatchBytes, window_bytes / 2)),
      stall_(stall),
      deliver_(std::move(deliver)),
      offer_(std::move(offer)),
      delivered_(sent),
      written_(sent),
      acknowledged_(acknowledged) {}

Result<storage::SnapshotEnd> SnapshotSender::run() {
  storage::SnapshotOptions options;
  if (cancelled()) return cancelled_error();
  options.tmp_dir = tmp_dir_;
  if (offer_) options.receiver = this;
  options.cancelled = [this] { return cancelled(); };
  return storage::copy_database(*database_, options, *this);
}

ResyncProgress SnapshotSender::progress() const {
  MutexLock lock(mutex_);
  ResyncProgress progress = progress_;
  if (progress.phase == ResyncProgress::Phase::none) progress.phase = ResyncProgress::Phase::comparing;
  const auto elapsed = std::chrono::steady_clock::now() - began_;
  progress.elapsed_ms = std::chrono::duration_cast<std::chrono::milliseconds>(elapsed).count();
  return progress;
}

void SnapshotSender::cancel() {
  MutexLock lock(mutex_);
  cancelled_ = true;
  changed_.notify_all();
}

void SnapshotSender::set_progress(std::uint64_t written, std::uint64_t acknowledged) {
  MutexLock lock(mutex_);
  written_ = written;
  acknowledged_ = acknowledged;
  changed_.notify_all();
}

void SnapshotSender::durable_changed() {
  MutexLock lock(mutex_);
  ++durable_events_;
  changed_.notify_all();
}

void SnapshotSender::page_sums_arrived(Pgno first, ByteView payload) {
  MutexLock lock(mutex_);
  if (sums_ || sums_count_ == 0 || first != sums_first_ || payload.size() != sums_count_ * 8) return;
  sums_ = decode_sums(payload);
  changed_.notify_all();
}

Result<void> SnapshotSender::page_sums(Pgno first, std::span<std::uint64_t> out) {
  {
    MutexLock lock(mutex_);
    sums_first_ = first;
    sums_count_ = out.size();
    sums_.reset();
  }
  TRY(deliver(PageSumsRequest{id_, first, static_cast<std::uint32_t>(out.size())}, {}));
  const auto deadline = std::chrono::steady_clock::now() + stall_;
  MutexLock lock(mutex_);
  while (!sums_ && !cancelled_) {
    if (!changed_.wait_until(mutex_, deadline) && !sums_) {
      return make_error(Errc::deadline, database_->name() + ": the replica does not tell its page checksums");
    }
  }
  if (cancelled_) return cancelled_error();
  std::copy(sums_->begin(), sums_->end(), out.begin());
  sums_count_ = 0;
  sums_.reset();
  return {};
}

bool SnapshotSender::cancelled() {
  MutexLock lock(mutex_);
  return cancelled_;
}

Result<void> SnapshotSender::begin(std::uint32_t page_size, std::uint32_t pages) {
  pgnos_.clear();
  raw_.clear();
  // Only the first: one that starts over sends everything.
  const auto differing = std::exchange(differing_, std::nullopt);
  {
    MutexLock lock(mutex_);
    progress_ = {};
    progress_.phase = ResyncProgress::Phase::copying;
    progress_.expected = differing.value_or(pages);
    began_ = std::chrono::steady_clock::now();
  }
  return deliver(SnapshotBegin{id_, page_size, pages, differing.has_value(), differing.value_or(0)}, {});
}

Result<void> SnapshotSender::page(Pgno pgno, ByteView content) {
  if (raw_.size() + content.size() > batch_bytes_) TRY(flush());
  pgnos_.push_back(pgno);
  raw_.insert(raw_.end(), content.begin(), content.end());
  return {};
}

Result<void> SnapshotSender::end(const storage::SnapshotEnd& end) {
  TRY(flush());
  TRY(wait_durable(end.pos.txid));
  return deliver(SnapshotDone{id_, end.pos, end.epoch, end.page_size, end.commit, end.timestamp_ms}, {});
}

Result<void> SnapshotSender::flush() {
  if (pgnos_.empty()) return {};
  SnapshotPages message{id_, false, static_cast<std::uint32_t>(raw_.size()), std::exchange(pgnos_, {})};
  ByteView payload = raw_;
  if (skip_compression_ > 0) {
    --skip_compression_;
  } else {
    compressed_.resize(kBatchBytes);
    // Not worth it, and does not fit, unless a tenth is saved.
    const int limit = static_cast<int>(raw_.size() - raw_.size() / 10);
    const int size =
        LZ4_compress_fast(reinterpret_cast<const char*>(raw_.data()), reinterpret_cast<char*>(compressed_.data()),
                          static_cast<int>(raw_.size()), limit, kLz4Acceleration);
    if (size > 0) {
      message.lz4 = true;
      payload = ByteView(compressed_.data(), static_cast<std::size_t>(size));
    } else {
      skip_compression_ = kSkipAfterIncompressible;
    }
  }
  TRY(deliver(message, payload));
  raw_.clear();
  MutexLock lock(mutex_);
  progress_.pages += message.pgnos.size();
  progress_.bytes += payload.size();
  return {};
}

Result<void> SnapshotSender::deliver(const Message& message, ByteView payload) {
  const std::uint64_t cost = frame_cost(payload.size());
  TRY(wait_for_room(cost));
  auto frame = std::make_shared<Bytes>();
  frame->reserve(payload.size() + 4096);
  append_frame(*frame, message, payload);
  delivered_ += cost;
  deliver_(std::move(frame), cost);
  return {};
}

// A peer that does not read is the session's to notice; here it is one that has read and does nothing.
Result<void> SnapshotSender::wait_for_room(std::uint64_t cost) {
  MutexLock lock(mutex_);
  std::uint64_t acknowledged = acknowledged_;
  auto deadline = std::chrono::steady_clock::now() + stall_;
  while (!cancelled_ &&
         (delivered_ - written_ > kMaxUnwritten || delivered_ + cost - acknowledged_ > window_bytes_)) {
    const bool woken = changed_.wait_until(mutex_, deadline);
    if (acknowledged_ != acknowledged || written_ < delivered_) {
      acknowledged = acknowledged_;
      deadline = std::chrono::steady_clock::now() + stall_;
    } else if (!woken) {
      return make_error(Errc::deadline, fmt::format("{}: the replica acknowledges nothing of the snapshot",
                                                    database_->name()));
    }
  }
  if (cancelled_) return cancelled_error();
  return {};
}

// I2: the position that the snapshot ends with must be on disk here before the replica hears of it.
Result<void> SnapshotSender::wait_durable(Txid txid) {
  const auto deadline = std::chrono::steady_clock::now() + kDurableTimeout;
  MutexLock lock(mutex_);
  for (;;) {
    if (cancelled_) return cancelled_error();
    const std::uint64_t seen = durable_events_;
    if (database_->log().durable() >= txid) return {};
    while (seen == durable_events_ && !cancelled_) {
      if (!changed_.wait_until(mutex_, deadline)) {
        return make_error(Errc::deadline, fmt::format("{}: the change log was not made durable up to {} in time",
                                                      database_->name(), txid));
      }
    }
  }
}

}  // namespace sluice::replication
