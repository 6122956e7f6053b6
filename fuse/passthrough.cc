#include "fuse/passthrough.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <cerrno>

#include "base/log.h"
#include "fuse/protocol.h"

namespace sluice::fuse {

void InitPatch::on_request(const void* message, std::size_t size) {
  if (seen_.load(std::memory_order_relaxed)) return;
  if (size < sizeof(protocol::InHeader)) return;
  const auto* header = static_cast<const protocol::InHeader*>(message);
  if (header->opcode != protocol::kOpcodeInit) return;
  if (size >= sizeof(protocol::InHeader) + sizeof(protocol::InitIn)) {
    const auto* init = reinterpret_cast<const protocol::InitIn*>(static_cast<const char*>(message) + sizeof *header);
    const bool extended = (init->flags & protocol::kInitExt) != 0;
    can_resend_.store(extended && (init->flags2 & protocol::kInitHasResend2) != 0, std::memory_order_release);
    offered_.store(extended && (init->flags2 & protocol::kInitPassthrough2) != 0, std::memory_order_release);
  }
  init_unique_.store(header->unique, std::memory_order_release);
  seen_.store(true, std::memory_order_release);
}

bool InitPatch::on_reply(const iovec* parts, int count) {
  const std::uint64_t unique = init_unique_.load(std::memory_order_acquire);
  if (unique == 0 || count < 1) return false;
  const auto* header = static_cast<const protocol::OutHeader*>(parts[0].iov_base);
  if (header->unique != unique) return false;
  init_unique_.store(0, std::memory_order_release);
  if (header->error == 0 && count >= 2 && parts[1].iov_len >= sizeof(protocol::InitOut) && offered() &&
      stack_depth_ != 0) {
    auto* init = static_cast<protocol::InitOut*>(parts[1].iov_base);
    init->flags |= protocol::kInitExt;
    init->flags2 |= protocol::kInitPassthrough2;
    init->max_stack_depth = stack_depth_;
  }
  return true;
}

Result<int> open_backing_id(int device_fd, int backing_fd) {
  protocol::BackingMap map{backing_fd, 0, 0};
  const int id = ::ioctl(device_fd, protocol::kBackingOpen, &map);
  if (id > 0) return id;
  const int err = id == 0 ? EINVAL : errno;
  switch (err) {
    case EPERM:
      return Error{Errc::unsupported, "FUSE passthrough needs CAP_SYS_ADMIN: run as root, or give the capability", err};
    case ELOOP:
    case EOPNOTSUPP:
    case ENOTTY:
    case EINVAL:
      return Error{Errc::unsupported,
                   fmt::format("the kernel refuses FUSE passthrough for files of the data directory (errno {}): put it "
                               "on ext4, xfs, btrfs or tmpfs",
                               err),
                   err};
    default:
      return errno_error("register a backing file for FUSE passthrough", err);
  }
}

void close_backing_id(int device_fd, int backing_id) {
  std::uint32_t id = static_cast<std::uint32_t>(backing_id);
  if (::ioctl(device_fd, protocol::kBackingClose, &id) != 0 && errno != ENODEV && errno != ENOTCONN)
    LOG_WARN("FUSE backing id {} could not be closed (errno {})", backing_id, errno);
}

unsigned required_stack_depth(int directory_fd) {
  struct statfs st {};
  if (::fstatfs(directory_fd, &st) == 0 && st.f_type == OVERLAYFS_SUPER_MAGIC) return 2;
  return 1;
}

}  // namespace sluice::fuse

namespace sluice::fuse::protocol {

Attr make_attr(const struct stat& st) {
  Attr a{};
  a.ino = st.st_ino;
  a.size = static_cast<std::uint64_t>(st.st_size);
  a.blocks = static_cast<std::uint64_t>(st.st_blocks);
  a.atime = static_cast<std::uint64_t>(st.st_atim.tv_sec);
  a.mtime = static_cast<std::uint64_t>(st.st_mtim.tv_sec);
  a.ctime = static_cast<std::uint64_t>(st.st_ctim.tv_sec);
  a.atime_nsec = static_cast<std::uint32_t>(st.st_atim.tv_nsec);
  a.mtime_nsec = static_cast<std::uint32_t>(st.st_mtim.tv_nsec);
  a.ctime_nsec = static_cast<std::uint32_t>(st.st_ctim.tv_nsec);
  a.mode = st.st_mode;
  a.nlink = static_cast<std::uint32_t>(st.st_nlink);
  a.uid = st.st_uid;
  a.gid = st.st_gid;
  a.rdev = static_cast<std::uint32_t>(st.st_rdev);
  a.blksize = static_cast<std::uint32_t>(st.st_blksize);
  return a;
}

}  // namespace sluice::fuse::protocol
