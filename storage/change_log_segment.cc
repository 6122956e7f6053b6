#include "storage/change_log_segment.h"

#include <algorithm>
#include <limits>

#include "storage/ltx/checksum.h"

namespace sluice::storage {
namespace {

using log_format::kAlignment;
using log_format::kRecordHeaderSize;
using log_format::kSegmentHeaderSize;
using log_format::RecordHeader;

constexpr std::size_t kWindowSize = 32 * 1024;
constexpr std::size_t kPieceSize = std::size_t{1} << 20;

Error damaged(const File& file, std::uint64_t offset, const std::string& what) {
  return make_error(
      Errc::corrupt,
      fmt::format("change log {} is damaged at byte {}: {}; move the log directory away to start the "
                  "database's history anew, replicas will then resynchronise",
                  file.path(), offset, what));
}

/// Could a file of this size hold the record?
bool fits(const RecordHeader& header, std::uint64_t offset, std::uint64_t file_size) {
  const std::uint64_t room = file_size - offset - kRecordHeaderSize;
  return header.info.length <= room;
}

Result<bool> image_is_whole(const File& file, std::uint64_t offset, const RecordHeader& header,
                            Bytes& scratch) {
  ltx::Crc64 crc;
  std::uint64_t at = offset + kRecordHeaderSize;
  for (std::uint64_t left = header.info.length; left > 0;) {
    scratch.resize(static_cast<std::size_t>(std::min<std::uint64_t>(left, kPieceSize)));
    TRY_ASSIGN(const std::size_t n, file.read_at(at, scratch));
    if (n < scratch.size()) return false;
    crc.update(scratch);
    at += n;
    left -= n;
  }
  return crc.value() == header.image_crc;
}

/// Looks through the bytes behind a broken record at `broken`. Errc::corrupt if one of them is a record that
/// was written after the broken place had been synced. Returns whether there is anything but zeros.
Result<bool> inspect_tail(const File& file, std::uint64_t salt, std::uint64_t broken,
                          std::uint64_t file_size) {
  std::uint64_t used = 0;
  Bytes piece;
  for (std::uint64_t at = broken; at < file_size; at += kPieceSize) {
    // Pieces overlap by one header, so that none is missed across the border.
    const std::uint64_t want = std::min<std::uint64_t>(kPieceSize + kRecordHeaderSize, file_size - at);
    piece.resize(static_cast<std::size_t>(want));
    TRY_ASSIGN(const std::size_t n, file.read_at(at, piece));
    piece.resize(n);
    const auto last =
        std::find_if(piece.rbegin(), piece.rend(), [](std::byte b) { return b != std::byte{0}; });
    if (last == piece.rend()) continue;
    used = at - broken + static_cast<std::uint64_t>(piece.rend() - last);
    for (std::size_t i = 0; i + kRecordHeaderSize <= n; i += kAlignment) {
      const auto later = log_format::parse_record_header(ByteView(piece).subspan(i), salt, at + i);
      if (later && later->durable_offset > broken) {
        return damaged(file, broken,
                       fmt::format("a record that was on disk before TXID {} was written is not valid",
                                   later->info.min_txid));
      }
    }
  }
  return used;
}

}  // namespace

Result<std::optional<RecordWalker::Item>> RecordWalker::next() {
  if (next_ >= end_) return std::optional<Item>();
  if (next_ < window_at_ || next_ + kRecordHeaderSize > window_at_ + window_.size()) {
    // The first read is for one record only: often no more are asked for.
    const std::uint64_t want =
        std::min<std::uint64_t>(window_.empty() ? kRecordHeaderSize : kWindowSize, end_ - next_);
    window_.resize(static_cast<std::size_t>(want));
    window_at_ = next_;
    TRY_ASSIGN(const std::size_t n, file_->read_at(window_at_, window_));
    window_.resize(n);
  }
  const auto header = log_format::parse_record_header(
      ByteView(window_).subspan(static_cast<std::size_t>(next_ - window_at_)), salt_, next_);
  if (!header || next_ + kRecordHeaderSize > end_ || !fits(*header, next_, end_)) {
    return damaged(*file_, next_, "no valid record there");
  }
  Item item{*header, next_};
  next_ = log_format::record_end(next_, header->info.length);
  return std::optional<Item>(item);
}

Result<std::shared_ptr<File>> create_segment(FileSystem& fs, const std::string& dir,
                                             const log_format::SegmentHeader& header,
                                             const RecordHeader* first_record, bool& named) {
  const std::string temporary = dir + "/segment.tmp";
  const std::string path = dir + "/" + log_format::segment_name(header.first);
  Bytes bytes(kSegmentHeaderSize + (first_record != nullptr ? kRecordHeaderSize : 0));
  log_format::write_segment_header(header, ByteSpan(bytes).first(kSegmentHeaderSize));
  if (first_record != nullptr) {
    log_format::write_record_header(*first_record, header.salt, kSegmentHeaderSize,
                                    ByteSpan(bytes).subspan(kSegmentHeaderSize));
  }
  {
    TRY_ASSIGN(const auto file, fs.open(temporary, {.write = true, .create = true}));
    TRY(file->truncate(0));
    TRY(file->write_at(0, bytes));
    TRY(file->sync_data());
  }
  if (const auto renamed = fs.rename(temporary, path); renamed.has_error()) {
    const auto left = fs.exists(temporary);
    named = left.has_error() || !*left;
    return renamed.error();
  }
  named = true;
  TRY(fs.sync_directory(dir));
  TRY_ASSIGN(auto file, fs.open(path, {.write = true}));
  return std::shared_ptr<File>(std::move(file));
}

Result<log_format::SegmentHeader> read_segment_header(const File& file) {
  Bytes bytes(kSegmentHeaderSize);
  TRY_ASSIGN(const std::size_t n, file.read_at(0, bytes));
  bytes.resize(n);
  auto header = log_format::parse_segment_header(bytes);
  if (header.has_error() && header.error().code == Errc::corrupt)
    return damaged(file, 0, header.error().message);
  if (header.has_error()) return with_context(file.path(), std::move(header).error());
  if (!file.path().ends_with("/" + log_format::segment_name(header->first))) {
    return damaged(file, 0, fmt::format("the file holds the segment of TXID {}", header->first));
  }
  return header;
}

Result<RecoveredTail> recover_tail(const std::shared_ptr<File>& file, Segment& segment, Txid known_durable) {
  TRY_ASSIGN(const std::uint64_t size, file->size());
  const std::uint64_t salt = segment.header.salt;
  RecoveredTail tail;
  tail.size = size;
  std::vector<std::pair<std::uint64_t, Txid>> ends;  // of the records behind the durable offset
  tail.end = kSegmentHeaderSize;
  tail.durable_offset = kSegmentHeaderSize;
  if (segment.header.previous) {
    tail.last = segment.header.previous->last;
    tail.durable = tail.last->post.txid;  // sealed and synced
  }
  Bytes head(kRecordHeaderSize);
  Bytes scratch;
  while (tail.end + kRecordHeaderSize <= size) {
    TRY_ASSIGN(const std::size_t n, file->read_at(tail.end, head));
    const auto record = log_format::parse_record_header(ByteView(head).first(n), salt, tail.end);
    if (!record || !fits(*record, tail.end, size)) break;
    if (record->info.post.txid > known_durable) {
      TRY_ASSIGN(const bool whole, image_is_whole(*file, tail.end, *record, scratch));
      if (!whole) break;
    }
    const RecordInfo& info = record->info;
    const bool first = tail.end == kSegmentHeaderSize;
    // The header's checksum vouches for these fields, so this is not a torn write.
    if (info.base ? !(first && segment.header.starts_with_base && info.post.txid == segment.header.first)
                  : check_follows(tail.last, info).has_error() ||
                        (first && info.min_txid != segment.header.first)) {
      return damaged(*file, tail.end,
                     fmt::format("the record of TXID {} does not follow its predecessor", info.min_txid));
    }
    segment.note_record(info.base ? info.post.txid : info.min_txid, tail.end);
    tail.last = info;
    tail.last_offset = tail.end;
    tail.durable_offset = std::min(record->durable_offset, tail.end);
    tail.end = log_format::record_end(tail.end, info.length);
    ends.emplace_back(tail.end, info.post.txid);
    std::erase_if(ends, [&tail](const auto& end) {
      const bool durable = end.first <= tail.durable_offset;
      if (durable) tail.durable = end.second;
      return durable;
    });
    if (info.base) tail.durable = info.post.txid;
  }
  if (segment.header.starts_with_base && tail.last_offset == 0) {
    return damaged(*file, tail.end, "the base record is not valid");
  }
  segment.indexed = true;
  if (tail.end < size) {
    TRY_ASSIGN(tail.cut_bytes, inspect_tail(*file, salt, tail.end, size));
  }
  return tail;
}

Result<void> check_follows(const std::optional<RecordInfo>& last, const RecordInfo& next) {
  const auto refuse = [&](const std::string& why) {
    return make_error(Errc::position, fmt::format("change set {}-{} {}", next.min_txid, next.post.txid, why));
  };
  if (next.min_txid != next.pre.txid.next() || next.post.txid < next.min_txid)
    return refuse("has no valid TXID range");
  if (!last) {
    if (next.min_txid != Txid(1)) return refuse("cannot start a log; only TXID 1 or a base record can");
    return {};
  }
  if (next.pre != last->post)
    return refuse(fmt::format("follows {}, but the log ends at {}", next.pre, last->post));
  return {};
}

}  // namespace sluice::storage
