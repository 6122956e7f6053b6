// The specification's rules for the pages of one image, shared by encoder and decoder, and the page index's
// varints.
#pragma once

#include <string>

#include "storage/ltx/format.h"

namespace sluice::ltx {

inline constexpr std::size_t kFrameHeadSize = kPageHeaderSize + 4;  ///< page header and compressed size
inline constexpr std::size_t kPieceSize = std::size_t{1}
                                          << 20;  ///< I/O goes in pieces of at most this, bytes

/// Watches the page numbers of one image go by. Value type.
class PageRules {
 public:
  explicit PageRules(const Header& header) : header_(header), lock_page_(lock_page(header.page_size)) {}

  /// What is wrong with `pgno` as the next page; empty when nothing is.
  std::string next(Pgno pgno) {
    if (pgno == Pgno(0)) return "page number zero";
    if (pgno.value() > header_.commit)
      return fmt::format("page {} is above the commit size {}", pgno, header_.commit);
    if (pgno == lock_page_) return fmt::format("page {} is the lock page", pgno);
    if (pgno <= last_) return fmt::format("page {} after page {}", pgno, last_);
    if (header_.is_snapshot() && pgno != successor(last_)) {
      return fmt::format("a snapshot has page {} after page {}", pgno, last_);
    }
    last_ = pgno;
    return {};
  }

  /// What is wrong with ending here.
  std::string end() const {
    if (header_.is_snapshot() && successor(last_).value() <= header_.commit) {
      return fmt::format("a snapshot of {} pages ends at page {}", header_.commit, last_);
    }
    return {};
  }

 private:
  Pgno successor(Pgno pgno) const { return pgno.next() == lock_page_ ? lock_page_.next() : pgno.next(); }

  Header header_;
  Pgno lock_page_;
  Pgno last_;
};

/// Go's (and protobuf's) unsigned varint; at most 10 bytes. Returns the number written.
inline std::size_t put_uvarint(std::byte* out, std::uint64_t value) {
  std::size_t n = 0;
  while (value >= 0x80) {
    out[n++] = static_cast<std::byte>(value | 0x80);
    value >>= 7;
  }
  out[n++] = static_cast<std::byte>(value);
  return n;
}

/// One element of the page index; returns its length, at most 30.
inline std::size_t put_index_entry(std::byte* out, Pgno pgno, std::uint64_t offset, std::uint64_t length) {
  std::size_t n = put_uvarint(out, pgno.value());
  n += put_uvarint(out + n, offset);
  return n + put_uvarint(out + n, length);
}
inline constexpr std::size_t kMaxIndexEntry = 30;

/// The specification's rules for the trailer's post-apply checksum; empty when it is right.
inline std::string check_post_apply(const Header& header, std::uint64_t post_apply) {
  if (header.no_checksum()) {
    if (header.commit == 0) return "a deletion cannot be written without checksums";
    return post_apply == 0 ? "" : "a post-apply checksum where the flags say there are none";
  }
  if ((post_apply & kEmptyChecksum.value()) == 0)
    return "the post-apply checksum is missing or lacks its flag bit";
  if (header.commit == 0 && post_apply != kEmptyChecksum.value()) {
    return "a database without pages has a post-apply checksum that is not the empty one";
  }
  return {};
}

}  // namespace sluice::ltx
