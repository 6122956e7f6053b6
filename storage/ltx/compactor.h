// Merges consecutive change sets into one (LTX specification, "Compaction"): the newest version of each page wins, pages
// over the last commit are dropped, WAL fields and node id are zero.
#pragma once

#include <vector>

#include "storage/ltx/decoder.h"
#include "storage/ltx/encoder.h"

namespace sluice::ltx {

struct CompactorInput {
  Source source;
  std::uint64_t size = 0;
};

/// Inputs oldest first and contiguous (next.min <= prev.max + 1 and next.max > prev.max), all of one page size, else
/// Errc::invalid_argument. Memory: a few bytes per page of the result; page contents are read when they are written.
/// `no_checksum`: write Flags=0x2 and zero checksums, as Litestream's restore demands.
Result<Decoded> compact(const std::vector<CompactorInput>& inputs, bool no_checksum, Sink sink);

}  // namespace sluice::ltx
