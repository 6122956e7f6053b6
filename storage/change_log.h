// The change log of one database: append-only segments of records {epoch, TXID range, length, crc, LTX image}. Byte
// tables stand in docs/FORMATS.md.
//
// Threads: one appender at a time (the database's commit lock); sync(), readers and retention run beside it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/function_ref.h"
#include "base/os.h"
#include "storage/ids.h"
#include "storage/sqlite/wal_format.h"

namespace sluice::storage {

/// What a record says besides its LTX image.
struct RecordInfo {
  Epoch epoch;
  Pos pre;                    ///< position before
  Pos post;                   ///< position after; post.txid is the record's max TXID
  Txid min_txid;              ///< == pre.txid + 1
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;   ///< pages after
  std::int64_t timestamp_ms = 0;
  std::uint64_t length = 0;   ///< of the LTX image, bytes; 0 for a base record
  bool base = false;          ///< only a position: the content at `post` is the database file itself (see append_base)
  sqlite::WalPosition wal;    ///< primary: position in the WAL after this change set (zero if not from a WAL)
};

struct ChangeLogOptions {
  std::uint64_t segment_size = 64u << 20;  ///< a segment is sealed at the first record end past this, bytes
  /// open(): records up to here are known to be on disk (page checksums whose checkpoint it is): their images are not read.
  Txid known_durable{};
};

struct RetentionPolicy {
  std::int64_t max_age_ms = 10 * 60 * 1000;
  std::uint64_t max_bytes = std::uint64_t{1} << 30;
};

class ChangeLog {
 public:
  /// Opens the log in directory `dir` (created if missing), verifies the last segment record by record and cuts a torn
  /// tail. Errc::corrupt (naming file and offset) when a record before the tail is damaged or segments do not join. Syncs
  /// nothing (there can be thousands of logs): synced() is what is known to be on disk, the next sync() sees to the rest.
  static Result<std::unique_ptr<ChangeLog>> open(FileSystem& fs, std::string dir, ChangeLogOptions options);
  ~ChangeLog();

  /// Last record, if any.
  std::optional<RecordInfo> last() const;
  /// Smallest TXID that can be read (a base record at TXID t: t + 1). Equal to last + 1 when there is nothing.
  Txid first_readable() const;
  /// Everything up to here may leave the node (I2): synced() without the records from a hold on.
  Txid durable() const;
  /// Everything up to here was released by sync(): it is on disk, and so is what it was captured from.
  Txid synced() const;
  /// Keeps records from `first` on out of durable(): a transaction whose commit is not certain yet. An earlier hold stays.
  void hold(Txid first);
  /// True if there was a hold.
  bool release_hold();
  std::uint64_t size_bytes() const;

  /// Appends one record in pieces. begin_append, append_bytes…, then finish_append or abort_append. The record exists for
  /// readers and for recovery only after finish_append. `info.length` is ignored: it is what was appended.
  Result<void> begin_append();
  Result<void> append_bytes(ByteView bytes);
  Result<void> finish_append(const RecordInfo& info);
  void abort_append();

  /// Starts the log over at `info.post`: a position whose content is the database file. Existing records are removed.
  /// Durable on return; released, too, unless `info.wal` says that part of the content is in a WAL: then sync() does that.
  /// After an error behind the point of no return the log fails for good: the next open finds the base.
  Result<void> append_base(RecordInfo info);

  /// Makes everything appended before the call durable, and releases it up to `content` (default: all of it): the caller
  /// vouches that what it was captured from is on disk (I2; a replica's log is captured from nothing). Returns synced().
  /// Callers may overlap: one fdatasync serves all that wait. After a failed fdatasync the log fails for good: every later
  /// sync and append returns that error (a retried fsync reports success for pages that are lost).
  Result<Txid> sync(std::optional<Txid> content = std::nullopt);
  /// Makes everything appended before the call durable in the log, and releases nothing.
  Result<void> flush();

  /// Somebody has synced the whole file system: everything up to `upto` is released.
  void note_durable(Txid upto);
  /// The appender's, when nothing was appended for a while: gives back memory, and to the file system what was allocated ahead.
  Result<void> rest();

  /// A record and its image. Retention may remove the segment while the handle lives; reading it then fails with
  /// Errc::not_found, if it was not read for so long that its descriptor went to other files (base/os.h).
  struct Handle {
    RecordInfo info;
    std::shared_ptr<const File> file;
    std::uint64_t offset = 0;  ///< of the image in `file`
  };
  /// The record that contains `txid`; Errc::not_found when it was removed, is not there yet, or is a base record.
  Result<Handle> find(Txid txid) const;
  /// The position after `txid`, if a record (or base) ends exactly there.
  std::optional<Pos> position_at(Txid txid) const;
  /// Visits records with max TXID >= from, oldest first, until the visitor returns false.
  Result<void> for_each(Txid from, FunctionRef<bool(const Handle&)> visit) const;

  /// Removes sealed segments that `policy` no longer wants and whose records are all below `keep_from`. Returns the number
  /// removed. The last segment always stays. After an error everything that is left is still one piece.
  Result<std::size_t> retain(const RetentionPolicy& policy, Txid keep_from, std::int64_t now_ms);

  /// Closes and deletes all files. The object is then only good for destruction: appends and syncs fail.
  Result<void> remove_all();

 private:
  struct Impl;
  explicit ChangeLog(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::storage
