#include "fuse/capture/dirty_pages.h"

#include <bit>

namespace sluice::fuse {

void DirtyPages::add(std::uint32_t first, std::uint32_t last) {
  for (std::uint64_t page = first; page <= last; ++page) {
    const std::uint64_t word = page / 64;
    if (word >= bits_.size()) bits_.resize(word + 1 + word / 2);
    const std::uint64_t bit = std::uint64_t{1} << (page % 64);
    if ((bits_[word] & bit) == 0) ++count_;
    bits_[word] |= bit;
  }
}

void DirtyPages::clear() {
  bits_.clear();
  if (bits_.capacity() > 1u << 16) bits_.shrink_to_fit();
  count_ = 0;
  all_ = false;
}

bool DirtyPages::contains(Pgno pgno) const {
  const std::uint64_t word = pgno.value() / 64;
  return all_ || (word < bits_.size() && (bits_[word] >> (pgno.value() % 64) & 1) != 0);
}

std::vector<Pgno> DirtyPages::list(std::uint32_t page_count) const {
  std::vector<Pgno> pages;
  if (all_) {
    pages.reserve(page_count);
    for (std::uint64_t p = 1; p <= page_count; ++p) pages.emplace_back(static_cast<std::uint32_t>(p));
    return pages;
  }
  for (std::uint64_t word = 0; word < bits_.size(); ++word) {
    for (std::uint64_t bits = bits_[word]; bits != 0; bits &= bits - 1) {
      const std::uint64_t page = word * 64 + static_cast<unsigned>(std::countr_zero(bits));
      if (page > page_count) return pages;
      pages.emplace_back(static_cast<std::uint32_t>(page));
    }
  }
  return pages;
}

}  // namespace sluice::fuse
