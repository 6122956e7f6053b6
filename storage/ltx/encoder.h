// Writes one LTX file image to a sink, page by page, in bounded memory (a few bytes per page for the page index).
#pragma once

#include <functional>
#include <memory>

#include "base/errors.h"
#include "base/thread_pool.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/format.h"

namespace sluice::ltx {

/// Where an encoder puts its bytes, in order. Called with pieces of any size up to about 1 MiB.
using Sink = std::function<Result<void>(ByteView)>;

/// Use: begin, add_page in ascending order, finish. After an error only begin() and destruction make sense. Not
/// thread-safe; reusable: begin() starts over whatever happened before, and keeps the buffers.
class Encoder {
 public:
  Encoder();
  ~Encoder();
  Encoder(const Encoder&) = delete;
  Encoder& operator=(const Encoder&) = delete;

  /// Errc::invalid_argument when the header breaks a rule of the specification.
  /// `helpers` may compress the pages of a large image; nullptr: the caller does it all.
  Result<void> begin(const Header& header, Sink sink, ThreadPool* helpers = nullptr);
  /// Errc::invalid_argument: not ascending, over header.commit, the lock page, wrong size. Snapshots (min TXID 1) must
  /// have every page 1…commit.
  /// `block`: the page as pack_page() compressed it before; or empty.
  Result<void> add_page(Pgno pgno, ByteView page, ByteView block = {});
  /// Writes terminator, page index and trailer. `post_apply` must be kEmptyChecksum when commit is 0, and
  /// Checksum{} when the header says no checksums.
  Result<Trailer> finish(Checksum post_apply);
  /// After finish().
  std::uint64_t bytes_written() const;
  std::uint32_t pages_written() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sluice::ltx
