// What of a WAL is committed when nobody can write it any more, and a copy of exactly that (facts: wal.c walIndexRecover,
// walFrames). The copy is one that SQLite's recovery reads to its end.
#pragma once

#include "storage/sqlite/wal_index.h"
#include "storage/sqlite/wal_reader.h"

namespace sluice::sqlite {

struct WalCut {
  bool empty = true;  ///< no WAL header: SQLite sees no frames
  WalHeader header;
  bool index_counts = false;    ///< the index is of this WAL, and the frame it names is there
  std::uint32_t published = 0;  ///< last frame that the index vouches for, if it counts
  /// Last frame of the complete transactions at or behind `published`: what recovery would find from there on.
  std::uint32_t complete = 0;
};

/// `index`: a valid wal-index header, or nullptr.
Result<WalCut> find_committed(const File& wal, const WalIndexHeader* index);

/// Writes the header and frames 1…`frames` of `wal` to the empty file `to`. Frames are checked; from the first one without salt
/// and checksum on (FrameHeader::zero_salt) they get the ones they should have had. Errc::corrupt: a frame is damaged.
Result<void> copy_committed(const File& wal, const WalHeader& header, std::uint32_t frames, File& to);

}  // namespace sluice::sqlite
