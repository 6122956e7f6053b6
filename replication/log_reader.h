// Turns a database's change log into frames: where a replica's stream stands, and the next piece of it. File reads
// only; runs on the disk pool.
#pragma once

#include <cstdint>
#include <optional>

#include "base/bytes.h"
#include "storage/database.h"

namespace sluice::replication {

/// Where the stream of one database to one replica stands.
struct Cursor {
  Pos sent;  ///< position after the last change set that was sent completely
  /// The change set that is being sent in pieces.
  std::optional<storage::ChangeLog::Handle> current;
  std::uint64_t offset = 0;       ///< of its image, sent
  std::int64_t sent_timestamp_ms = 0;  ///< of the last change set sent completely
};

/// One turn of a database: whole frames.
struct LogPiece {
  Bytes frames;
  std::uint64_t cost = 0;       ///< of the frames, in window bytes
  Cursor cursor;                ///< afterwards
  bool more = false;            ///< there is more that is durable
  bool needs_snapshot = false;  ///< the log does not continue the cursor (what was read before that is in `frames`)
};

/// Can the log continue from `pos`? False: a snapshot is needed.
bool can_continue(const storage::Database& database, const Pos& pos);

/// Smallest `budget` that read_log makes use of.
inline constexpr std::uint64_t kMinBudget = 4096;

/// Frames for database number `id` from `cursor` on: of durable change sets only (I2), costing `budget` window bytes at most
/// (nothing below kMinBudget). A change set that fits is one frame; a larger one goes in pieces. Several small ones are
/// batched. Errors: reading the log failed.
Result<LogPiece> read_log(const storage::Database& database, std::uint32_t id, Cursor cursor, std::uint64_t budget);

}  // namespace sluice::replication
