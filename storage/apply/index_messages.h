// What the node and the process that maps its wal-indexes say to each other (index_helper.h), one message a packet of a
// SOCK_SEQPACKET pair. Both are the same program: native byte order, no version.
#pragma once

#include <array>
#include <cstdint>

#include "storage/sqlite/wal_index.h"

namespace sluice::storage::apply {

enum class IndexOp : std::uint32_t {
  map,      ///< count: blocks of the file there shall be; a file that is new comes with its descriptor
  forget,   ///< unmap and close the file
  append,   ///< first, count page numbers
  publish,  ///< first, count page numbers; header; stores
  store,    ///< stores
  erase,    ///< the header
};

/// Followed by `count` page numbers (append, publish).
struct IndexRequest {
  IndexOp op{};
  std::uint32_t file = 0;
  std::uint32_t first = 0;
  std::uint32_t count = 0;
  std::uint32_t stores = 0;
  std::array<std::uint32_t, 14> words{};  ///< pairs of IndexWord and value
  sqlite::WalIndexHeader header;
};

inline constexpr std::uint32_t kIndexDone = 0xffffffff;

struct IndexReply {
  std::uint32_t code = kIndexDone;  ///< else an Errc
  std::array<char, 124> message{};
};

/// Page numbers in a packet at most: with the request well below what a socket takes by default.
inline constexpr std::uint32_t kIndexPagesAtOnce = 8192;

}  // namespace sluice::storage::apply
