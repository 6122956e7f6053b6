#include "storage/change_log.h"

#include <algorithm>
#include <utility>
#include <random>

#include "base/check.h"
#include "base/log.h"
#include "storage/change_log_impl.h"

namespace sluice::storage {
namespace {

using log_format::kRecordHeaderSize;
using log_format::kSegmentHeaderSize;

constexpr std::size_t kBufferLimit = std::size_t{1} << 20;  ///< larger records are streamed
constexpr std::size_t kKeepBuffer = 256 * 1024;  ///< a larger buffer is given back after the record
constexpr std::size_t kRecentRecords = 256;
/// Zeros are written ahead of small records, as many as there are records already, up to this: fdatasync of a place that is
/// already allocated needs no journal commit (ext4: 0.10 instead of 0.17 ms; fallocate's unwritten extents gain nothing).
constexpr std::size_t kZeroStep = 256 * 1024;
constexpr std::size_t kFirstZeros = 16 * 1024;  ///< there can be thousands of logs with little in them
constexpr std::uint64_t kForgetStep = std::uint64_t{1} << 20;
constexpr std::uint64_t kKeepCached = 8 * kForgetStep;

}  // namespace

std::uint64_t random_salt() {
  std::random_device device;
  return std::uint64_t{device()} << 32 | device();
}

// ---- appending ----

Result<void> ChangeLog::Impl::roll_over() {
  log_format::SegmentHeader header;
  {
    MutexLock lock(mutex);
    if (failed) return *failed;
    if (!segments.empty()) {
      const Segment& sealed = *segments.back();
      if (sealed.end < options.segment_size) return {};
      header.generation = sealed.header.generation;
      header.previous = log_format::SegmentHeader::Previous{sealed.header.first, sealed.end, *last};
    }
    header.first = last_txid().next();
  }
  header.salt = random_salt();
  if (header.previous) {
    // A segment is on disk before the next one exists: damage in it can then be no torn write.
    TRY(flush());
    // Only returns the zeros written ahead to the file system; the next segment's header says where this one
    // ends.
    if (const auto cut = current->truncate(header.previous->end); cut.has_error()) {
      LOG_WARN("change log: {}", cut.error().to_string());
    }
  }
  return start_segment(header, nullptr);
}

Result<void> ChangeLog::Impl::start_segment(const log_format::SegmentHeader& header,
                                            const log_format::RecordHeader* base) {
  bool named = false;  // left over, it is a last segment without records: harmless
  TRY_ASSIGN(auto file, create_segment(fs, dir, header, base, named));
  auto segment = std::make_shared<Segment>();
  segment->header = header;
  segment->path = file->path();
  segment->file = file;
  segment->indexed = true;
  segment->last = Txid(header.first.value() - 1);
  segment->end = base != nullptr ? log_format::record_end(kSegmentHeaderSize, 0) : kSegmentHeaderSize;
  if (header.previous) segment->last_timestamp_ms = header.previous->last.timestamp_ms;
  MutexLock lock(mutex);
  current = std::move(file);
  zeroed_end = segment->end;
  durable_offset = segment->end;
  segments.push_back(std::move(segment));
  return {};
}

void ChangeLog::Impl::write_zeros_ahead(std::uint64_t from, std::uint64_t to) {
  if (to <= zeroed_end || to - from > kZeroStep) return;
  static constexpr std::byte kZeros[kZeroStep] = {};
  const std::uint64_t start = std::max(from, zeroed_end);
  const auto step = static_cast<std::size_t>(std::clamp<std::uint64_t>(to, kFirstZeros, kZeroStep));
  // Only for speed: a disk that is too full for it may still have room for the record.
  if (current->write_at(start, ByteView(kZeros, step)).has_error()) return;
  zeroed_end = start + step;
}

Result<void> ChangeLog::Impl::stream_pending() {
  Pending& p = pending;
  std::uint64_t at = 0;
  {
    MutexLock lock(mutex);
    if (failed) return *failed;
    if (segments.empty()) return removed();
    at = segments.back()->end + kRecordHeaderSize + p.streamed;
  }
  const ByteView image = ByteView(p.buffer).subspan(kRecordHeaderSize);
  const std::size_t n = image.size();
  p.streamed += n;
  TRY(current->write_at(at, image));
  current->start_writeback(at, n);  // the fdatasync at the end then waits for less
  p.buffer.resize(kRecordHeaderSize);
  return {};
}

Result<void> ChangeLog::Impl::write_pending(const RecordInfo& info, std::uint64_t at) {
  Pending& p = pending;
  log_format::RecordHeader header;
  header.info = info;
  header.image_crc = p.crc.value();
  std::uint64_t salt = 0;
  {
    MutexLock lock(mutex);
    if (failed) return *failed;
    header.durable_offset = durable_offset;
    salt = segments.back()->header.salt;
  }
  std::byte head[kRecordHeaderSize];
  log_format::write_record_header(header, salt, at, head);
  const std::uint64_t end = log_format::record_end(at, info.length);
  if (p.streamed > 0) {
    // The header last: until it is there, the record is not.
    TRY(stream_pending());
    const std::byte padding[log_format::kAlignment] = {};
    const std::uint64_t image_end = at + kRecordHeaderSize + info.length;
    TRY(current->write_at(image_end, ByteView(padding, static_cast<std::size_t>(end - image_end))));
    return current->write_at(at, head);
  }
  std::copy(std::begin(head), std::end(head), p.buffer.begin());
  p.buffer.resize(static_cast<std::size_t>(end - at));
  write_zeros_ahead(at, end);
  return current->write_at(at, p.buffer);
}

void ChangeLog::Impl::drop_pending(bool wrote) {
  pending.open = false;
  pending.streamed = 0;
  pending.length = 0;
  pending.crc = {};
  if (pending.buffer.capacity() > kKeepBuffer) pending.buffer = {};
  if (!wrote) return;
  MutexLock lock(mutex);
  if (segments.empty()) return;
  const std::uint64_t end = segments.back()->end;
  zeroed_end = end;
  // What is left behind the end is overwritten by the next record, and no valid record in any case.
  if (const auto cut = current->truncate(end); cut.has_error())
    LOG_WARN("change log: {}", cut.error().to_string());
}

// Nothing is appended meanwhile. What a crash leaves of the zeros is harmless.
Result<void> ChangeLog::Impl::rest() {
  std::uint64_t end = 0;
  {
    MutexLock lock(mutex);
    if (failed || segments.empty() || durable < last_txid()) return {};
    end = segments.back()->end;
    if (recent.size() > 1) recent.erase(recent.begin(), std::prev(recent.end()));
    recent.shrink_to_fit();
    cursors = {};
    cursors.shrink_to_fit();
  }
  pending.buffer = {};
  if (zeroed_end <= end) return {};
  TRY(current->truncate(end));
  zeroed_end = end;
  return {};
}

void ChangeLog::Impl::publish(const RecordInfo& info, std::uint64_t at) {
  MutexLock lock(mutex);
  Segment& segment = *segments.back();
  segment.end = log_format::record_end(at, info.length);
  zeroed_end = std::max(zeroed_end, segment.end);
  segment.last = info.post.txid;
  segment.last_timestamp_ms = info.timestamp_ms;
  segment.note_record(listed_txid(info), at);
  last = info;
  recent.push_back({info, current, at});
  if (recent.size() > kRecentRecords) recent.pop_front();
}

// ---- syncing ----

// Replicas have read all but the newest soon after it was written; after that the log is rarely read. The page cache belongs to
// the databases.
void ChangeLog::Impl::forget_cached(File& file, std::uint64_t durable_end) {
  if (file.path() != forgotten_path) {
    forgotten_path = file.path();
    forgotten_end = 0;
  }
  if (durable_end < forgotten_end + kForgetStep + kKeepCached) return;
  const std::uint64_t upto = (durable_end - kKeepCached) / kForgetStep * kForgetStep;
  file.forget_cached(forgotten_end, upto - forgotten_end);
  forgotten_end = upto;
}

Result<void> ChangeLog::Impl::flush() {
  mutex.lock();
  bool failed_now = false;
  const Txid target = last_txid();
  const std::uint64_t started_in = generation;
  while (!failed && durable < target && generation == started_in) {
    if (syncing) {
      synced.wait(mutex);  // for another caller's fdatasync
      continue;
    }
    syncing = true;
    const std::shared_ptr<Segment> segment = segments.back();
    const std::shared_ptr<File> file = current;
    const Txid upto = last_txid();
    const std::uint64_t offset = segment->end;
    mutex.unlock();
    auto result = file->sync_data();
    if (!result.has_error()) forget_cached(*file, offset);
    mutex.lock();
    syncing = false;
    if (result.has_error()) {
      failed = with_context("change log can no longer be trusted to reach the disk, restart the node",
                            std::move(result).error());
      failed_now = true;
    } else if (generation == started_in) {
      durable = std::max(durable, upto);
      if (segments.back() == segment) durable_offset = std::max(durable_offset, offset);
    }
    synced.notify_all();
  }
  const Result<void> outcome = failed ? Result<void>(*failed) : Result<void>();
  mutex.unlock();
  if (failed_now) note_failed_sync();
  return outcome;
}

// I2: the log alone is not enough. A roll-over or a checkpoint of the page checksums syncs it at any time, also when the WAL
// that holds the newest records has not been synced.
Result<Txid> ChangeLog::Impl::sync(std::optional<Txid> content) {
  Txid target;
  std::uint64_t started_in = 0;
  {
    MutexLock lock(mutex);
    target = content ? std::min(*content, last_txid()) : last_txid();
    started_in = generation;
  }
  TRY(flush());
  MutexLock lock(mutex);
  if (generation == started_in) released = std::max(released, target);
  return released;
}

void ChangeLog::Impl::note_durable(Txid upto) {
  MutexLock lock(mutex);
  upto = std::min(upto, last_txid());
  durable = std::max(durable, upto);
  released = std::max(released, upto);
}

// The kernel drops what it could not write but keeps it in the page cache as clean: to the next process that part of the
// log looks as if it was on disk, and a sync of it succeeds. The file lives as long as that cache.
void ChangeLog::Impl::note_failed_sync() {
  const auto noted = fs.open(dir + "/" + kSyncFailed, {.write = true, .create = true});
  if (noted.has_error()) LOG_ERROR("change log: {}", noted.error().to_string());
}

// ---- the public face ----

ChangeLog::ChangeLog(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ChangeLog::~ChangeLog() = default;

Result<std::unique_ptr<ChangeLog>> ChangeLog::open(FileSystem& fs, std::string dir,
                                                   ChangeLogOptions options) {
  auto impl = std::make_unique<Impl>(fs, std::move(dir), options);
  TRY(impl->load());
  return std::unique_ptr<ChangeLog>(new ChangeLog(std::move(impl)));
}

std::optional<RecordInfo> ChangeLog::last() const {
  MutexLock lock(impl_->mutex);
  return impl_->last;
}

Txid ChangeLog::first_readable() const {
  MutexLock lock(impl_->mutex);
  if (impl_->segments.empty()) return Txid(1);
  const log_format::SegmentHeader& header = impl_->segments.front()->header;
  return header.starts_with_base ? header.first.next() : header.first;
}

Txid ChangeLog::durable() const {
  MutexLock lock(impl_->mutex);
  if (impl_->held && *impl_->held <= impl_->released) return Txid(impl_->held->value() - 1);
  return impl_->released;
}

Txid ChangeLog::synced() const {
  MutexLock lock(impl_->mutex);
  return impl_->released;
}

void ChangeLog::hold(Txid first) {
  MutexLock lock(impl_->mutex);
  if (!impl_->held) impl_->held = first;
}

bool ChangeLog::release_hold() {
  MutexLock lock(impl_->mutex);
  return std::exchange(impl_->held, std::nullopt).has_value();
}

std::uint64_t ChangeLog::size_bytes() const {
  MutexLock lock(impl_->mutex);
  std::uint64_t total = 0;
  for (const auto& segment : impl_->segments) total += segment->end;
  return total;
}

Result<void> ChangeLog::begin_append() {
  Impl& i = *impl_;
  CHECK(!i.pending.open);
  TRY(i.roll_over());
  i.pending.buffer.resize(kRecordHeaderSize);
  i.pending.open = true;
  return {};
}

Result<void> ChangeLog::append_bytes(ByteView bytes) {
  Impl& i = *impl_;
  Impl::Pending& p = i.pending;
  CHECK(p.open);
  p.crc.update(bytes);
  p.length += bytes.size();
  while (!bytes.empty()) {
    const std::size_t n = std::min(bytes.size(), kBufferLimit - p.buffer.size());
    p.buffer.insert(p.buffer.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
    bytes = bytes.subspan(n);
    if (p.buffer.size() < kBufferLimit) continue;
    if (auto written = i.stream_pending(); written.has_error()) {
      i.drop_pending(true);
      return written;
    }
  }
  return {};
}

Result<void> ChangeLog::finish_append(const RecordInfo& given) {
  Impl& i = *impl_;
  CHECK(i.pending.open);
  RecordInfo info = given;
  info.length = i.pending.length;
  info.base = false;
  std::uint64_t at = 0;
  std::optional<RecordInfo> before;
  {
    MutexLock lock(i.mutex);
    if (!i.segments.empty()) at = i.segments.back()->end;
    before = i.last;
  }
  auto written = at == 0 ? Result<void>(i.removed()) : check_follows(before, info);
  bool wrote = i.pending.streamed > 0;
  if (written.has_value()) {
    wrote = true;
    written = i.write_pending(info, at);
  }
  if (written.has_value()) i.publish(info, at);
  i.drop_pending(wrote && written.has_error());
  return written;
}

void ChangeLog::abort_append() {
  if (impl_->pending.open) impl_->drop_pending(impl_->pending.streamed > 0);
}

void ChangeLog::note_durable(Txid upto) { impl_->note_durable(upto); }

Result<void> ChangeLog::rest() { return impl_->rest(); }

Result<Txid> ChangeLog::sync(std::optional<Txid> content) {
  return impl_->sync(content);
}

Result<void> ChangeLog::flush() {
  return impl_->flush();
}

}  // namespace sluice::storage
