// Appends change sets to a live database's WAL and publishes them in the wal-index, as a SQLite writer would.
//
// One change set: begin(), add() for each page, reserve(), seal(), then publish() or cancel(). Frames go to the file as they
// come, behind the published mxFrame, where nobody looks; the frame that carries the commit is written by seal(), once the
// change set is known to be good. publish() touches memory only.
//
//   us                                       a reader
//   pwrite frames (same page cache)
//   page numbers, hash slots (release)
//   header copy [1]
//   full barrier
//   header copy [0]                          copy [0], barrier, copy [1]: equal -> mark, pages up to mxFrame
//
// The steps and their barriers are SQLite's (wal.c: walIndexAppend, walIndexWriteHdr, walRestartLog).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "base/mutex.h"
#include "storage/apply/live_files.h"
#include "storage/apply/live_index.h"
#include "storage/ids.h"

namespace sluice::storage::apply {

struct WalWriterOptions {
  bool hold_write_locks = false;  ///< keep WRITE and CKPT for good
  int lock_wait_ms = 5000;
};

/// The last frame of an applied change set, and what the database is from there on.
struct AppliedMark {
  std::uint32_t frame = 0;
  Pos pos;
  std::uint32_t page_count = 0;
};

/// One thread applies; view() and reached() may be called beside it.
class WalWriter {
 public:
  /// Takes up the wal-index: a new or unreadable one is initialised for a database of `page_count` pages that is at `pos`, one
  /// with frames of somebody else's is adopted (see adopted_frames()). `files` have -wal and -shm open.
  static Result<std::unique_ptr<WalWriter>> attach(LiveFiles& files, LiveIndex& index, std::uint32_t page_size,
                                                   std::uint32_t page_count, const Pos& pos,
                                                   const WalWriterOptions& options);
  /// After a takeover: takes up the wal-index that the process before us wrote, under locks that nobody else got in between
  /// (LiveFiles::inherited()), whatever it was doing. Holds WRITE until publish() or cancel(). Errc::corrupt: it must be made anew.
  static Result<std::unique_ptr<WalWriter>> resume(LiveFiles& files, LiveIndex& index, const WalWriterOptions& options);
  /// … one that must be made anew, by a replacement: keeps WRITE (held) from readers until then.
  static std::unique_ptr<WalWriter> block(LiveFiles& files, LiveIndex& index, std::uint32_t page_size);
  /// What is published is the database at `pos`.
  void note_position(const Pos& pos, std::uint32_t page_count) EXCLUDES(mutex_);
  ~WalWriter();

  /// The WAL held frames when we came: the content is not known to be at any position until every page was written.
  bool adopted_frames() const { return adopted_frames_; }

  /// Takes WRITE. Errc::busy; Errc::internal when somebody else has written to the WAL (`adopt`: take over what is there).
  Result<void> begin(bool adopt);
  /// Everything is backfilled, so that the WAL could start over.
  Result<bool> restart_due() const;
  /// Starts the WAL over if no reader uses it. Commit lock held, no backfill running.
  Result<void> try_restart();
  Result<void> add(Pgno pgno, ByteView page);
  std::uint32_t frames_added() const { return static_cast<std::uint32_t>(pages_.size()); }
  /// Room in the wal-index for what was added. A FUSE request: not under the commit lock.
  Result<void> reserve();
  /// Writes what is buffered, with the commit in the last frame. Nothing to do if nothing was added.
  Result<void> seal(std::uint32_t commit);
  /// Makes it visible and gives WRITE back. On an error the wal-index is broken: readers have the state before.
  Result<void> publish(const Pos& pos, std::uint32_t commit);
  /// Forgets what was added and gives WRITE back.
  void cancel();

  struct View {
    sqlite::WalIndexHeader header;  ///< as published
    std::uint32_t page_size = 0;
  };
  View view() const EXCLUDES(mutex_);
  /// The newest change set that is complete at `frame`; nullopt while the content is not known.
  std::optional<AppliedMark> reached(std::uint32_t frame) const EXCLUDES(mutex_);

  /// For a replacement: all locks of the wal-index are held by the caller (see replace.h).
  Result<void> start_over(std::uint32_t page_size, std::uint32_t page_count, const Pos& pos, sqlite::Salts salts,
                          std::uint32_t checkpoint_sequence) EXCLUDES(mutex_);
  std::uint32_t next_checkpoint_sequence() const { return sequence_ + 1; }
  bool holds_write_locks() const { return options_.hold_write_locks; }

 private:
  WalWriter(LiveFiles& files, LiveIndex& index, const WalWriterOptions& options);
  Result<void> take_up_again();
  Result<void> take_up(std::uint32_t page_size, std::uint32_t page_count, const Pos& pos);
  Result<void> init_checkpoint_info();
  Result<void> adopt_header(const sqlite::WalIndexHeader& found);
  Result<void> start_frames();
  void finish_frame(std::uint32_t commit);
  Result<void> flush();
  void add_mark(const AppliedMark& mark) REQUIRES(mutex_);
  void release();

  LiveFiles& files_;
  LiveIndex& index_;
  const WalWriterOptions options_;
  bool adopted_frames_ = false;

  // The applying thread's.
  sqlite::WalIndexHeader mine_;  ///< as last published
  std::uint32_t page_size_ = 0;
  std::uint32_t sequence_ = 0;   ///< of the WAL's header
  bool locked_ = false;
  bool started_ = false;
  sqlite::WalHeader wal_;
  sqlite::WalChecksum checksum_;   ///< after the last finished frame
  Bytes buffer_;                   ///< frames not yet written; the last is not finished
  std::size_t used_ = 0;
  std::size_t open_frame_ = 0;     ///< where in buffer_, while frame_open_
  bool frame_open_ = false;
  std::uint64_t write_at_ = 0;     ///< file offset of buffer_[0]
  std::vector<std::uint32_t> pages_;

  mutable Mutex mutex_;
  View view_ GUARDED_BY(mutex_);
  std::optional<AppliedMark> base_ GUARDED_BY(mutex_);    ///< content of the database file before frame 1
  std::deque<AppliedMark> marks_ GUARDED_BY(mutex_);      ///< ascending
};

}  // namespace sluice::storage::apply
