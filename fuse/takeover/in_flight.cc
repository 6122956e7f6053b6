#include "fuse/takeover/in_flight.h"

#include "base/check.h"
#include "base/log.h"
#include "fuse/protocol.h"

namespace sluice::fuse::takeover {
namespace {

/// Records left by processes this many takeovers ago are of requests that were answered just before their process died.
constexpr std::uint32_t kStaleAfter = 4;

}  // namespace

void Flight::begin(std::uint64_t before0, std::uint64_t before1) const {
  if (record_ == nullptr) return;
  record_->before[0] = before0;
  record_->before[1] = before1;
  in_order();
  record_->phase.store(Phase::begun, std::memory_order_release);
  in_order();
}

void Flight::done(int result, std::uint64_t node) const {
  if (record_ == nullptr) return;
  in_order();
  record_->result = result;
  record_->node = node;
  in_order();
  record_->phase.store(Phase::done, std::memory_order_release);
  in_order();
}

void Flight::finish() {
  if (record_ == nullptr) return;
  in_order();
  table_->forget(*std::exchange(record_, nullptr));
}

InFlight::InFlight(State& state) : state_(state) {
  MutexLock lock(mutex_);
  const auto records = state_.requests();
  for (std::uint32_t slot = 0; slot < records.size(); ++slot) {
    const std::uint64_t unique = records[slot].unique.load(std::memory_order_relaxed);
    if (unique == 0)
      free_.push_back(slot);
    else
      left_[unique] = slot;
  }
}

std::uint32_t InFlight::slot_of(const RequestRecord& record) const {
  return static_cast<std::uint32_t>(&record - state_.requests().data());
}

std::optional<Flight> InFlight::take(std::uint64_t unique, std::uint32_t opcode) {
  const bool again = (unique & protocol::kResent) != 0;
  unique &= ~protocol::kResent;
  const std::uint32_t generation = state_.header().generation;
  MutexLock lock(mutex_);
  if (again) {
    if (const auto it = left_.find(unique); it != left_.end()) {
      RequestRecord& record = state_.requests()[it->second];
      left_.erase(it);
      record.generation = generation;
      if (state_.after_crash()) ++record.deaths;
      if (record.deaths >= kMaxDeaths) {
        LOG_ERROR("{} processes of this node crashed while they served a request (FUSE opcode {}); it is answered with an I/O error",
                  record.deaths, opcode);
        record.unique.store(0, std::memory_order_release);
        free_.push_back(slot_of(record));
        return std::nullopt;
      }
      return Flight(this, &record, record.phase.load(std::memory_order_relaxed), true);
    }
  }
  if (free_.empty() && !free_some()) return Flight(nullptr, nullptr, Phase::taken, again);
  RequestRecord& record = state_.requests()[free_.back()];
  free_.pop_back();
  record.opcode = opcode;
  record.phase.store(Phase::taken, std::memory_order_relaxed);
  record.deaths = 0;
  record.generation = generation;
  record.result = 0;
  record.node = 0;
  record.before[0] = record.before[1] = 0;
  in_order();
  record.unique.store(unique, std::memory_order_release);
  return Flight(this, &record, Phase::taken, again);
}

bool InFlight::free_some() {
  const std::uint32_t generation = state_.header().generation;
  for (auto it = left_.begin(); it != left_.end();) {
    RequestRecord& record = state_.requests()[it->second];
    if (record.generation + kStaleAfter > generation) {
      ++it;
      continue;
    }
    record.unique.store(0, std::memory_order_relaxed);
    free_.push_back(it->second);
    it = left_.erase(it);
  }
  if (free_.empty()) LOG_WARN("{} requests are being served at once; a crash now may do some of them twice", kMaxRequests);
  return !free_.empty();
}

void InFlight::forget(RequestRecord& record) {
  record.unique.store(0, std::memory_order_release);
  MutexLock lock(mutex_);
  free_.push_back(slot_of(record));
}

Flight& current_flight() {
  thread_local Flight flight;
  return flight;
}

}  // namespace sluice::fuse::takeover
