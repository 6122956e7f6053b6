// Compresses an image's pages, in large images with the help of pool threads: on a primary the checkpoint of a big transaction
// waits for its capture, and most of a capture is LZ4 (docs/PERFORMANCE.md).
#pragma once

#include <deque>
#include <memory>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/function_ref.h"
#include "base/thread_pool.h"
#include "storage/ids.h"

namespace sluice::ltx {

/// Most bytes that a page's block can have.
std::size_t packed_bound(std::uint32_t page_size);
/// Compresses one page as all are compressed; `block` has room for packed_bound(). Returns the block's size. Thread-safe.
std::size_t pack_page(ByteView page, ByteSpan block);

/// Each page becomes an LZ4 block of its own. Not thread-safe.
class PagePacker {
 public:
  /// Gets the pages in the order in which they were added, each once: the page and its LZ4 block.
  using Sink = FunctionRef<Result<void>(Pgno, ByteView page, ByteView block)>;

  PagePacker();
  ~PagePacker();

  /// `pool`: who may help, or nullptr. Its threads are not needed: what they do not come to is done here.
  void begin(std::uint32_t page_size, ThreadPool* pool);
  /// The page's content is copied, or compressed and given to `sink` at once. `block`: it was compressed before; or empty.
  Result<void> add(Pgno pgno, ByteView page, ByteView block, Sink sink);
  /// Gives the rest to `sink`.
  Result<void> finish(Sink sink);
  /// Forgets everything; gives large buffers back.
  void reset();

 private:
  struct Batch;
  struct Shared;
  void submit();
  Result<void> take_front(Sink sink);

  std::size_t batch_pages_ = 0;
  std::uint32_t page_size_ = 0;
  ThreadPool* pool_ = nullptr;
  std::uint32_t added_ = 0;
  Bytes block_;                               ///< for a page that is compressed at once
  std::shared_ptr<Batch> filling_;
  std::deque<std::shared_ptr<Batch>> queue_;  ///< full, in order
  std::shared_ptr<Shared> shared_;
};

}  // namespace sluice::ltx
