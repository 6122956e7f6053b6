#include "fuse/capture/shm_view.h"

#include <unistd.h>

#include <array>
#include <cerrno>

#include "storage/mount_access.h"

namespace sluice::fuse {

using sqlite::HeaderState;

Result<std::size_t> ShmView::read_at(std::uint64_t offset, ByteSpan out) const {
  if (backing_ != nullptr) return backing_->read_at(offset, out);
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(probe_.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n == 0) break;
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("read the wal-index through the mount", errno);
    }
    done += static_cast<std::size_t>(n);
  }
  return done;
}

Result<IndexState> ShmView::read() const {
  IndexState index;
  // Two readings that differ only because a writer is between its two copies are settled by reading again; a writer that
  // died there leaves them different for good, and then the copy with a right checksum counts.
  constexpr int kAttempts = 8;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    std::array<std::byte, sqlite::kWalIndexHeaderSize> bytes{};
    TRY_ASSIGN(const std::size_t n, read_at(0, bytes));
    if (n < bytes.size()) return IndexState{};
    index.state = sqlite::read_header(bytes.data(), index.header);
    index.checkpoint = sqlite::read_checkpoint_info(bytes.data());
    if (index.state == HeaderState::valid) return index;
  }
  return index;
}

Liveness ShmView::liveness() const {
  const auto locked = storage::ofd_is_locked(probe_.get(), static_cast<std::uint64_t>(sqlite::ShmLock::dms), 1);
  if (locked.has_error()) return Liveness::unknown;
  return *locked ? Liveness::live : Liveness::dead;
}

Result<void> ShmView::frame_pages(std::uint32_t first, std::uint32_t last, std::uint32_t* out) const {
  Bytes block;
  std::uint32_t loaded = 0;
  for (std::uint32_t frame = first; frame <= last; ++frame) {
    const std::uint32_t index = sqlite::block_of(frame);
    if (block.empty() || index != loaded) {
      block.assign(sqlite::kWalIndexBlockSize, std::byte{0});
      TRY(read_at(std::uint64_t{index} * sqlite::kWalIndexBlockSize, block));
      loaded = index;
    }
    *out++ = sqlite::frame_page(block.data(), frame);
  }
  return {};
}

}  // namespace sluice::fuse
