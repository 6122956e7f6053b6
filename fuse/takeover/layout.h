// What a process needs to know to take a FUSE connection over from one that died: records in shared memory, kept current while
// requests are served. Numbers only, no pointers. Stores become visible in program order (a process was killed, no machine lost
// power), so every update is a sequence of stores of which each prefix means something; docs/FORMATS.md, "Takeover state".
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace sluice::fuse::takeover {

inline constexpr std::uint64_t kMagic = 0x31454741'54535546;  // "FUSTAGE1" in memory
inline constexpr std::uint32_t kLayoutVersion = 1;

inline constexpr std::uint32_t kMaxNodes = 1u << 20;
inline constexpr std::uint32_t kMaxOpens = 1u << 18;
inline constexpr std::uint32_t kMaxRequests = 4096;
inline constexpr std::uint32_t kMaxRenames = 64;
inline constexpr std::size_t kMaxName = 255;

/// The name of a file, as a length and bytes.
struct NameRecord {
  std::uint16_t size;
  std::array<char, kMaxName> bytes;
  std::uint8_t padding;
};
static_assert(sizeof(NameRecord) == 258);

/// A node; its number is the slot. Stored last when it comes, first when it goes: `used`. The generation stays.
struct NodeRecord {
  std::uint32_t generation;
  std::uint8_t used;
  std::uint8_t linked;  ///< its name leads to it
  std::uint8_t kind;    ///< FileKind
  std::uint8_t padding;
  std::uint64_t parent;
  std::uint64_t backing_ino;
  std::uint64_t lookups;   ///< raised before the answer: may be too many, never too few
  std::int32_t backing_id;  ///< 0: none. Cleared before the id is closed
  NameRecord name;
  std::uint16_t padding2;
};
static_assert(sizeof(NodeRecord) == 296);

/// An open file: node ids' opens are counted from these.
struct OpenRecord {
  std::uint32_t generation;
  std::uint8_t used;
  std::uint8_t flags;  ///< OpenFlag
  std::uint16_t padding;
  std::uint64_t node;
  std::uint64_t unique;  ///< of the OPEN or CREATE that it answers
};
static_assert(sizeof(OpenRecord) == 24);
enum OpenFlag : std::uint8_t { kWriteAccess = 1, kWriteOnly = 2, kOwn = 4 };

enum class Phase : std::uint32_t {
  taken = 0,  ///< read from the kernel; nothing has happened
  begun = 1,  ///< the change may or may not have happened
  done = 2,   ///< it has, and so has the bookkeeping: `result`
};

/// A request that was read and is not answered yet.
struct RequestRecord {
  std::atomic<std::uint64_t> unique;  ///< 0: free. Stored last when it comes
  std::uint32_t opcode;
  std::atomic<Phase> phase;
  std::uint32_t deaths;      ///< processes that crashed while they served it
  std::uint32_t generation;  ///< of the process that did last
  std::int64_t result;       ///< 0 or errno
  std::uint64_t node;        ///< the answer's
  std::uint64_t before[2];   ///< what was there before; the operation's own
};
static_assert(sizeof(RequestRecord) == 56);

/// A RENAME under way: where the file of `node` may be instead of under its name.
struct RenameRecord {
  std::atomic<std::uint64_t> node;  ///< 0: free
  std::uint64_t new_parent;
  NameRecord new_name;
  std::array<std::uint8_t, 6> padding;
};
static_assert(sizeof(RenameRecord) == 280);

/// The last change of a node's name and parent: done again by who takes over, if `active`.
struct MoveRecord {
  std::atomic<std::uint32_t> active;
  std::uint32_t slot;
  std::uint64_t new_parent;
  NameRecord new_name;
  std::array<std::uint8_t, 6> padding;
};
static_assert(sizeof(MoveRecord) == 280);

struct StateHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t generation;  ///< of the process that serves; the first has 1
  std::uint64_t device;      ///< the mount's device number
  std::uint32_t init_request_size;
  std::uint32_t init_reply_size;  ///< 0: the kernel's INIT was not answered yet
  std::array<std::byte, 256> init_request;
  std::array<std::byte, 128> init_reply;
  std::uint32_t node_slots;  ///< records beyond were never used
  std::uint32_t open_slots;
  std::atomic<std::uint64_t> beats;   ///< grows while requests are served
  std::atomic<std::uint32_t> suspect;  ///< the process crashed or hung: what it was serving may be why
  std::uint32_t padding;
  MoveRecord move;
};

}  // namespace sluice::fuse::takeover
