// What capture counts, for metrics, status and tests. Relaxed atomics: each is exact, together they are not a snapshot.
#pragma once

#include <atomic>
#include <cstdint>

namespace sluice::fuse {

struct CaptureCounters {
  std::atomic<std::uint64_t> change_sets{0};       ///< made from a WAL or a rollback journal
  std::atomic<std::uint64_t> frames{0};            ///< WAL frames captured
  std::atomic<std::uint64_t> pages_ahead{0};       ///< pages that were compressed before their transaction's commit
  std::atomic<std::uint64_t> gate_captures{0};     ///< change sets made at a gate, not by the tail
  std::atomic<std::uint64_t> chain_captures{0};    ///< made by scanning the WAL without a live wal-index
  std::atomic<std::uint64_t> generations{0};       ///< WAL restarts followed
  std::atomic<std::uint64_t> generations_back{0};  ///< returns to the generation before
  std::atomic<std::uint64_t> torn_headers{0};
  std::atomic<std::uint64_t> zero_salt_frames{0};  ///< committed frames without salt and checksum (SQLite bug)
  std::atomic<std::uint64_t> guarded_writes{0};    ///< backfills of a stale checkpoint that were refused (SQLite bug)
  std::atomic<std::uint64_t> anomalies{0};         ///< things that must not be: each also logs an error
  std::atomic<std::uint64_t> reconciliations{0};   ///< whole-database comparisons that made up for one
  std::atomic<std::uint64_t> unjournaled{0};       ///< change sets from writes without a journal
};

}  // namespace sluice::fuse
