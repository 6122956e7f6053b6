// The requests that were read and are not answered yet, in memory that outlives the process: when it dies, the kernel sends
// them again to the next one (FUSE_NOTIFY_RESEND), which must not do twice what changes something each time it is done.
//
//   a request:   read ─► taken ─► begun ─► (the change) ─► bookkeeping ─► done ─► answered ─► forgotten
//   sent again:          as new   look whether it happened           answer what was stored
#pragma once

#include <cstdint>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "fuse/takeover/state.h"

namespace sluice::fuse::takeover {

class InFlight;

/// One request's record. Without a record (no takeover, or the table is full) nothing is remembered and nothing was before.
/// Copies are the same record; used by one thread at a time.
class Flight {
 public:
  Flight() = default;

  /// A process before us died between begin() and done(): the change may have been made. What begin() was told is in before().
  bool begun_before() const { return record_ != nullptr && earlier_ == Phase::begun; }
  /// A process before us died between done() and the answer.
  bool done_before() const { return record_ != nullptr && earlier_ == Phase::done; }
  std::uint64_t before(unsigned i) const { return record_ != nullptr ? record_->before[i] : 0; }
  int result() const { return record_ != nullptr ? static_cast<int>(record_->result) : 0; }
  std::uint64_t node() const { return record_ != nullptr ? record_->node : 0; }
  /// 0 without a record.
  std::uint64_t unique() const { return record_ != nullptr ? record_->unique.load(std::memory_order_relaxed) : 0; }
  bool sent_again() const { return again_; }

  /// Just before the change.
  void begin(std::uint64_t before0 = 0, std::uint64_t before1 = 0) const;
  /// After the change and its bookkeeping.
  void done(int result, std::uint64_t node = 0) const;
  /// Answered.
  void finish();

 private:
  friend class InFlight;
  Flight(InFlight* table, RequestRecord* record, Phase earlier, bool again)
      : table_(table), record_(record), earlier_(earlier), again_(again) {}
  InFlight* table_ = nullptr;
  RequestRecord* record_ = nullptr;
  Phase earlier_ = Phase::taken;
  bool again_ = false;
};

/// Thread-safe.
class InFlight {
 public:
  /// A request during which this many processes crashed is not tried once more.
  static constexpr std::uint32_t kMaxDeaths = 3;

  explicit InFlight(State& state);

  /// A request was read. Nothing: it has ended too many processes and must be answered with EIO (it is forgotten).
  std::optional<Flight> take(std::uint64_t unique, std::uint32_t opcode) EXCLUDES(mutex_);

 private:
  friend class Flight;
  void forget(RequestRecord& record) EXCLUDES(mutex_);
  std::uint32_t slot_of(const RequestRecord& record) const;
  bool free_some() REQUIRES(mutex_);

  State& state_;
  Mutex mutex_;
  std::vector<std::uint32_t> free_ GUARDED_BY(mutex_);
  std::unordered_map<std::uint64_t, std::uint32_t> left_ GUARDED_BY(mutex_);  ///< by processes before us, by unique
};

/// The record of the request that the calling thread has read and handed to no Request yet.
Flight& current_flight();

}  // namespace sluice::fuse::takeover
