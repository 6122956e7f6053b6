#include <algorithm>

#include "storage/change_log_impl.h"

namespace sluice::storage {

using log_format::kRecordHeaderSize;
using log_format::kSegmentHeaderSize;

// ---- reading ----

std::shared_ptr<Segment> ChangeLog::Impl::segment_of(Txid txid) const {
  const auto after = std::upper_bound(segments.begin(), segments.end(), txid,
                                      [](Txid value, const auto& s) { return value < s->header.first; });
  if (after == segments.begin()) return nullptr;
  const auto& segment = *std::prev(after);
  return txid <= segment->last ? segment : nullptr;
}

Result<std::shared_ptr<File>> ChangeLog::Impl::open_segment(const std::shared_ptr<Segment>& segment) {
  {
    MutexLock lock(mutex);
    if (auto file = segment->file.lock()) return file;
  }
  TRY_ASSIGN(auto opened, fs.open(segment->path, {}));  // Errc::not_found: retention was faster
  std::shared_ptr<File> file = std::move(opened);
  MutexLock lock(mutex);
  segment->file = file;
  return file;
}

Result<void> ChangeLog::Impl::build_index(const std::shared_ptr<Segment>& segment) {
  {
    MutexLock lock(mutex);
    if (segment->indexed) return {};
  }
  // A sealed segment: `end` no longer changes.
  TRY_ASSIGN(auto file, open_segment(segment));
  Segment scanned;
  RecordWalker walker(file, segment->header.salt, kSegmentHeaderSize, segment->end);
  for (;;) {
    TRY_ASSIGN(const auto item, walker.next());
    if (!item) break;
    scanned.note_record(listed_txid(item->header.info), item->offset);
  }
  MutexLock lock(mutex);
  if (!segment->indexed) segment->index = std::move(scanned.index);
  segment->indexed = true;
  return {};
}

std::uint64_t ChangeLog::Impl::search_start(const std::shared_ptr<Segment>& segment, Txid txid) const {
  for (const Cursor& cursor : cursors) {
    if (cursor.segment == segment && cursor.next == txid) return cursor.offset;
  }
  const auto after = std::upper_bound(segment->index.begin(), segment->index.end(), txid,
                                      [](Txid value, const Segment::IndexEntry& e) { return value < e.min; });
  return after == segment->index.begin() ? kSegmentHeaderSize : std::prev(after)->offset;
}

void ChangeLog::Impl::remember(Cursor cursor) {
  MutexLock lock(mutex);
  for (Cursor& known : cursors) {
    if (known.segment != cursor.segment || known.offset > cursor.offset) continue;
    known = std::move(cursor);
    return;
  }
  if (cursors.size() < kCursors) {
    cursors.push_back(std::move(cursor));
  } else {
    cursors[next_cursor++ % kCursors] = std::move(cursor);
  }
}

Result<ChangeLog::Impl::Found> ChangeLog::Impl::locate(Txid txid) {
  std::shared_ptr<Segment> segment;
  {
    MutexLock lock(mutex);
    if (!recent.empty() && txid >= listed_txid(recent.front().info) && txid <= last_txid()) {
      const auto it = std::lower_bound(recent.begin(), recent.end(), txid,
                                       [](const Recent& r, Txid value) { return r.info.post.txid < value; });
      return Found{it->info, it->file, it->offset};
    }
    segment = segment_of(txid);
  }
  if (!segment) return make_error(Errc::not_found, fmt::format("TXID {} is not in change log {}", txid, dir));
  TRY(build_index(segment));
  TRY_ASSIGN(auto file, open_segment(segment));
  std::uint64_t from = 0;
  std::uint64_t end = 0;
  {
    MutexLock lock(mutex);
    from = search_start(segment, txid);
    end = segment->end;
  }
  RecordWalker walker(file, segment->header.salt, from, end);
  for (;;) {
    TRY_ASSIGN(const auto item, walker.next());
    if (!item) break;
    const RecordInfo& info = item->header.info;
    if (info.post.txid < txid) continue;
    remember({segment, file, info.post.txid.next(), log_format::record_end(item->offset, info.length)});
    return Found{info, file, item->offset};
  }
  return make_error(Errc::not_found, fmt::format("TXID {} is not in change log {}", txid, dir));
}

Result<ChangeLog::Handle> ChangeLog::find(Txid txid) const {
  TRY_ASSIGN(const auto found, impl_->locate(txid));
  if (found.info.base || txid < found.info.min_txid) {
    return make_error(Errc::not_found,
                      fmt::format("change set {} is no longer in change log {}", txid, impl_->dir));
  }
  return Handle{found.info, found.file, found.offset + kRecordHeaderSize};
}

std::optional<Pos> ChangeLog::position_at(Txid txid) const {
  const auto found = impl_->locate(txid);
  if (found.has_value())
    return found->info.post.txid == txid ? std::optional(found->info.post) : std::nullopt;
  MutexLock lock(impl_->mutex);
  if (impl_->segments.empty()) return std::nullopt;
  // Retention keeps the position before the first record that is left.
  const auto& previous = impl_->segments.front()->header.previous;
  if (previous && previous->last.post.txid == txid) return previous->last.post;
  return std::nullopt;
}

Result<void> ChangeLog::for_each(Txid from, FunctionRef<bool(const Handle&)> visit) const {
  struct Range {
    std::shared_ptr<Segment> segment;
    std::uint64_t from;
    std::uint64_t end;
  };
  std::vector<Range> ranges;
  {
    MutexLock lock(impl_->mutex);
    for (const auto& segment : impl_->segments) {
      if (segment->last < from) continue;
      const auto& index = segment->index;
      const auto after =
          std::upper_bound(index.begin(), index.end(), from,
                           [](Txid value, const Segment::IndexEntry& e) { return value < e.min; });
      ranges.push_back(
          {segment, after == index.begin() ? kSegmentHeaderSize : std::prev(after)->offset, segment->end});
    }
  }
  bool visited = false;
  for (const Range& range : ranges) {
    auto file = impl_->open_segment(range.segment);
    // Retention may remove the oldest before we come to it, but nothing from the middle of what we visit.
    if (file.has_error() && file.error().code == Errc::not_found && !visited) continue;
    TRY(file);
    RecordWalker walker(*file, range.segment->header.salt, range.from, range.end);
    for (;;) {
      TRY_ASSIGN(const auto item, walker.next());
      if (!item) break;
      if (item->header.info.post.txid < from) continue;
      visited = true;
      if (!visit(Handle{item->header.info, *file, item->offset + kRecordHeaderSize})) return {};
    }
  }
  return {};
}

/// The oldest segment, if `policy` does not want it: out of the list, not yet deleted.
std::shared_ptr<Segment> ChangeLog::Impl::take_unwanted(const RetentionPolicy& policy, Txid keep_from,
                                                        std::int64_t now_ms) {
  MutexLock lock(mutex);
  if (segments.size() <= 1) return nullptr;
  std::uint64_t total = 0;
  for (const auto& segment : segments) total += segment->end;
  const std::shared_ptr<Segment> oldest = segments.front();
  const bool too_old = now_ms - oldest->last_timestamp_ms > policy.max_age_ms;
  if (oldest->last >= keep_from || !(too_old || total > policy.max_bytes)) return nullptr;
  segments.erase(segments.begin());
  std::erase_if(cursors, [&](const Cursor& cursor) { return cursor.segment == oldest; });
  const Txid first = segments.front()->header.first;
  while (!recent.empty() && listed_txid(recent.front().info) < first) recent.pop_front();
  return oldest;
}

Result<std::size_t> ChangeLog::retain(const RetentionPolicy& policy, Txid keep_from, std::int64_t now_ms) {
  Impl& i = *impl_;
  MutexLock files(i.directory_mutex);
  std::size_t count = 0;
  while (const auto oldest = i.take_unwanted(policy, keep_from, now_ms)) {
    const Result<void> unlinked = i.fs.unlink(oldest->path);
    if (unlinked.has_error() && unlinked.error().code != Errc::not_found) {
      // Back with it: to remove the next one would leave a gap, and the next open takes a gap for damage.
      MutexLock lock(i.mutex);
      i.segments.insert(i.segments.begin(), oldest);
      return unlinked.error();
    }
    // One by one, so that what a crash leaves is always the newest part.
    TRY(i.fs.sync_directory(i.dir));
    ++count;
  }
  return count;
}

}  // namespace sluice::storage
