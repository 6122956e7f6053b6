#include "storage/apply/wal_writer.h"

#include <algorithm>
#include <array>

#include "base/check.h"
#include "storage/apply/fresh_wal.h"
#include "storage/apply/io.h"

namespace sluice::storage::apply {

using sqlite::ShmLock;
using sqlite::WalIndexHeader;

namespace {

constexpr std::size_t kPieceSize = std::size_t{1} << 20;      ///< frames are written in pieces of about this
constexpr std::size_t kKeptBuffer = std::size_t{256} << 10;   ///< more is given back after a large change set
constexpr std::size_t kMaxMarks = 65536;

/// The words of a WAL without frames; read mark 0 is always 0.
constexpr std::array<IndexStore, 7> kNoFrames{{{IndexWord::backfilled, 0},
                                               {IndexWord::backfill_attempted, 0},
                                               {IndexWord::read_mark0, 0},
                                               {IndexWord::read_mark1, 0},
                                               {IndexWord::read_mark2, sqlite::kReadMarkNotUsed},
                                               {IndexWord::read_mark3, sqlite::kReadMarkNotUsed},
                                               {IndexWord::read_mark4, sqlite::kReadMarkNotUsed}}};

/// Equal but for the change counter, which SQLite's recovery starts over.
bool same_content(const WalIndexHeader& a, const WalIndexHeader& b) {
  return a.mx_frame == b.mx_frame && a.salts == b.salts && (a.mx_frame == 0 || a.frame_checksum == b.frame_checksum);
}

}  // namespace

WalWriter::WalWriter(LiveFiles& files, LiveIndex& index, const WalWriterOptions& options)
    : files_(files), index_(index), options_(options) {}

WalWriter::~WalWriter() { cancel(); }

Result<std::unique_ptr<WalWriter>> WalWriter::attach(LiveFiles& files, LiveIndex& index, std::uint32_t page_size,
                                                     std::uint32_t page_count, const Pos& pos,
                                                     const WalWriterOptions& options) {
  TRY(index.reserve(1));
  std::unique_ptr<WalWriter> writer(new WalWriter(files, index, options));
  TRY(files.lock(ShmLock::write, 1, options.lock_wait_ms));
  writer->locked_ = true;
  if (options.hold_write_locks) TRY(files.lock(ShmLock::checkpoint, 1, options.lock_wait_ms));
  TRY(writer->take_up(page_size, page_count, pos));
  writer->release();
  return writer;
}

Result<void> WalWriter::take_up(std::uint32_t page_size, std::uint32_t page_count, const Pos& pos) {
  WalIndexHeader found;
  TRY_ASSIGN(const sqlite::HeaderState state, index_.read_header(found));
  page_size_ = page_size;
  if (state == sqlite::HeaderState::valid && found.mx_frame != 0) {
    adopted_frames_ = true;
    return adopt_header(found);
  }
  // No frames: what readers see is the database file. Whoever initialised the index before us (a client that found only
  // our header in the WAL) keeps its read marks.
  mine_ = state == sqlite::HeaderState::valid ? found : WalIndexHeader{};
  mine_.mx_frame = 0;
  mine_.page_count = page_count;
  mine_.page_size_code = sqlite::encode_page_size(page_size);
  mine_.big_endian_checksums = 0;
  mine_.salts = random_salts();
  ++mine_.change;
  TRY(index_.publish(1, {}, mine_, {}));
  if (state != sqlite::HeaderState::valid) TRY(init_checkpoint_info());
  MutexLock lock(mutex_);
  view_ = {mine_, page_size};
  base_ = AppliedMark{0, pos, page_count};
  return {};
}

Result<void> WalWriter::init_checkpoint_info() {
  constexpr std::array<IndexStore, 3> kNothing{
      {{IndexWord::backfilled, 0}, {IndexWord::backfill_attempted, 0}, {IndexWord::read_mark0, 0}}};
  TRY(index_.store(kNothing));
  for (std::uint32_t mark = 1; mark < 5; ++mark) {
    const auto byte = static_cast<ShmLock>(static_cast<std::uint32_t>(ShmLock::read0) + mark);
    if (!files_.try_lock(byte, 1)) continue;
    const IndexStore unused{static_cast<IndexWord>(mark), sqlite::kReadMarkNotUsed};
    const Result<void> stored = index_.store({&unused, 1});
    files_.unlock(byte, 1);
    TRY(stored);
  }
  return {};
}

Result<void> WalWriter::adopt_header(const WalIndexHeader& found) {
  std::array<std::byte, sqlite::kWalHeaderSize> bytes;
  TRY(read_full(files_.wal(), 0, bytes, files_.wal_name()));
  TRY_ASSIGN(const sqlite::WalHeader wal, sqlite::parse_wal_header(bytes));
  if (wal.page_size != found.page_size() || wal.salts != found.salts) {
    return make_error(Errc::corrupt, files_.wal_name() + " is not the WAL that " + files_.shm_name() + " describes");
  }
  TRY(index_.reload());
  mine_ = found;
  wal_ = wal;
  sequence_ = wal.checkpoint_sequence;
  page_size_ = wal.page_size;
  MutexLock lock(mutex_);
  view_ = {mine_, page_size_};
  base_.reset();
  marks_.clear();
  return {};
}

Result<void> WalWriter::begin(bool adopt) {
  CHECK(!started_ && pages_.empty());
  if (!locked_) {
    if (!options_.hold_write_locks) TRY(files_.lock(ShmLock::write, 1, options_.lock_wait_ms));
    locked_ = true;
  }
  WalIndexHeader now;
  const auto read = index_.read_header(now);
  const bool valid = read.has_value() && *read == sqlite::HeaderState::valid;
  if (valid && same_content(now, mine_)) {
    mine_.change = now.change;
    return {};
  }
  Result<void> adopted = read.has_error() ? Result<void>(read.error()) : make_error(Errc::internal, files_.wal_name() + " was written by somebody else");
  if (adopt && valid) adopted = adopt_header(now);
  if (adopted.has_error()) cancel();
  return adopted;
}

Result<bool> WalWriter::restart_due() const {
  if (mine_.mx_frame == 0) return false;
  TRY_ASSIGN(const sqlite::CheckpointInfo info, index_.checkpoint_info());
  return info.backfilled == mine_.mx_frame;
}

Result<void> WalWriter::try_restart() {
  CHECK(locked_ && !started_);
  TRY_ASSIGN(const bool due, restart_due());
  if (!due || !files_.try_lock(ShmLock::read1, 4)) return {};
  WalIndexHeader next = mine_;
  next.mx_frame = 0;
  next.salts = next_salts(mine_.salts);
  next.big_endian_checksums = 0;
  ++next.change;
  // The header first: a reader that still believes in the old frames then finds it changed (walRestartHdr).
  const Result<void> restarted = index_.publish(1, {}, next, kNoFrames);
  files_.unlock(ShmLock::read1, 4);
  TRY(restarted);
  ++sequence_;
  mine_ = next;
  MutexLock lock(mutex_);
  view_.header = mine_;
  if (!marks_.empty()) base_ = marks_.back();
  if (base_) base_->frame = 0;
  marks_.clear();
  return {};
}

Result<void> WalWriter::start_frames() {
  CHECK(locked_);
  started_ = true;
  used_ = 0;
  frame_open_ = false;
  if (mine_.mx_frame == 0) {
    const FreshWalHeader fresh = make_wal_header(page_size_, sequence_, mine_.salts);
    wal_ = fresh.header;
    checksum_ = wal_.checksum;
    write_at_ = 0;
    if (buffer_.size() < fresh.bytes.size()) buffer_.resize(4096);
    std::ranges::copy(fresh.bytes, buffer_.begin());
    used_ = fresh.bytes.size();
  } else {
    checksum_ = mine_.frame_checksum;
    write_at_ = sqlite::frame_offset(page_size_, mine_.mx_frame + 1);
  }
  return {};
}

Result<void> WalWriter::add(Pgno pgno, ByteView page) {
  CHECK(page.size() == page_size_);
  if (!started_) TRY(start_frames());
  finish_frame(0);
  if (used_ >= kPieceSize) TRY(flush());
  const std::size_t end = used_ + sqlite::kWalFrameHeaderSize + page_size_;
  if (buffer_.size() < end) buffer_.resize(std::max(end, std::min(2 * buffer_.size(), kPieceSize + 2 * page_size_)));
  std::memcpy(buffer_.data() + used_ + sqlite::kWalFrameHeaderSize, page.data(), page.size());
  open_frame_ = used_;
  frame_open_ = true;
  used_ = end;
  pages_.push_back(pgno.value());
  return {};
}

void WalWriter::finish_frame(std::uint32_t commit) {
  if (!frame_open_) return;
  const ByteSpan head = ByteSpan(buffer_).subspan(open_frame_, sqlite::kWalFrameHeaderSize);
  const ByteView page = ByteView(buffer_).subspan(open_frame_ + sqlite::kWalFrameHeaderSize, page_size_);
  checksum_ = sqlite::write_frame_header(pages_.back(), commit, wal_, page, checksum_, head);
  frame_open_ = false;
}

Result<void> WalWriter::flush() {
  TRY(files_.write_wal(write_at_, ByteView(buffer_).first(used_)));
  write_at_ += used_;
  used_ = 0;
  return {};
}

Result<void> WalWriter::reserve() { return index_.reserve(mine_.mx_frame + frames_added()); }

Result<void> WalWriter::seal(std::uint32_t commit) {
  if (pages_.empty()) return {};
  finish_frame(commit);
  return flush();
}

Result<void> WalWriter::publish(const Pos& pos, std::uint32_t commit) {
  CHECK(locked_);
  if (!pages_.empty()) {
    WalIndexHeader next = mine_;
    next.mx_frame += frames_added();
    next.page_count = commit;
    next.page_size_code = sqlite::encode_page_size(page_size_);
    next.big_endian_checksums = wal_.big_endian_checksums ? 1 : 0;
    next.salts = wal_.salts;
    next.frame_checksum = checksum_;
    ++next.change;
    TRY(index_.publish(mine_.mx_frame + 1, pages_, next, {}));
    mine_ = next;
  }
  {
    MutexLock lock(mutex_);
    view_ = {mine_, page_size_};
    add_mark({mine_.mx_frame, pos, commit});
  }
  cancel();
  return {};
}

void WalWriter::add_mark(const AppliedMark& mark) {
  if (mark.frame == 0) {
    base_ = mark;
    return;
  }
  if (!marks_.empty() && marks_.back().frame == mark.frame) marks_.pop_back();
  marks_.push_back(mark);
  if (marks_.size() <= kMaxMarks) return;
  // A reader pins the WAL: keep every second mark. A backfill is then recorded as a little older than it is.
  for (std::size_t i = 1; 2 * i < marks_.size(); ++i) marks_[i] = marks_[2 * i];
  const AppliedMark newest = mark;
  marks_.resize((marks_.size() + 1) / 2);
  if (marks_.back().frame != newest.frame) marks_.push_back(newest);
}

void WalWriter::cancel() {
  started_ = false;
  frame_open_ = false;
  used_ = 0;
  pages_.clear();
  if (buffer_.size() > kKeptBuffer) Bytes().swap(buffer_);
  if (pages_.capacity() > kKeptBuffer) std::vector<std::uint32_t>().swap(pages_);
  release();
}

void WalWriter::release() {
  if (!locked_) return;
  locked_ = false;
  if (!options_.hold_write_locks) files_.unlock(ShmLock::write, 1);
}

WalWriter::View WalWriter::view() const {
  MutexLock lock(mutex_);
  return view_;
}

std::optional<AppliedMark> WalWriter::reached(std::uint32_t frame) const {
  MutexLock lock(mutex_);
  const auto after = std::upper_bound(marks_.begin(), marks_.end(), frame,
                                      [](std::uint32_t f, const AppliedMark& mark) { return f < mark.frame; });
  return after == marks_.begin() ? base_ : std::optional<AppliedMark>(*std::prev(after));
}

Result<void> WalWriter::start_over(std::uint32_t page_size, std::uint32_t page_count, const Pos& pos, sqlite::Salts salts,
                                   std::uint32_t checkpoint_sequence) {
  page_size_ = page_size;
  sequence_ = checkpoint_sequence;
  mine_.mx_frame = 0;
  mine_.page_count = page_count;
  mine_.page_size_code = sqlite::encode_page_size(page_size);
  mine_.big_endian_checksums = 0;
  mine_.salts = salts;
  ++mine_.change;
  // Nobody reads: the order of a restart does not matter, the header still comes last.
  TRY(index_.store(kNoFrames));
  TRY(index_.publish(1, {}, mine_, {}));
  MutexLock lock(mutex_);
  view_ = {mine_, page_size};
  base_ = AppliedMark{0, pos, page_count};
  marks_.clear();
  return {};
}

}  // namespace sluice::storage::apply
