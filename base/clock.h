// Time behind an interface, so that a simulator can own it.
#pragma once

#include <chrono>
#include <cstdint>

namespace sluice {

using MonotonicTime = std::chrono::steady_clock::time_point;
using Duration = std::chrono::steady_clock::duration;

/// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual MonotonicTime now() const = 0;
  /// Milliseconds since 1970-01-01 UTC. Only for timestamps that people read; never for deciding who is right.
  virtual std::int64_t wall_ms() const = 0;
};

/// The machine's clocks. Lives for the whole process.
Clock& system_clock();

}  // namespace sluice
