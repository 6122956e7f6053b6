// The oracle's memory: what was acknowledged, in shared memory files that survive every killed process.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <string>

namespace sluice::torture {

inline constexpr std::size_t kWriters = 16;
inline constexpr std::size_t kTags = 8;

/// Tag of an attempt to commit transaction `number`: random, but for the low bits of the number.
constexpr std::uint64_t make_tag(std::uint64_t random, std::uint64_t number) {
  return (random >> 2 & ~std::uint64_t{0xffff}) | (number & 0xffff);
}

/// One writer's transactions in one database; written by that writer alone. A transaction has a number (1, 2,
/// 3, … without gaps) and a random tag for every attempt to commit it.
struct Slot {
  std::atomic<std::uint64_t> acked;     ///< number of the last transaction whose COMMIT returned success
  std::atomic<std::uint64_t> attempts;  ///< commits attempted; the last kTags tags are known
  std::array<std::atomic<std::uint64_t>, kTags> tags;

  /// Before COMMIT: from here on the transaction may be there or not.
  void begin(std::uint64_t tag);
  /// After COMMIT returned success.
  void acknowledge(std::uint64_t number) { acked.store(number, std::memory_order_release); }
  /// Empty if a database in which `number` is the writer's last transaction and carries `tag` keeps every
  /// promise: all acknowledged transactions are there, and nothing that was never committed.
  std::string judge(std::uint64_t number, std::uint64_t tag) const;
};

/// Life of a database that is deleted and created again.
enum class Presence : std::uint64_t { absent = 0, present = 1, changing = 2 };

struct LedgerData {
  std::array<std::atomic<std::uint64_t>, 2> floor;  ///< greatest counter a reader has seen, by node
  std::atomic<std::uint64_t> presence;
  std::atomic<std::uint64_t> spare[5];
  std::array<Slot, kWriters> slots;
};

/// A mapped ledger file (one per database); created when missing. Throws std::runtime_error.
class Ledger {
 public:
  explicit Ledger(const std::string& path);
  Ledger(const Ledger&) = delete;
  Ledger& operator=(const Ledger&) = delete;
  ~Ledger();
  LedgerData& operator*() const { return *data_; }
  LedgerData* operator->() const { return data_; }

 private:
  LedgerData* data_ = nullptr;
};

/// The last events of one process, for looking at a failure afterwards ("worker trail FILE" prints them).
class Trail {
 public:
  static constexpr std::size_t kEvents = 1 << 14;
  struct Event {
    std::uint64_t time_ns;
    std::uint64_t number;
    std::uint64_t tag;
    char what[24];
  };
  explicit Trail(const std::string& path);
  Trail(const Trail&) = delete;
  Trail& operator=(const Trail&) = delete;
  ~Trail();
  void note(const char* what, std::uint64_t number = 0, std::uint64_t tag = 0);
  static void print(const std::string& path);

 private:
  struct Ring {
    std::uint64_t next;
    std::uint64_t pid;
    std::array<Event, kEvents> events;
  };
  Ring* ring_ = nullptr;
};

}  // namespace sluice::torture
