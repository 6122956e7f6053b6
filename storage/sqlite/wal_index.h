// SQLite's wal-index, the -shm file (https://sqlite.org/walformat.html, section 2). Native byte order. Works on memory that
// other processes change at any time: everything is read with the barriers SQLite itself uses.
#pragma once

#include <array>
#include <cstdint>

#include "base/bytes.h"
#include "storage/sqlite/wal_format.h"

namespace sluice::sqlite {

inline constexpr std::uint32_t kWalIndexVersion = 3007000;
inline constexpr std::size_t kWalIndexBlockSize = 32768;   ///< the file grows in these
inline constexpr std::size_t kWalIndexHeaderSize = 136;    ///< two headers, checkpoint info
inline constexpr std::uint32_t kFirstBlockFrames = 4062;   ///< page numbers in block 0
inline constexpr std::uint32_t kBlockFrames = 4096;        ///< page numbers in later blocks
inline constexpr std::uint32_t kReadMarkNotUsed = 0xffffffff;

/// Lock bytes in the -shm file.
enum class ShmLock : std::uint32_t { write = 120, checkpoint = 121, recover = 122, read0 = 123, read1 = 124, dms = 128 };
/// Lock bytes in the database file.
inline constexpr std::uint64_t kPendingByte = 0x40000000;
inline constexpr std::uint64_t kReservedByte = kPendingByte + 1;
inline constexpr std::uint64_t kSharedFirst = kPendingByte + 2;
inline constexpr std::uint64_t kSharedSize = 510;

/// The 48-byte header, twice at the start of the file.
struct WalIndexHeader {
  std::uint32_t version = 0;
  std::uint32_t unused = 0;
  std::uint32_t change = 0;
  std::uint8_t is_init = 0;
  std::uint8_t big_endian_checksums = 0;
  std::uint16_t page_size_code = 0;  ///< see page_size()
  std::uint32_t mx_frame = 0;        ///< last committed frame
  std::uint32_t page_count = 0;      ///< database size in pages
  WalChecksum frame_checksum;        ///< of frame mx_frame
  Salts salts;
  WalChecksum checksum;  ///< of the 40 bytes above

  std::uint32_t page_size() const { return (page_size_code & 0xfe00u) + ((page_size_code & 1u) << 16); }
  bool operator==(const WalIndexHeader&) const = default;
};
static_assert(sizeof(WalIndexHeader) == 48);
std::uint16_t encode_page_size(std::uint32_t page_size);

struct CheckpointInfo {
  std::uint32_t backfilled = 0;  ///< nBackfill
  std::array<std::uint32_t, 5> read_marks{};
  std::uint32_t backfill_attempted = 0;  ///< nBackfillAttempted
};

enum class HeaderState {
  valid,    ///< both copies equal and their checksum right
  torn,     ///< they differ (a writer died between the copies, or is there now): the one with a right checksum was taken
  invalid,  ///< neither is right: recovery has not run
};

/// Reads copy [0], barrier, copy [1]; tries a bounded number of times for equal copies.
/// Does not look at the version: compare it with kWalIndexVersion before believing the rest.
HeaderState read_header(const std::byte* index, WalIndexHeader& out);
CheckpointInfo read_checkpoint_info(const std::byte* index);
/// Sets version, is_init and checksum, stores copy [1], full barrier, copy [0] (walIndexWriteHdr's order). The caller holds
/// the WRITE lock and has counted `change` up; everything it stored in the index before is visible to whoever sees the header.
void publish_header(std::byte* index, WalIndexHeader header);
/// Both copies get a version that no SQLite knows and a right checksum: every read and write that begins from now on fails with
/// SQLITE_CANTOPEN, and nobody recovers. What else the header says stays. A header that is not valid becomes one of mxFrame 0
/// and salts 0.
inline constexpr std::uint32_t kPoisonedVersion = 0xffffffff;
void poison_header(std::byte* index);

// Checkpoint info fields, with the ordering SQLite uses (atomic, release/acquire).
std::uint32_t load_backfilled(const std::byte* index);
void store_backfilled(std::byte* index, std::uint32_t frame);
void store_backfill_attempted(std::byte* index, std::uint32_t frame);
std::uint32_t load_read_mark(const std::byte* index, unsigned mark);
void store_read_mark(std::byte* index, unsigned mark, std::uint32_t frame);

/// Block of the -shm file (0…) that holds `frame`'s page number.
constexpr std::uint32_t block_of(std::uint32_t frame) {
  return (frame + kBlockFrames - kFirstBlockFrames - 1) / kBlockFrames;
}
/// Page number of `frame` from its block (32 KiB at `block`); 0 for frame 0. Frames up to a mx_frame that was read from the
/// header before are there; anything else may be garbage.
std::uint32_t frame_page(const std::byte* block, std::uint32_t frame);
/// Adds `frame` -> `pgno` to its block: zeroes the block at its first entry, stores the page number, then the hash slot
/// (release). The caller has called remove_frames_above first if frames above mx_frame may be left over.
/// Errc::corrupt when the frame's entry is in use (leftovers) or the hash table has no free slot.
Result<void> append_frame(std::byte* block, std::uint32_t frame, std::uint32_t pgno);
/// walCleanupHash: forgets entries of the block that are beyond `mx_frame` (which lies in this block).
void remove_frames_above(std::byte* block, std::uint32_t mx_frame);
/// True when the block has a page number at `frame` (left over by a dead writer).
bool frame_slot_used(const std::byte* block, std::uint32_t frame);

}  // namespace sluice::sqlite
