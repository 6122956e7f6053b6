#include "fuse/capture/wal_overlay.h"

#include <algorithm>
#include <array>
#include <vector>

namespace sluice::fuse {

void WalOverlay::clear() {
  frame_of_.clear();
  upto_ = 0;
}

Result<void> WalOverlay::extend(const File& wal, std::uint32_t page_size, std::uint32_t upto, const ShmView* live) {
  if (upto < upto_) clear();
  constexpr std::uint32_t kBatch = 4096;
  std::vector<std::uint32_t> pages;
  while (upto_ < upto) {
    const std::uint32_t first = upto_ + 1;
    const std::uint32_t last = std::min(upto, upto_ + kBatch);
    pages.assign(last - first + 1, 0);
    if (live != nullptr) {
      TRY(live->frame_pages(first, last, pages.data()));
    } else {
      for (std::uint32_t frame = first; frame <= last; ++frame) {
        std::array<std::byte, sqlite::kWalFrameHeaderSize> header{};
        TRY_ASSIGN(const std::size_t n, wal.read_at(sqlite::frame_offset(page_size, frame), header));
        if (n != header.size()) return make_error(Errc::corrupt, "the WAL " + wal.path() + " is shorter than what was captured from it");
        pages[frame - first] = sqlite::parse_frame_header(header).pgno;
      }
    }
    for (std::uint32_t frame = first; frame <= last; ++frame) frame_of_[pages[frame - first]] = frame;
    upto_ = last;
  }
  return {};
}

std::optional<std::uint32_t> WalOverlay::frame_of(Pgno pgno) const {
  const auto it = frame_of_.find(pgno.value());
  if (it == frame_of_.end()) return std::nullopt;
  return it->second;
}

}  // namespace sluice::fuse
