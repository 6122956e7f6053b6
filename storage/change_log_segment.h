// One segment file of a change log: making it, walking its record headers, and finding its end after a crash.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "storage/change_log_format.h"

namespace sluice::storage {

/// A segment as the log knows it in memory. The fields above the line never change; those below it are
/// guarded by the log's mutex.
struct Segment {
  log_format::SegmentHeader header;
  std::string path;
  // ---
  std::uint64_t end = 0;  ///< where the next record goes; sealed segments: where the records end
  Txid last;              ///< of the last record; header.first - 1 (or less) when there is none
  std::int64_t last_timestamp_ms = 0;
  std::weak_ptr<File> file;

  /// Every kIndexStep-th record: where a search starts. Made while records are appended; for segments found
  /// at open, when they are first searched.
  struct IndexEntry {
    Txid min;
    std::uint64_t offset;
  };
  static constexpr std::uint32_t kIndexStep = 64;
  std::vector<IndexEntry> index;
  std::uint32_t records = 0;  ///< seen so far, for the step
  bool indexed = false;

  void note_record(Txid min, std::uint64_t offset) {
    if (records++ % kIndexStep == 0) index.push_back({min, offset});
  }
};

/// Reads record headers one after the other; for a range of a segment that is known to hold whole records.
/// Many small records cost one read for all of them.
class RecordWalker {
 public:
  RecordWalker(std::shared_ptr<const File> file, std::uint64_t salt, std::uint64_t from, std::uint64_t end)
      : file_(std::move(file)), salt_(salt), next_(from), end_(end) {}

  struct Item {
    log_format::RecordHeader header;
    std::uint64_t offset = 0;  ///< of the record header
  };
  /// nullopt at the end. Errc::corrupt for anything that is no record.
  Result<std::optional<Item>> next();

 private:
  std::shared_ptr<const File> file_;
  const std::uint64_t salt_;
  std::uint64_t next_;
  const std::uint64_t end_;
  Bytes window_;
  std::uint64_t window_at_ = 0;
};

/// Creates DIR/<first>.seg with `header` (and `first_record`, if given: a base record), durable under its
/// name when this returns: written and synced under another name first, so that a .seg file is never without
/// a valid header. After an error `named` says whether the file may have its name nevertheless.
Result<std::shared_ptr<File>> create_segment(FileSystem& fs, const std::string& dir,
                                             const log_format::SegmentHeader& header,
                                             const log_format::RecordHeader* first_record, bool& named);

/// Reads and checks the header of the file at `path`, which must be named after its first TXID.
Result<log_format::SegmentHeader> read_segment_header(const File& file);

/// What is valid in the last segment of a log.
struct RecoveredTail {
  std::uint64_t end = 0;
  std::optional<RecordInfo> last;
  std::uint64_t last_offset = 0;
  std::uint64_t durable_offset = 0;  ///< everything before it was synced when the last record was written
  Txid durable;                      ///< of the last record before durable_offset
  std::uint64_t size = 0;            ///< of the file
  std::uint64_t cut_bytes = 0;  ///< not zero: there was a torn tail of so many bytes behind `end`
};

/// Verifies the records of the last segment, images included, from its start to the first that is not valid,
/// and decides whether what follows is a torn tail or damage: it is damage (Errc::corrupt) if any later
/// record header of this segment says that the log had been synced past the broken place. Fills `segment`'s
/// index. Images of records up to `known_durable` are not read.
Result<RecoveredTail> recover_tail(const std::shared_ptr<File>& file, Segment& segment, Txid known_durable);

/// Errc::position unless `next` follows `last` (nullopt: an empty log, which starts at TXID 1).
Result<void> check_follows(const std::optional<RecordInfo>& last, const RecordInfo& next);

}  // namespace sluice::storage
