// The plain path's way to store into wal-indexes that clients have mapped (decisions/0006).
//
// A store is seen by every process that has mapped the mount's -shm if it is made through such a mapping, and only then: written to the
// backing file it would be lost under a page that a reader has dirtied. The node cannot map its own mount: it could no longer be
// killed (exit writes the pages back, through the file system that the exiting process serves). So another process has the
// mappings, one for all databases, and makes the node's stores one after the other. It has no /dev/fuse: when the node dies the
// connection ends, and with it everything that the helper could wait for.
//
//   node                                    helper
//   map (descriptor) ───────────────────►   mmap
//   publish: page numbers, header  ─────►   atomic stores, in SQLite's order
//                              ◄─────────   done
//
// Everything asked of it can be done twice. If it dies, another one is started, is given the files and asked again; the
// locks are the node's own, so nobody comes in between.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>

#include "base/errors.h"
#include "base/mutex.h"
#include "storage/apply/index_messages.h"
#include "storage/apply/live_index.h"
#include "storage/replica.h"

namespace sluice::storage::apply {

/// Thread-safe. Calls wait for the helper, which may wait for requests of our mount to be answered: not on a FUSE worker.
class IndexHelper {
 public:
  using Start = std::function<Result<HelperProcess>()>;
  /// Nothing is started before it is needed.
  explicit IndexHelper(Start start) : start_(std::move(start)) {}
  ~IndexHelper();

  /// A file to store into; `fd` (through the mount) stays open until remove().
  std::uint32_t add(int fd) EXCLUDES(mutex_);
  void remove(std::uint32_t file) EXCLUDES(mutex_);

  Result<void> map(std::uint32_t file, std::uint32_t blocks) EXCLUDES(mutex_);
  Result<void> publish(std::uint32_t file, std::uint32_t first, std::span<const std::uint32_t> pages,
                       const sqlite::WalIndexHeader& header, std::span<const IndexStore> stores) EXCLUDES(mutex_);
  Result<void> store(std::uint32_t file, std::span<const IndexStore> stores) EXCLUDES(mutex_);
  Result<void> erase_header(std::uint32_t file) EXCLUDES(mutex_);

  /// Of the helper; -1: none runs. For tests.
  int pid() const EXCLUDES(mutex_);

 private:
  struct Registered {
    int fd = -1;
    std::uint32_t blocks = 0;
    bool known = false;  ///< the helper that runs has the descriptor
  };

  Result<void> call(const IndexRequest& request, std::span<const std::uint32_t> pages) REQUIRES(mutex_);
  Result<void> call_once(const IndexRequest& request, std::span<const std::uint32_t> pages, int fd) REQUIRES(mutex_);
  Result<void> send(const IndexRequest& request, std::span<const std::uint32_t> pages, int fd) REQUIRES(mutex_);
  Result<void> start() REQUIRES(mutex_);
  Result<void> map_now(std::uint32_t file, Registered& registered) REQUIRES(mutex_);
  void stop(bool kill) REQUIRES(mutex_);

  const Start start_;
  mutable Mutex mutex_;  ///< a leaf; held while the helper works
  HelperProcess process_ GUARDED_BY(mutex_);
  bool lost_ GUARDED_BY(mutex_) = false;  ///< the last call found no helper at the other end
  std::map<std::uint32_t, Registered> files_ GUARDED_BY(mutex_);
  std::uint32_t next_ GUARDED_BY(mutex_) = 0;
};

/// The helper's whole life: does what comes from `socket` until the other end is closed. Returns an exit status.
int serve_index_helper(int socket);

}  // namespace sluice::storage::apply
