#include <algorithm>

#include "base/check.h"
#include "base/log.h"
#include "storage/change_log_impl.h"

namespace sluice::storage {

using log_format::kSegmentHeaderSize;

Result<std::vector<DirEntry>> ChangeLog::Impl::list_or_make() {
  auto entries = fs.list(dir);
  if (entries.has_value() || entries.error().code != Errc::not_found) return entries;
  TRY(fs.make_directories(dir));
  return fs.list(dir);
}

Result<void> ChangeLog::Impl::load() {
  TRY_ASSIGN(const auto entries, list_or_make());
  std::vector<Txid> names;
  bool distrusted = false;
  for (const DirEntry& entry : entries) {
    if (const auto first = log_format::parse_segment_name(entry.name)) {
      names.push_back(*first);
    } else if (entry.name == "segment.tmp") {
      TRY(discard(entry.name));
    } else if (entry.name == kSyncFailed) {
      distrusted = true;
    }
  }
  // Whoever made the directory may have died before it was sure to stay.
  if (names.empty()) TRY(fs.sync_directory(parent_directory(dir)));
  std::sort(names.begin(), names.end());
  TRY(load_segments(names));
  TRY(load_tail(distrusted));
  if (!distrusted) return {};
  TRY(fs.unlink(dir + "/" + kSyncFailed));
  return fs.sync_directory(dir);
}

Result<void> ChangeLog::Impl::load_segments(const std::vector<Txid>& names) {
  std::vector<std::shared_ptr<Segment>> found;
  std::uint64_t newest = 0;
  for (const Txid name : names) {
    auto segment = std::make_shared<Segment>();
    segment->path = dir + "/" + log_format::segment_name(name);
    // The last one is gone on with.
    const OpenMode mode{.write = name == names.back()};
    TRY_ASSIGN(auto opened, fs.open(segment->path, mode));
    const std::shared_ptr<File> file = std::move(opened);
    if (mode.write) current = file;
    TRY_ASSIGN(segment->header, read_segment_header(*file));
    TRY_ASSIGN(segment->end, file->size());
    newest = std::max(newest, segment->header.generation);
    found.push_back(std::move(segment));
  }
  MutexLock lock(mutex);
  generation = newest;
  for (auto& segment : found) {
    // append_base was interrupted between making its segment and removing the others.
    if (segment->header.generation < newest) {
      TRY(discard(log_format::segment_name(segment->header.first)));
      continue;
    }
    if (!segments.empty()) TRY(join(*segment, *segments.back()));
    segments.push_back(std::move(segment));
  }
  return {};
}

/// Sealed segments are not read at open: the header of the next one says how they end.
Result<void> ChangeLog::Impl::join(const Segment& next, Segment& before) const {
  const auto& previous = next.header.previous;
  if (!previous || previous->first != before.header.first || before.end < previous->end) {
    return make_error(
        Errc::corrupt,
        fmt::format("change log {}: segment {} does not follow {}, a file is missing or cut short; move the "
                    "log directory away to start the database's history anew, replicas will then "
                    "resynchronise",
                    dir, log_format::segment_name(next.header.first),
                    log_format::segment_name(before.header.first)));
  }
  before.end = previous->end;
  before.last = previous->last.post.txid;
  before.last_timestamp_ms = previous->last.timestamp_ms;
  return {};
}

Result<void> ChangeLog::Impl::load_tail(bool distrusted) {
  MutexLock lock(mutex);
  if (segments.empty()) return {};
  Segment& segment = *segments.back();
  if (current == nullptr || current->path() != segment.path) {
    TRY_ASSIGN(auto file, fs.open(segment.path, {.write = true}));
    current = std::move(file);
  }
  segment.file = current;
  TRY_ASSIGN(const RecoveredTail tail, recover_tail(current, segment, options.known_durable));
  if (tail.cut_bytes > 0) {
    LOG_WARN("change log {}: cut {} bytes of unfinished records behind TXID {}", segment.path, tail.cut_bytes,
             tail.last ? tail.last->post.txid : Txid(0));
  }
  segment.end = tail.end;
  zeroed_end = tail.end;
  if (tail.cut_bytes > 0) {
    TRY(current->truncate(tail.end));
  } else {
    zeroed_end = tail.size;  // zeros written ahead are as good as they were
  }
  if (distrusted) {
    TRY(rewrite(tail.durable_offset, tail.end));
    TRY(current->sync_data());
  }
  last = tail.last;
  if (last) {
    segment.last = last->post.txid;
    segment.last_timestamp_ms = last->timestamp_ms;
  }
  if (tail.last_offset != 0) recent.push_back({*last, current, tail.last_offset});
  // The process before may have died between its last write and the sync. What it was captured from was synced before the log
  // was: released is no more than that.
  durable = distrusted ? last_txid() : std::max(tail.durable, std::min(options.known_durable, last_txid()));
  released = durable;
  durable_offset = distrusted ? tail.end : tail.durable_offset;
  return {};
}

/// Makes the kernel write again what a failed sync has lost on the way to the disk.
Result<void> ChangeLog::Impl::rewrite(std::uint64_t from, std::uint64_t to) {
  constexpr std::uint64_t kPiece = std::uint64_t{1} << 20;
  Bytes piece;
  for (std::uint64_t at = from; at < to; at += piece.size()) {
    piece.resize(static_cast<std::size_t>(std::min(kPiece, to - at)));
    TRY_ASSIGN(const std::size_t n, current->read_at(at, piece));
    if (n != piece.size()) return make_error(Errc::corrupt, current->path() + " became shorter");
    TRY(current->write_at(at, piece));
  }
  LOG_WARN("change log {}: wrote {} bytes again after a failed sync", current->path(), to - from);
  return {};
}

Result<void> ChangeLog::Impl::append_base(RecordInfo info) {
  CHECK(!pending.open);
  MutexLock files(directory_mutex);
  info.base = true;
  info.length = 0;
  log_format::SegmentHeader header;
  header.first = info.post.txid;
  header.starts_with_base = true;
  header.salt = random_salt();
  {
    MutexLock lock(mutex);
    if (failed) return *failed;
    header.generation = generation + 1;
  }
  log_format::RecordHeader record;
  record.info = info;
  record.durable_offset = kSegmentHeaderSize;
  bool named = false;
  auto created = create_segment(fs, dir, header, &record, named);
  if (created.has_error()) {
    MutexLock lock(mutex);
    // Records appended now would be of a generation that the next open throws away.
    if (named) failed = with_context("change log may have started over, restart the node", created.error());
    return std::move(created).error();
  }
  const std::shared_ptr<File> file = std::move(*created);
  // From here on the new generation counts, whatever happens to the old files.
  auto segment = std::make_shared<Segment>();
  segment->header = header;
  segment->path = file->path();
  segment->file = file;
  segment->end = log_format::record_end(kSegmentHeaderSize, 0);
  segment->last = info.post.txid;
  segment->last_timestamp_ms = info.timestamp_ms;
  segment->note_record(info.post.txid, kSegmentHeaderSize);
  segment->indexed = true;
  std::vector<std::shared_ptr<Segment>> old;
  {
    MutexLock lock(mutex);
    old.swap(segments);
    segments.push_back(segment);
    generation = header.generation;
    current = file;
    zeroed_end = segment->end;
    last = info;
    recent.assign(1, {info, file, kSegmentHeaderSize});
    cursors.clear();
    durable = info.post.txid;
    released = info.wal.frame == 0 ? durable : Txid(durable.value() - 1);
    durable_offset = segment->end;
    synced.notify_all();
  }
  return remove_segments(old, segment->path);
}

Result<void> ChangeLog::Impl::remove_segments(const std::vector<std::shared_ptr<Segment>>& old,
                                              const std::string& keep) {
  for (const auto& segment : old) {
    if (segment->path == keep) continue;  // the new one was renamed over it
    const Result<void> removed_one = fs.unlink(segment->path);
    if (removed_one.has_error() && removed_one.error().code != Errc::not_found) return removed_one;
    // One by one, so that what a crash leaves is always the newest part.
    TRY(fs.sync_directory(dir));
  }
  return {};
}

Result<void> ChangeLog::Impl::discard(const std::string& name) {
  LOG_INFO("change log {}: removing leftover {}", dir, name);
  return fs.unlink(dir + "/" + name);
}

Result<void> ChangeLog::append_base(RecordInfo info) {
  return impl_->append_base(info);
}

Result<void> ChangeLog::remove_all() {
  Impl& i = *impl_;
  MutexLock files(i.directory_mutex);
  std::vector<std::shared_ptr<Segment>> old;
  {
    MutexLock lock(i.mutex);
    old.swap(i.segments);
    i.recent.clear();
    i.cursors.clear();
    i.last.reset();
    i.durable = Txid(0);
    i.released = Txid(0);
    // The directory may soon be another log's.
    if (!i.failed) i.failed = i.removed();
    ++i.generation;
    i.current.reset();
    i.synced.notify_all();
  }
  TRY(i.remove_segments(old, ""));
  for (const std::string& leftover : {std::string("segment.tmp"), std::string(kSyncFailed)}) {
    const Result<void> removed_one = i.fs.unlink(i.dir + "/" + leftover);
    if (removed_one.has_error() && removed_one.error().code != Errc::not_found) return removed_one;
  }
  TRY(i.fs.remove_directory(i.dir));
  return i.fs.sync_directory(parent_directory(i.dir));
}

}  // namespace sluice::storage
