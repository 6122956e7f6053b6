// Reads and verifies an LTX file image. Input is hostile until proven otherwise: every length is checked before use.
#pragma once

#include <functional>
#include <memory>

#include "base/errors.h"
#include "base/function_ref.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/format.h"

namespace sluice::ltx {

/// Random access to the bytes of an image: fills `out` from `offset`, or fails. Short data is Errc::corrupt.
using Source = std::function<Result<void>(std::uint64_t offset, ByteSpan out)>;
Source memory_source(ByteView image);

using PageVisitor = FunctionRef<Result<void>(Pgno pgno, ByteView page)>;

struct Decoded {
  Header header;
  Trailer trailer;
  std::uint32_t pages = 0;
};

/// Decodes the whole image of `size` bytes: checks header, order, page rules, LZ4 blocks, page index, terminator,
/// file checksum and, for snapshots with checksums, the post-apply checksum over the pages; calls `visit` for each page in
/// ascending order *before* the file checksum is known, so the caller must be able to drop what it was given. Reads
/// through `source` in pieces of at most 1 MiB: memory is bounded.
/// Errc::corrupt (what and where) for any violation; visit's own error is passed on.
Result<Decoded> decode(const Source& source, std::uint64_t size, PageVisitor visit);

/// decode() without looking at pages.
Result<Decoded> verify(const Source& source, std::uint64_t size);

/// Only header and trailer, unverified but for the header's own rules.
Result<Decoded> peek(const Source& source, std::uint64_t size);

}  // namespace sluice::ltx
