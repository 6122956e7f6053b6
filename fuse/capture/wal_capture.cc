#include "fuse/capture/wal_capture.h"

#include <algorithm>
#include <array>

#include "base/log.h"
#include "storage/ltx/checksum.h"

namespace sluice::fuse {

using sqlite::HeaderState;
using sqlite::WalPosition;

namespace {
constexpr std::size_t kReadPiece = 1u << 20;
constexpr std::size_t kKeptBuffer = 256u << 10;
// A live index that is behind what was captured is normal for as long as it takes a new process to truncate and rebuild a
// stale one; longer than this it is SQLite's view of a history that lost frames.
constexpr auto kBehindLimit = std::chrono::seconds(2);
}  // namespace

WalCapture::WalCapture(storage::Database& database, NodeId node, const CaptureOptions& options,
                       CaptureCounters& counters, PagesAhead& ahead)
    : database_(database), node_(node), options_(options), counters_(counters), ahead_(ahead) {}

void WalCapture::set_wal(std::shared_ptr<File> wal) {
  {
    MutexLock lock(files_mutex_);
    wal_ = std::move(wal);
  }
  overlay_.clear();
}

void WalCapture::set_shm(std::shared_ptr<const ShmView> shm) {
  MutexLock lock(files_mutex_);
  shm_ = std::move(shm);
  reads_mount_.store(shm_ != nullptr && shm_->through_mount(), std::memory_order_relaxed);
}

void WalCapture::set_shm_present(bool present) {
  shm_present_ = present;
  set_shm(nullptr);
}

void WalCapture::resume(const WalPosition& position) {
  position_ = position;
  header_known_ = false;
  was_live_ = true;  // so that the first look without a live index walks the chain from frame 1
  previous_.reset();
  overlay_.clear();
}

void WalCapture::forget() {
  position_ = {};
  header_known_ = false;
  previous_.reset();
  was_live_ = false;
  all_backfilled_ = false;
  overlay_.clear();
}

// With synchronous=FULL the sync comes before the commit is published, so what the index says is where to look from.
std::optional<WalPosition> WalCapture::end_of_chain(const WalPosition& known) const {
  std::shared_ptr<File> wal;
  std::shared_ptr<const ShmView> shm;
  {
    MutexLock lock(files_mutex_);
    wal = wal_;
    shm = shm_;
  }
  if (wal == nullptr) return std::nullopt;
  const auto header = sqlite::read_wal_header(*wal);
  if (header.has_error()) return std::nullopt;
  WalPosition start = header->salts == known.salts ? known : WalPosition{header->salts, 0, header->checksum};
  if (shm != nullptr && shm->liveness() == Liveness::live) {
    const auto index = shm->read();
    const bool published = index.has_value() && index->state == HeaderState::valid && index->header.mx_frame > start.frame;
    if (published && index->header.salts == header->salts)
      start = {header->salts, index->header.mx_frame, index->header.frame_checksum};
  }
  const auto scan =
      sqlite::scan_wal(*wal, *header, start, [](const sqlite::ScannedFrame&) -> Result<void> { return {}; });
  if (scan.has_error()) return std::nullopt;
  return scan->end;
}

Error WalCapture::alarm(std::string message) {
  counters_.anomalies.fetch_add(1, std::memory_order_relaxed);
  LOG_ERROR("{}: {}", database_.name(), message);
  return make_error(Errc::corrupt, database_.name() + ": " + std::move(message));
}

Liveness WalCapture::liveness() const {
  if (!shm_present_) return Liveness::dead;
  if (shm_ == nullptr) return Liveness::unknown;
  return shm_->liveness();
}

Result<void> WalCapture::capture(Reason reason) {
  if (wal_ == nullptr) return {};
  switch (liveness()) {
    case Liveness::live: {
      TRY_ASSIGN(const IndexState index, shm_->read());
      if (index.state == HeaderState::torn) counters_.torn_headers.fetch_add(1, std::memory_order_relaxed);
      if (index.state != HeaderState::invalid) return capture_live(index, reason);
      // Recovery is on its way and will publish what it finds. Whoever writes the database file meanwhile does not use this
      // index: then the chain decides.
      if (reason == Reason::tail) return {};
      return capture_dead(reason);
    }
    case Liveness::dead: return capture_dead(reason);
    case Liveness::unknown:
      if (reason == Reason::tail) return {};
      return make_error(Errc::busy, database_.name() + ": cannot tell whether its WAL is in use");
  }
  return {};
}

Result<void> WalCapture::capture_live(const IndexState& index, Reason reason) {
  const sqlite::WalIndexHeader& live = index.header;
  if (reason == Reason::backfill && index.state == HeaderState::valid &&
      index.checkpoint.backfill_attempted > live.mx_frame) {
    // SQLite's WAL-reset bug (before 3.51.3): a checkpointer whose idea of mxFrame is from before the WAL was restarted.
    // Its backfill would count frames as copied that were never written. EIO makes it give up; nothing is lost.
    counters_.guarded_writes.fetch_add(1, std::memory_order_relaxed);
    LOG_WARN("{}: refused a backfill by a checkpoint that is older than the WAL (SQLite's WAL-reset bug)", database_.name());
    return make_error(Errc::io, database_.name() + ": stale checkpoint");
  }
  was_live_ = true;
  all_backfilled_ = false;
  if (live.mx_frame == 0) return {};
  if (!header_known_ || live.salts != position_.salts) TRY(switch_generation(live.salts));
  if (live.mx_frame < position_.frame) {
    const MonotonicTime now = system_clock().now();
    if (behind_since_ == MonotonicTime{}) behind_since_ = now;
    if (now - behind_since_ < kBehindLimit) return {};
    behind_since_ = {};
    return reconcile("its live WAL ends before what was captured");
  }
  behind_since_ = {};
  if (live.mx_frame == position_.frame) {
    if (live.frame_checksum == position_.checksum || index.state != HeaderState::valid) return {};
    return reconcile("the last captured WAL frame was replaced by another");
  }
  Batch& batch = batch_;
  Result<void> read = read_frames(live.mx_frame, live, batch);
  if (read.has_error()) {
    if (read.error().code != Errc::corrupt) return read;
    return reconcile(read.error().message);
  }
  return commit(batch, reason);
}

// I1 bounds this: a generation can only be followed by another once all of it was captured and backfilled, so there is never
// anything left to read in the old one.
Result<void> WalCapture::switch_generation(sqlite::Salts salts) {
  TRY_ASSIGN(const sqlite::WalHeader header, sqlite::read_wal_header(*wal_));
  if (header.salts != salts) {
    return make_error(Errc::busy, database_.name() + ": the WAL's header and its index are of different generations");
  }
  return adopt_header(header);
}

Result<void> WalCapture::adopt_header(const sqlite::WalHeader& header) {
  overlay_.clear();
  zero_salt_seen_ = false;
  if (header.salts == position_.salts && position_.frame != 0) {  // after resume()
    header_ = header;
    header_known_ = true;
    return {};
  }
  if (previous_ && previous_->salts == header.salts) {
    // A process died between publishing a restart of the WAL and writing it; recovery went back.
    counters_.generations_back.fetch_add(1, std::memory_order_relaxed);
    std::swap(*previous_, position_);
  } else {
    counters_.generations.fetch_add(1, std::memory_order_relaxed);
    if (position_.frame != 0) previous_ = position_;
    position_ = WalPosition{header.salts, 0, header.checksum};
  }
  header_ = header;
  header_known_ = true;
  return {};
}

// Nobody is connected through a wal-index (or only a process with a private one: locking_mode=EXCLUSIVE): what SQLite's
// recovery would find is what is committed.
Result<void> WalCapture::capture_dead(Reason reason) {
  auto header = sqlite::read_wal_header(*wal_);
  if (header.has_error()) {
    if (header.error().code != Errc::not_found && header.error().code != Errc::corrupt) return header.error();
    // Empty or not a WAL: SQLite sees no frames in it. TRUNCATE checkpoints leave it so, after a full backfill.
    was_live_ = false;
    return {};
  }
  if (!header_known_ || header->salts != position_.salts) {
    if (!(position_.frame != 0 && header->salts == position_.salts)) was_live_ = false;
    TRY(adopt_header(*header));
  }
  if (was_live_ && !all_backfilled_) {
    was_live_ = false;
    TRY(check_chain_after_death(*header));
  } else {
    TRY_ASSIGN(const bool continues, chain_continues(*header));
    if (!continues) return {};
  }
  Batch& batch = batch_;
  batch.entries.clear();
  batch.frames.clear();
  batch.first_frame = position_.frame + 1;
  TRY_ASSIGN(const sqlite::WalScan scan,
             sqlite::scan_wal(*wal_, header_, position_, [&](const sqlite::ScannedFrame& frame) -> Result<void> {
               batch.entries.push_back({frame.pgno, frame.frame});
               return {};
             }));
  if (scan.end.frame == position_.frame) return {};
  // A process may have connected during the scan and be writing frames it has not published yet.
  if (liveness() != Liveness::dead) {
    if (reason == Reason::tail) return {};
    TRY_ASSIGN(const IndexState index, shm_->read());
    if (index.state != HeaderState::invalid) return capture_live(index, reason);
  }
  batch.commit = scan.commit;
  batch.end = scan.end;
  keep_newest(batch.entries);
  counters_.chain_captures.fetch_add(1, std::memory_order_relaxed);
  return commit(batch, reason);
}

Result<bool> WalCapture::pending() {
  if (wal_ == nullptr) return false;
  switch (liveness()) {
    case Liveness::unknown: return true;
    case Liveness::live: {
      TRY_ASSIGN(const IndexState index, shm_->read());
      if (index.state == HeaderState::invalid || index.header.mx_frame == 0) return false;
      return index.header.salts != position_.salts || index.header.mx_frame != position_.frame || !header_known_;
    }
    case Liveness::dead: break;
  }
  if (was_live_) return true;
  const auto header = sqlite::read_wal_header(*wal_);
  if (header.has_error()) return false;
  if (!header_known_ || header->salts != position_.salts) return true;
  std::array<std::byte, sqlite::kWalFrameHeaderSize> bytes{};
  TRY_ASSIGN(const std::size_t n, wal_->read_at(sqlite::frame_offset(header_.page_size, position_.frame + 1), bytes));
  return n == bytes.size() && sqlite::parse_frame_header(bytes).salts == position_.salts;
}

// Cheap test before a scan: is there a frame of this generation after the captured one, and is the captured one still there?
Result<bool> WalCapture::chain_continues(const sqlite::WalHeader&) {
  std::array<std::byte, sqlite::kWalFrameHeaderSize> bytes{};
  if (position_.frame != 0) {
    TRY_ASSIGN(const std::size_t n, wal_->read_at(sqlite::frame_offset(header_.page_size, position_.frame), bytes));
    const sqlite::FrameHeader last = sqlite::parse_frame_header(bytes);
    if (n != bytes.size() || last.salts != position_.salts || last.checksum != position_.checksum) {
      TRY(reconcile("the WAL no longer holds the last captured frame"));
      return false;
    }
  }
  TRY_ASSIGN(const std::size_t n, wal_->read_at(sqlite::frame_offset(header_.page_size, position_.frame + 1), bytes));
  return n == bytes.size() && sqlite::parse_frame_header(bytes).salts == position_.salts;
}

// live -> not live: what recovery will see may end before what was published and captured (frames without checksums, a
// lost write-back). TXIDs only go forward: the difference becomes a change set.
Result<void> WalCapture::check_chain_after_death(const sqlite::WalHeader& header) {
  if (position_.frame == 0) return {};
  bool reached = false;
  const WalPosition start{header.salts, 0, header.checksum};
  sqlite::WalChecksum at_position;
  TRY_ASSIGN(const sqlite::WalScan scan,
             sqlite::scan_wal(*wal_, header, start, [&](const sqlite::ScannedFrame& frame) -> Result<void> {
               if (frame.frame == position_.frame) reached = true;
               return {};
             }));
  if (reached) {
    std::array<std::byte, sqlite::kWalFrameHeaderSize> bytes{};
    TRY(wal_->read_at(sqlite::frame_offset(header.page_size, position_.frame), bytes));
    at_position = sqlite::parse_frame_header(bytes).checksum;
    if (at_position == position_.checksum) return {};
  }
  return reconcile(fmt::format("its WAL is valid up to frame {} only, frame {} had been captured", scan.end.frame,
                               position_.frame));
}

Result<bool> WalCapture::check_frame(const std::byte* frame, std::uint32_t number, sqlite::WalChecksum& running) {
  const ByteView header_bytes(frame, sqlite::kWalFrameHeaderSize);
  const sqlite::FrameHeader header = sqlite::parse_frame_header(header_bytes);
  if (header.zero_salt) {
    // Published by a live index, so committed, although SQLite never filled in its salt and checksum.
    counters_.zero_salt_frames.fetch_add(1, std::memory_order_relaxed);
    zero_salt_seen_ = true;
    running = {};
    return header.commit != 0;
  }
  if (header.salts != position_.salts) {
    return alarm(fmt::format("WAL frame {} is of another generation, although the index vouches for it", number));
  }
  const ByteView page(frame + sqlite::kWalFrameHeaderSize, header_.page_size);
  running = sqlite::frame_checksum(header_.big_endian_checksums, header_bytes, page, running);
  if (running != header.checksum && zero_salt_seen_) {
    // The frames without checksum break the chain; SQLite itself went on from nothing.
    running = sqlite::frame_checksum(header_.big_endian_checksums, header_bytes, page, {});
  }
  if (running != header.checksum) {
    return alarm(fmt::format("WAL frame {} has a wrong checksum, although the index vouches for it", number));
  }
  return header.commit != 0;
}

// Reads and checks frames after position_ up to `upto`; keeps their content if it is not too much.
Result<void> WalCapture::read_frames(std::uint32_t upto, const sqlite::WalIndexHeader& index, Batch& batch) {
  const std::size_t size = frame_size();
  const std::uint64_t total = std::uint64_t{upto - position_.frame} * size;
  const bool keep = total <= options_.stream_bytes;
  batch.entries.clear();
  batch.first_frame = position_.frame + 1;
  batch.frames.resize(keep ? total : std::max(size, kReadPiece / size * size));
  sqlite::WalChecksum running = position_.checksum;
  bool ends_transaction = false;
  for (std::uint32_t frame = position_.frame + 1; frame <= upto;) {
    const std::uint32_t count =
        std::min<std::uint32_t>(upto - frame + 1, static_cast<std::uint32_t>(batch.frames.size() / size));
    const ByteSpan piece(batch.frames.data(), count * size);
    TRY_ASSIGN(const std::size_t n, wal_->read_at(sqlite::frame_offset(header_.page_size, frame), piece));
    if (n != piece.size()) {
      return alarm(fmt::format("the WAL ends inside frame {}, although the index vouches for frame {}", frame + n / size, upto));
    }
    for (std::uint32_t i = 0; i < count; ++i) {
      const std::byte* bytes = piece.data() + i * size;
      TRY_ASSIGN(ends_transaction, check_frame(bytes, frame + i, running));
      batch.entries.push_back({load_be<std::uint32_t>(bytes), frame + i});
      if (ends_transaction) batch.commit = load_be<std::uint32_t>(bytes + 4);
    }
    frame += count;
  }
  if (!ends_transaction) return alarm(fmt::format("frame {} is published but does not end a transaction", upto));
  if (running != index.frame_checksum) {
    if (!zero_salt_seen_) return alarm(fmt::format("frame {} is not the one the index published", upto));
    running = index.frame_checksum;
  }
  if (!keep) batch.frames.clear();
  batch.end = WalPosition{position_.salts, upto, running};
  keep_newest(batch.entries);
  return {};
}

void WalCapture::keep_newest(std::vector<Entry>& entries) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) {
    return a.pgno != b.pgno ? a.pgno < b.pgno : a.frame > b.frame;
  });
  const auto end = std::unique(entries.begin(), entries.end(),
                               [](const Entry& a, const Entry& b) { return a.pgno == b.pgno; });
  entries.erase(end, entries.end());
}

Result<void> WalCapture::commit(Batch& batch, Reason reason) {
  const std::uint32_t page_size = header_.page_size;
  page_buffer_.resize(page_size);
  Bytes old_page(page_size);
  std::vector<Pgno> pages;
  pages.reserve(batch.entries.size());
  for (const Entry& entry : batch.entries) pages.emplace_back(entry.pgno);
  std::size_t cursor = 0;
  const auto read = [&](Pgno pgno) -> Result<ByteView> {
    if (cursor > 0 && batch.entries[cursor - 1].pgno >= pgno.value()) cursor = 0;
    while (cursor < batch.entries.size() && batch.entries[cursor].pgno < pgno.value()) ++cursor;
    if (cursor < batch.entries.size() && batch.entries[cursor].pgno == pgno.value()) {
      const std::uint32_t frame = batch.entries[cursor].frame;
      if (!batch.frames.empty()) {
        return ByteView(batch.frames.data() + (frame - batch.first_frame) * frame_size() + sqlite::kWalFrameHeaderSize,
                        page_size);
      }
      TRY(read_frame_page(frame, page_buffer_, nullptr));
      return ByteView(page_buffer_);
    }
    // A page that the database grew over without writing it.
    TRY(read_logical(pgno, page_buffer_));
    return ByteView(page_buffer_);
  };
  const auto read_old = [&](Pgno pgno) -> Result<ByteView> {
    TRY(read_logical(pgno, old_page));
    return ByteView(old_page);
  };
  const storage::CommitInput input{page_size, batch.commit, pages, read, read_old, batch.end, &ahead_};
  const auto committed = commit_or_rebase(database_, input, options_, node_);
  ahead_.clear();
  TRY_ASSIGN(const auto made, committed);
  counters_.frames.fetch_add(batch.end.frame - position_.frame, std::memory_order_relaxed);
  position_ = batch.end;
  if (batch.frames.capacity() > kKeptBuffer) {  // there can be many databases
    batch.frames = {};
    batch.entries = {};
  }
  if (!made) return {};
  counters_.change_sets.fetch_add(1, std::memory_order_relaxed);
  if (reason != Reason::tail) counters_.gate_captures.fetch_add(1, std::memory_order_relaxed);
  return {};
}

}  // namespace sluice::fuse
