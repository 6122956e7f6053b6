// ChangeLog's state, shared by the files that implement it: change_log.cc (append, sync), change_log_open.cc
// (recovery, starting over, removal), change_log_read.cc (find, visit, retention).
#pragma once

#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "storage/change_log_segment.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage {

/// The TXID a segment or index lists a record under.
inline Txid listed_txid(const RecordInfo& info) {
  return info.base ? info.post.txid : info.min_txid;
}
/// A file in the log's directory: a sync failed, the page cache may have what the disk has not.
inline constexpr const char* kSyncFailed = "sync-failed";
/// A salt for a new segment.
std::uint64_t random_salt();

struct ChangeLog::Impl {
  struct Recent {
    RecordInfo info;
    std::shared_ptr<File> file;
    std::uint64_t offset;
  };
  /// Where a reader that goes on from TXID to TXID will look next; keeps the segment's file open for it.
  struct Cursor {
    std::shared_ptr<Segment> segment;
    std::shared_ptr<File> file;
    Txid next;
    std::uint64_t offset = 0;
  };
  /// The record being appended; only the appender touches it.
  struct Pending {
    bool open = false;
    Bytes buffer;                ///< header space and image, until it is streamed
    std::uint64_t streamed = 0;  ///< image bytes already in the file
    std::uint64_t length = 0;
    ltx::Crc64 crc;
  };

  Impl(FileSystem& file_system, std::string directory, ChangeLogOptions log_options)
      : fs(file_system), dir(std::move(directory)), options(log_options) {}

  Result<void> load() EXCLUDES(mutex);
  Result<std::vector<DirEntry>> list_or_make();
  Result<void> load_segments(const std::vector<Txid>& names) EXCLUDES(mutex);
  Result<void> join(const Segment& next, Segment& before) const;
  Result<void> load_tail(bool distrusted) EXCLUDES(mutex);
  Result<void> discard(const std::string& name);
  Result<void> append_base(RecordInfo info) EXCLUDES(directory_mutex, mutex);
  std::shared_ptr<Segment> take_unwanted(const RetentionPolicy& policy, Txid keep_from, std::int64_t now_ms)
      EXCLUDES(mutex);
  Result<void> remove_segments(const std::vector<std::shared_ptr<Segment>>& old, const std::string& keep);

  Result<void> roll_over() EXCLUDES(mutex);
  Result<void> start_segment(const log_format::SegmentHeader& header, const log_format::RecordHeader* base)
      EXCLUDES(mutex);
  Result<void> write_pending(const RecordInfo& info, std::uint64_t at) EXCLUDES(mutex);
  Result<void> stream_pending() EXCLUDES(mutex);
  void write_zeros_ahead(std::uint64_t from, std::uint64_t to);
  void drop_pending(bool wrote) EXCLUDES(mutex);
  void publish(const RecordInfo& info, std::uint64_t at) EXCLUDES(mutex);
  Result<void> flush() EXCLUDES(mutex);
  Result<Txid> sync(std::optional<Txid> content) EXCLUDES(mutex);
  void note_durable(Txid upto) EXCLUDES(mutex);
  Result<void> rest() EXCLUDES(mutex);
  void note_failed_sync();
  void forget_cached(File& file, std::uint64_t durable_end);
  Result<void> rewrite(std::uint64_t from, std::uint64_t to);
  Error removed() const { return make_error(Errc::not_found, "change log " + dir + " was removed"); }

  struct Found {
    RecordInfo info;
    std::shared_ptr<File> file;
    std::uint64_t offset = 0;  ///< of the record header
  };
  /// The record (or base) that holds `txid`.
  Result<Found> locate(Txid txid) EXCLUDES(mutex);
  Result<std::shared_ptr<File>> open_segment(const std::shared_ptr<Segment>& segment) EXCLUDES(mutex);
  Result<void> build_index(const std::shared_ptr<Segment>& segment) EXCLUDES(mutex);
  /// Offset to search `txid` from.
  std::uint64_t search_start(const std::shared_ptr<Segment>& segment, Txid txid) const REQUIRES(mutex);
  void remember(Cursor cursor) EXCLUDES(mutex);
  std::shared_ptr<Segment> segment_of(Txid txid) const REQUIRES(mutex);
  Txid last_txid() const REQUIRES(mutex) { return last ? last->post.txid : Txid(0); }

  FileSystem& fs;
  const std::string dir;
  const ChangeLogOptions options;

  Pending pending;
  // Of the one that syncs.
  std::string forgotten_path;
  std::uint64_t forgotten_end = 0;  ///< in that file: what the page cache was told to forget

  std::uint64_t zeroed_end = 0;   ///< appender's: the current file is allocated up to here
  std::shared_ptr<File> current;  ///< written by the appender under `mutex`, which it needs not for reading

  /// Serialises what removes segments, which files that come may replace. Held over file I/O.
  Mutex directory_mutex ACQUIRED_BEFORE(mutex);
  mutable Mutex mutex;
  CondVar synced;
  std::vector<std::shared_ptr<Segment>> segments
      GUARDED_BY(mutex);  ///< oldest first; the last one is `current`
  std::optional<RecordInfo> last GUARDED_BY(mutex);
  std::deque<Recent> recent GUARDED_BY(mutex);
  static constexpr std::size_t kCursors = 4;
  std::vector<Cursor> cursors GUARDED_BY(mutex);  ///< of the readers seen last
  std::size_t next_cursor GUARDED_BY(mutex) = 0;
  Txid durable GUARDED_BY(mutex);              ///< in the log
  Txid released GUARDED_BY(mutex);             ///< what it was captured from is durable, too; never above `durable`
  std::optional<Txid> held GUARDED_BY(mutex);  ///< first record that durable() does not count
  std::uint64_t durable_offset GUARDED_BY(mutex) = 0;  ///< in the current file
  std::uint64_t generation GUARDED_BY(mutex) = 0;      ///< of `segments`; grows with every base record
  bool syncing GUARDED_BY(mutex) = false;
  std::optional<Error> failed GUARDED_BY(mutex);
};

}  // namespace sluice::storage
