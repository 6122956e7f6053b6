// A change set's LTX image while it arrives: small ones in memory, large ones in an unlinked file under DATA/tmp. Nothing
// reaches the change log before the whole image was verified.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/function_ref.h"
#include "base/os.h"
#include "storage/ltx/decoder.h"
#include "storage/replica.h"

namespace sluice::storage::apply {

/// Not thread-safe. Reusable: begin() starts over and keeps the buffer.
class Incoming {
 public:
  /// `spool_path` is only used for images over kInMemory.
  Incoming(FileSystem& fs, std::string spool_path) : fs_(fs), spool_path_(std::move(spool_path)) {}

  void begin(const IncomingChangeSet& head);
  /// Errc::corrupt when more bytes come than were announced.
  Result<void> add(ByteView bytes);
  void reset();
  /// Frees the buffer.
  void give_back() { memory_ = {}; }

  bool active() const { return active_; }
  const IncomingChangeSet& head() const { return head_; }

  /// Decodes the image, handing its pages to `visit` before it is known to be good; then checks that it is complete and is
  /// what the head announced. Errc::corrupt.
  Result<void> decode(ltx::PageVisitor visit);
  /// The image's bytes in order, in pieces.
  Result<void> copy_to(FunctionRef<Result<void>(ByteView)> sink);

 private:
  Result<void> open_spool();
  Result<void> check_header(const ltx::Decoded& decoded) const;

  FileSystem& fs_;
  const std::string spool_path_;
  bool active_ = false;
  IncomingChangeSet head_;
  std::uint64_t received_ = 0;
  Bytes memory_;
  std::unique_ptr<File> spool_;
};

}  // namespace sluice::storage::apply
