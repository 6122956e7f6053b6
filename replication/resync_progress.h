// How far the resynchronisation of one database is, as status and metrics show it.
#pragma once

#include <cstdint>
#include <optional>

namespace sluice::replication {

struct ResyncProgress {
  enum class Phase { none, comparing, copying };
  Phase phase = Phase::none;
  std::uint64_t pages = 0;        ///< sent or received
  std::uint64_t expected = 0;     ///< about so many in all; 0: not known
  std::uint64_t bytes = 0;        ///< of pages on the wire
  std::int64_t elapsed_ms = 0;    ///< since the first page could come

  /// Bytes a second.
  double rate() const { return elapsed_ms <= 0 ? 0 : static_cast<double>(bytes) * 1000 / static_cast<double>(elapsed_ms); }
  /// Until the last page that is known of; nullopt: cannot be told.
  std::optional<std::int64_t> eta_ms() const {
    if (phase != Phase::copying || pages == 0 || expected == 0) return std::nullopt;
    if (pages >= expected) return 0;
    return static_cast<std::int64_t>(static_cast<double>(elapsed_ms) * static_cast<double>(expected - pages) /
                                     static_cast<double>(pages));
  }
};

constexpr const char* phase_name(ResyncProgress::Phase phase) {
  switch (phase) {
    case ResyncProgress::Phase::comparing: return "comparing";
    case ResyncProgress::Phase::copying: return "copying";
    case ResyncProgress::Phase::none: break;
  }
  return "";
}

}  // namespace sluice::replication
