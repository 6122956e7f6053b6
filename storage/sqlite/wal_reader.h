// Walks the frames of a WAL file by its chain of salts and checksums: what SQLite's recovery would see.
#pragma once

#include <functional>

#include "base/function_ref.h"
#include "base/os.h"
#include "storage/sqlite/wal_format.h"

namespace sluice::sqlite {

struct ScannedFrame {
  std::uint32_t frame = 0;
  std::uint32_t pgno = 0;
  std::uint32_t commit = 0;
};

struct WalScan {
  WalPosition end;              ///< after the last *committed* frame at or after the start (== start if none)
  std::uint32_t commit = 0;     ///< database size of that commit, 0 if none was found
  std::uint32_t valid_frames = 0;  ///< last frame with a valid chain, committed or not
};

/// Reads and checks the header. Errc::not_found when the file is shorter than a header or all zero; Errc::corrupt when
/// the header is not a WAL header.
Result<WalHeader> read_wal_header(const File& wal);

/// Scans from `start` (frame 0 with the header's checksum: from the beginning) to the end of the valid chain, in pieces
/// of at most 1 MiB. Calls `visit` for each frame of a committed transaction, in order, after its commit frame was found
/// valid. Frames after the last commit are not visited. Frames with zero salts end the chain, as in recovery (see
/// FrameHeader::zero_salt). Errc::position when `start` has other salts than `header`; the file's and the visitor's
/// errors. Memory: a piece, and four bytes for each frame of the open transaction.
Result<WalScan> scan_wal(const File& wal, const WalHeader& header, const WalPosition& start,
                         FunctionRef<Result<void>(const ScannedFrame&)> visit);

}  // namespace sluice::sqlite
