#include "replication/log_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "replication/frames.h"

namespace sluice::replication {
namespace {

using storage::ChangeLog;

// Largest piece in one frame; leaves room for others in a window of any size.
constexpr std::uint64_t kMaxPiece = 256 * 1024;

ChangeSet head_of(const storage::RecordInfo& info, std::uint32_t id, bool whole) {
  return {id,          whole,        info.epoch,        info.pre,   info.post,
          info.page_size, info.commit, info.timestamp_ms, info.length};
}

class Reader {
 public:
  Reader(const storage::Database& database, std::uint32_t id, Cursor cursor, std::uint64_t budget)
      : log_(database.log()), id_(id), left_(budget) {
    piece_.cursor = std::move(cursor);
  }

  Result<LogPiece> run() {
    for (bool progress = true; progress;) {
      if (piece_.cursor.current) {
        TRY_ASSIGN(progress, send_piece());
      } else {
        TRY_ASSIGN(progress, next_change_set());
      }
    }
    return std::move(piece_);
  }

 private:
  // False: budget used up.
  Result<bool> send_piece() {
    Cursor& cursor = piece_.cursor;
    const storage::RecordInfo& info = cursor.current->info;
    if (cursor.offset == info.length) {
      if (left_ < kFrameCost) return budget_used();
      append(ChangeSetEnd{id_, info.post.txid}, {});
      finish(info);
      return true;
    }
    if (left_ < kMinBudget) return budget_used();
    const std::uint64_t size = std::min({info.length - cursor.offset, left_ - kFrameCost, kMaxPiece});
    TRY(read(*cursor.current, cursor.offset, size));
    append(ChangeSetData{id_, cursor.offset}, scratch_);
    cursor.offset += size;
    return true;
  }

  // False: nothing more that is durable, or budget used up, or a snapshot is needed.
  Result<bool> next_change_set() {
    Cursor& cursor = piece_.cursor;
    // I2: only what is durable leaves the node.
    if (cursor.sent.txid >= log_.durable()) {
      piece_.needs_snapshot = log_.position_at(cursor.sent.txid) != cursor.sent && cursor.sent != Pos{};
      return false;
    }
    if (left_ < kMinBudget) return budget_used();
    auto handle = log_.find(cursor.sent.txid.next());
    if (handle.has_error() && handle.error().code != Errc::not_found) return handle.error();
    // The record must follow what was sent exactly; anything else (rebased, or fallen off the log) is a snapshot's case.
    if (handle.has_error() || handle->info.pre != cursor.sent || handle->info.min_txid != cursor.sent.txid.next()) {
      piece_.needs_snapshot = true;
      return false;
    }
    if (handle->info.post.txid > log_.durable()) return false;
    const std::uint64_t length = handle->info.length;
    if (length <= kMaxPiece && length + kFrameCost <= left_) {
      TRY(read(*handle, 0, length));
      append(head_of(handle->info, id_, true), scratch_);
      finish(handle->info);
      return true;
    }
    // Something is there already: let the next turn have it in one piece, if it can be.
    if (length <= kMaxPiece && !piece_.frames.empty()) return budget_used();
    append(head_of(handle->info, id_, false), {});
    cursor.current = std::move(*handle);
    cursor.offset = 0;
    return true;
  }

  bool budget_used() {
    piece_.more = true;
    return false;
  }

  void finish(const storage::RecordInfo& info) {
    piece_.cursor.sent = info.post;
    piece_.cursor.sent_timestamp_ms = info.timestamp_ms;
    piece_.cursor.current.reset();
    piece_.cursor.offset = 0;
  }

  Result<void> read(const ChangeLog::Handle& handle, std::uint64_t offset, std::uint64_t size) {
    scratch_.resize(size);
    TRY_ASSIGN(const std::size_t n, handle.file->read_at(handle.offset + offset, scratch_));
    if (n == size) return {};
    return make_error(Errc::corrupt, fmt::format("{} ends inside the change set {}", handle.file->path(),
                                                 handle.info.post.txid));
  }

  void append(const Message& message, ByteView payload) {
    append_frame(piece_.frames, message, payload);
    piece_.cost += frame_cost(payload.size());
    left_ -= frame_cost(payload.size());
  }

  const ChangeLog& log_;
  const std::uint32_t id_;
  std::uint64_t left_;
  LogPiece piece_;
  Bytes scratch_;
};

}  // namespace

bool can_continue(const storage::Database& database, const Pos& pos) {
  const ChangeLog& log = database.log();
  if (pos == Pos{}) return log.first_readable() <= Txid(1);
  return log.position_at(pos.txid) == pos;
}

Result<LogPiece> read_log(const storage::Database& database, std::uint32_t id, Cursor cursor, std::uint64_t budget) {
  return Reader(database, id, std::move(cursor), budget).run();
}

}  // namespace sluice::replication
