// Copies committed frames from the WAL into the database file as far as readers allow (SQLite's passive checkpoint).
#pragma once

#include <cstdint>
#include <functional>
#include <utility>
#include <vector>

#include "storage/apply/wal_writer.h"

namespace sluice::storage::apply {

struct BackfillResult {
  std::uint32_t backfilled = 0;  ///< nBackfill afterwards
  std::uint32_t mx_frame = 0;    ///< when it began
  bool complete = false;         ///< all of mx_frame
};

/// Working memory, kept between runs.
struct BackfillBuffers {
  std::vector<std::pair<std::uint32_t, std::uint32_t>> pages;  ///< page, its last frame
  Bytes run;
};

/// One run at a time per database; beside the thread that applies, but not beside try_restart() or a replacement.
/// `sync_log` makes durable what is published: decision 0001, nothing reaches the database file before the log that
/// holds it is on disk. FUSE requests: no commit lock. A reader in the way is no error.
Result<BackfillResult> backfill(LiveFiles& files, LiveIndex& index, const WalWriter& writer,
                                BackfillBuffers& buffers, const std::function<Result<void>()>& sync_log);

}  // namespace sluice::storage::apply
