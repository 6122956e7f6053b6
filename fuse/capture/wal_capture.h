// Capture of one WAL database by its tail (DESIGN §3). How it decides what is committed, and why each rule is there, stands in
// docs/ARCHITECTURE.md, "Capture from a WAL".
#pragma once

#include <atomic>
#include <memory>
#include <optional>
#include <vector>

#include "fuse/capture/capture.h"
#include "fuse/capture/commit.h"
#include "fuse/capture/counters.h"
#include "fuse/capture/pages_ahead.h"
#include "fuse/capture/shm_view.h"
#include "fuse/capture/wal_overlay.h"
#include "storage/database.h"
#include "storage/sqlite/wal_reader.h"

namespace sluice::fuse {

/// Why capture runs. Gates must not let the operation go on unless everything committed is captured.
enum class Reason {
  tail,      ///< the poller saw a new header, or somebody asked for the position
  backfill,  ///< gate: the database file is about to be written or to get another size
  gate,      ///< gate: WAL truncation or removal, or a fsync
};

/// Everything here needs the database's commit lock, but what says otherwise.
class WalCapture {
 public:
  WalCapture(storage::Database& database, NodeId node, const CaptureOptions& options, CaptureCounters& counters,
             PagesAhead& ahead);

  /// The database file, for pages that are not in the WAL. Set before anything else; replaced when the name gets another file.
  void set_database_file(std::shared_ptr<const File> file) { database_file_ = std::move(file); }
  void set_wal(std::shared_ptr<File> wal);  ///< nullptr: removed
  void set_shm(std::shared_ptr<const ShmView> shm);
  /// An -shm file exists. While it does and set_shm has not been called for it, liveness is unknown.
  void set_shm_present(bool present);
  bool has_wal() const { return wal_ != nullptr; }
  bool shm_present() const { return shm_present_; }
  bool needs_shm_view() const { return wal_ != nullptr && shm_present_ && shm_ == nullptr; }
  const std::shared_ptr<File>& wal_file() const { return wal_; }
  const std::shared_ptr<const ShmView>& shm_view() const { return shm_; }
  /// What is done under the commit lock may take requests through our own mount (plain path), so no FUSE worker may wait for
  /// that lock. Thread-safe without it.
  bool reads_mount() const { return reads_mount_.load(std::memory_order_relaxed); }

  /// Starts at the position the last change set recorded (at start-up), to be checked by the next capture.
  void resume(const sqlite::WalPosition& position);
  /// The database was deleted or replaced: nothing of the WAL is known.
  void forget();

  /// Captures what is committed. An error at a gate means: refuse the operation.
  Result<void> capture(Reason reason);

  /// Is there something to capture, as far as a cheap look tells? (For the poller.)
  Result<bool> pending();

  /// Before -shm or -wal go: notes whether everything captured was backfilled.
  void note_backfilled();
  /// After the WAL file went: if frames were lost that the database file does not have, makes the difference a change set.
  Result<void> after_wal_removal(FunctionRef<Result<std::uint32_t>()> page_count_of_file);

  /// Content of the page as of the database's position; `out` is one page.
  Result<void> read_page(Pgno pgno, ByteSpan out);
  /// What SQLite would read now, whole: compares every page and makes one change set of the differences. Errc::unsupported:
  /// the file is no database; nothing has changed.
  Result<void> reconcile(std::string_view why);

  const sqlite::WalPosition& position() const { return position_; }
  /// False: nothing of what is captured is in the WAL.
  bool holds_captured() const { return wal_ != nullptr && header_known_ && position_.frame != 0; }
  /// Last commit that the file holds now, captured or not, published or not; nullopt if that cannot be told. `known`: a
  /// commit that it has held since. Thread-safe without the commit lock.
  std::optional<sqlite::WalPosition> end_of_chain(const sqlite::WalPosition& known) const EXCLUDES(files_mutex_);

 private:
  struct Entry {
    std::uint32_t pgno;
    std::uint32_t frame;
  };
  struct Batch {
    std::vector<Entry> entries;  ///< newest frame of each page, ascending by page
    std::uint32_t commit = 0;
    sqlite::WalPosition end;
    Bytes frames;                ///< content from frame `first_frame` on, if it fits in memory
    std::uint32_t first_frame = 0;
  };

  Liveness liveness() const;
  Result<void> capture_live(const IndexState& index, Reason reason);
  Result<void> capture_dead(Reason reason);
  Result<bool> chain_continues(const sqlite::WalHeader& header);
  Result<void> check_chain_after_death(const sqlite::WalHeader& header);
  Result<void> switch_generation(sqlite::Salts salts);
  Result<void> adopt_header(const sqlite::WalHeader& header);
  Result<void> read_frames(std::uint32_t upto, const sqlite::WalIndexHeader& index, Batch& batch);
  Result<bool> check_frame(const std::byte* frame, std::uint32_t number, sqlite::WalChecksum& running);
  static void keep_newest(std::vector<Entry>& entries);
  Result<void> commit(Batch& batch, Reason reason);
  Result<void> read_frame_page(std::uint32_t frame, ByteSpan out, bool* overwritten);
  Result<void> read_file_page(Pgno pgno, ByteSpan out);
  Result<void> read_logical(Pgno pgno, ByteSpan out);
  struct Content {
    std::vector<Entry> entries;  ///< newest frame of each page
    std::uint32_t commit = 0;    ///< of the last transaction in the WAL; 0: no frames
    sqlite::WalPosition end;
  };
  Result<Content> current_content();
  Error alarm(std::string message);
  std::size_t frame_size() const { return header_.page_size + sqlite::kWalFrameHeaderSize; }

  storage::Database& database_;
  const NodeId node_;
  const CaptureOptions& options_;
  CaptureCounters& counters_;
  PagesAhead& ahead_;

  std::shared_ptr<const File> database_file_;
  mutable Mutex files_mutex_;  ///< held, too, when wal_ and shm_ change; after the commit lock
  std::shared_ptr<File> wal_;
  std::shared_ptr<const ShmView> shm_;
  bool shm_present_ = false;
  std::atomic<bool> reads_mount_{false};

  sqlite::WalHeader header_;       ///< of the generation of position_
  sqlite::WalPosition position_;   ///< captured up to here
  bool header_known_ = false;      ///< header_ was read for position_.salts
  std::optional<sqlite::WalPosition> previous_;  ///< generation before: recovery can go back to it
  bool zero_salt_seen_ = false;    ///< in this generation: the chain of checksums has a hole that SQLite made
  bool was_live_ = false;
  bool all_backfilled_ = false;
  MonotonicTime behind_since_{};   ///< when the live index was first seen behind position_; zero: it is not
  WalOverlay overlay_;
  Batch batch_;
  Bytes page_buffer_;
};

}  // namespace sluice::fuse
