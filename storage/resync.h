// How a replica that is off the log says what it has, so that only what differs is sent (DESIGN §4, decision 0005): sums over
// blocks of page checksums first, then the page checksums of the blocks that differ.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <span>
#include <vector>

#include "base/errors.h"
#include "storage/ids.h"

namespace sluice::storage {

inline constexpr std::uint32_t kMinBlockPages = 256;
inline constexpr std::uint32_t kMaxOfferBlocks = 65536;   ///< of one database: 512 KiB of sums
inline constexpr std::uint32_t kMaxPageSums = 65536;      ///< page checksums asked for at a time

/// Pages a block of a database of `pages` pages: a power of two, at least kMinBlockPages, at most kMaxOfferBlocks blocks.
constexpr std::uint32_t block_pages_for(std::uint32_t pages) {
  const std::uint64_t needed = (std::uint64_t{pages} + kMaxOfferBlocks - 1) / kMaxOfferBlocks;
  return std::max(kMinBlockPages, static_cast<std::uint32_t>(std::bit_ceil(std::max<std::uint64_t>(needed, 1))));
}
constexpr bool valid_block_pages(std::uint32_t n) { return n >= kMinBlockPages && std::has_single_bit(n); }

/// Sum over the page checksums of a block in page order, the lock page left out, 0 for a page that is not there. Mixed by
/// multiplication: page checksums are CRCs, and the same change of two pages would cancel out in whatever is linear.
class BlockSum {
 public:
  void add(Checksum page) {
    std::uint64_t x = (state_ ^ page.value()) * 0xff51afd7ed558ccdu;
    x ^= x >> 32;
    x *= 0xc4ceb9fe1a85ec53u;
    state_ = x ^ (x >> 29);
  }
  std::uint64_t value() const { return state_; }

 private:
  std::uint64_t state_ = 0x9e3779b97f4a7c15u;
};

/// What a replica has. Block b covers the pages b * block_pages + 1 … (b + 1) * block_pages, none above `pages`.
struct PageOffer {
  std::uint32_t page_size = 0;
  std::uint32_t pages = 0;  ///< 0: nothing to compare with
  std::uint32_t block_pages = kMinBlockPages;
  std::vector<std::uint64_t> blocks;

  static std::uint64_t block_count(std::uint32_t pages, std::uint32_t block_pages) {
    return (std::uint64_t{pages} + block_pages - 1) / block_pages;
  }
};

/// The receiver of a snapshot, as far as it can say what it has already.
class ReceiverPages {
 public:
  virtual ~ReceiverPages() = default;
  virtual const PageOffer& offer() const = 0;
  /// Its checksums of the pages from `first` on, 0 for a page it does not have. At most kMaxPageSums. May wait for the
  /// network.
  virtual Result<void> page_sums(Pgno first, std::span<std::uint64_t> out) = 0;
};

}  // namespace sluice::storage
