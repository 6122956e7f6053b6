// The parts of the FUSE kernel protocol that libfuse 3.14 does not know (passthrough: Linux 6.9) or does not let us fill
// in. Layouts as in the kernel's include/uapi/linux/fuse.h, protocol 7.40 and later; all fields in native byte order.
#pragma once

#include <sys/ioctl.h>
#include <sys/stat.h>

#include <cstdint>

namespace sluice::fuse::protocol {

inline constexpr std::uint32_t kOpcodeWrite = 16;
inline constexpr std::uint32_t kOpcodeInit = 26;
inline constexpr std::uint32_t kOpcodeForget = 2;
inline constexpr std::uint32_t kOpcodeInterrupt = 36;
inline constexpr std::uint32_t kOpcodeBatchForget = 42;
inline constexpr std::uint64_t kResent = std::uint64_t{1} << 63;  ///< unique: sent again after FUSE_NOTIFY_RESEND
inline constexpr std::int32_t kNotifyResend = 7;  ///< OutHeader::error of a message with unique 0
inline constexpr std::uint32_t kInitHasResend2 = 1u << 7;  ///< flags2: FUSE_HAS_RESEND, bit 39 of all flags
inline constexpr std::uint32_t kInitExt = 1u << 30;        ///< flags: flags2 is valid
inline constexpr std::uint32_t kInitPassthrough2 = 1u << 5;  ///< flags2: FUSE_PASSTHROUGH, bit 37 of all flags

inline constexpr std::uint32_t kOpenDirectIo = 1u << 0;
inline constexpr std::uint32_t kOpenKeepCache = 1u << 1;
inline constexpr std::uint32_t kOpenNoFlush = 1u << 5;  ///< close() sends no FLUSH
inline constexpr std::uint32_t kOpenPassthrough = 1u << 7;

struct InHeader {
  std::uint32_t len, opcode;
  std::uint64_t unique, nodeid;
  std::uint32_t uid, gid, pid, padding;
};
static_assert(sizeof(InHeader) == 40);

struct OutHeader {
  std::uint32_t len;
  std::int32_t error;
  std::uint64_t unique;
};
static_assert(sizeof(OutHeader) == 16);

/// The beginning of struct fuse_init_in.
struct InitIn {
  std::uint32_t major, minor, max_readahead, flags, flags2;
};

struct InitOut {
  std::uint32_t major, minor, max_readahead, flags;
  std::uint16_t max_background, congestion_threshold;
  std::uint32_t max_write, time_gran;
  std::uint16_t max_pages, map_alignment;
  std::uint32_t flags2, max_stack_depth;
  std::uint32_t unused[6];
};
static_assert(sizeof(InitOut) == 64);

struct Attr {
  std::uint64_t ino, size, blocks, atime, mtime, ctime;
  std::uint32_t atime_nsec, mtime_nsec, ctime_nsec, mode, nlink, uid, gid, rdev, blksize, flags;
};
static_assert(sizeof(Attr) == 88);

struct EntryOut {
  std::uint64_t nodeid, generation, entry_valid, attr_valid;
  std::uint32_t entry_valid_nsec, attr_valid_nsec;
  Attr attr;
};
static_assert(sizeof(EntryOut) == 128);

struct OpenOut {
  std::uint64_t fh;
  std::uint32_t open_flags;
  std::int32_t backing_id;
};
static_assert(sizeof(OpenOut) == 16);

/// Answer to CREATE.
struct CreateOut {
  EntryOut entry;
  OpenOut open;
};
static_assert(sizeof(CreateOut) == 144);

struct BackingMap {
  std::int32_t fd;
  std::uint32_t flags;
  std::uint64_t padding;
};

inline constexpr unsigned long kBackingOpen = _IOW(229, 1, BackingMap);
inline constexpr unsigned long kBackingClose = _IOW(229, 2, std::uint32_t);

Attr make_attr(const struct stat& st);

}  // namespace sluice::fuse::protocol
