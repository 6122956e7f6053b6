// The part of WalCapture that reads pages: as of the captured position, and as SQLite would see them now.
#include <algorithm>
#include <array>

#include "base/log.h"
#include "fuse/capture/wal_capture.h"
#include "storage/ltx/checksum.h"
#include "storage/sqlite/database_header.h"

namespace sluice::fuse {

using sqlite::HeaderState;
using sqlite::WalPosition;

// A writer that restarts the WAL overwrites a frame's header before its page, so a header that still has our salts *after*
// the page was read proves the page was not overwritten.
Result<void> WalCapture::read_frame_page(std::uint32_t frame, ByteSpan out, bool* overwritten) {
  const std::uint64_t offset = sqlite::frame_offset(header_.page_size, frame);
  std::array<std::byte, sqlite::kWalFrameHeaderSize> header{};
  TRY_ASSIGN(const std::size_t n, wal_->read_at(offset + header.size(), out));
  TRY_ASSIGN(const std::size_t m, wal_->read_at(offset, header));
  const sqlite::FrameHeader parsed = sqlite::parse_frame_header(header);
  const bool ours = n == out.size() && m == header.size() && (parsed.salts == position_.salts || parsed.zero_salt);
  if (overwritten != nullptr) {
    *overwritten = !ours;
    return {};
  }
  if (!ours) return alarm(fmt::format("WAL frame {} changed while it was being captured", frame));
  return {};
}

Result<void> WalCapture::read_file_page(Pgno pgno, ByteSpan out) {
  if (database_file_ == nullptr) return make_error(Errc::not_found, database_.name() + ": no database file");
  TRY_ASSIGN(const std::size_t n, database_file_->read_at(std::uint64_t{pgno.value() - 1} * out.size(), out));
  std::fill(out.begin() + static_cast<std::ptrdiff_t>(n), out.end(), std::byte{0});
  return {};
}

// As SQLite's pager would find it with everything up to position_ in the WAL: frames that were backfilled are read from the
// file (it may have been truncated since), what the file does not have is zero.
Result<void> WalCapture::read_logical(Pgno pgno, ByteSpan out) {
  if (wal_ != nullptr && header_known_ && position_.frame != 0) {
    const bool live = liveness() == Liveness::live;
    TRY(overlay_.extend(*wal_, header_.page_size, position_.frame, live ? shm_.get() : nullptr));
    std::uint32_t backfilled = 0;
    if (live) {
      TRY_ASSIGN(const IndexState index, shm_->read());
      if (index.state != HeaderState::invalid && index.header.salts == position_.salts) {
        backfilled = index.checkpoint.backfilled;
      }
    }
    const auto frame = overlay_.frame_of(pgno);
    if (frame && *frame > backfilled) {
      bool overwritten = false;
      TRY(read_frame_page(*frame, out, &overwritten));
      if (!overwritten) return {};
    }
  }
  return read_file_page(pgno, out);
}

Result<void> WalCapture::read_page(Pgno pgno, ByteSpan out) NO_THREAD_SAFETY_ANALYSIS {
  const Checksum known = database_.checksums().get(pgno);
  if (wal_ != nullptr && header_known_ && position_.frame != 0) {
    TRY(overlay_.extend(*wal_, header_.page_size, position_.frame, liveness() == Liveness::live ? shm_.get() : nullptr));
    if (const auto frame = overlay_.frame_of(pgno)) {
      bool overwritten = false;
      TRY(read_frame_page(*frame, out, &overwritten));
      if (!overwritten && (known == Checksum{} || ltx::page_checksum(pgno, out) == known)) return {};
    }
  }
  TRY(read_file_page(pgno, out));
  if (known != Checksum{} && ltx::page_checksum(pgno, out) != known) {
    return make_error(Errc::corrupt, fmt::format("{}: page {} does not have the content of position {}", database_.name(),
                                                 pgno.value(), database_.pos()));
  }
  return {};
}

// The frames SQLite would read now: those the live index vouches for, else those its recovery would find.
Result<WalCapture::Content> WalCapture::current_content() {
  Content content;
  if (wal_ == nullptr) return content;
  auto header = sqlite::read_wal_header(*wal_);
  if (header.has_error()) {
    if (header.error().code == Errc::not_found || header.error().code == Errc::corrupt) return content;
    return header.error();
  }
  header_ = *header;
  content.end = WalPosition{header->salts, 0, header->checksum};
  if (liveness() == Liveness::live) {
    TRY_ASSIGN(const IndexState index, shm_->read());
    const std::uint32_t frames = index.header.mx_frame;
    if (index.state == HeaderState::invalid || (frames != 0 && index.header.salts != header->salts)) {
      return make_error(Errc::busy, database_.name() + ": its WAL is being recovered or restarted");
    }
    if (frames == 0) return content;
    std::vector<std::uint32_t> pages(frames);
    TRY(shm_->frame_pages(1, frames, pages.data()));
    for (std::uint32_t i = 0; i < frames; ++i) content.entries.push_back({pages[i], i + 1});
    content.commit = index.header.page_count;
    content.end = WalPosition{header->salts, frames, index.header.frame_checksum};
  } else {
    TRY_ASSIGN(const sqlite::WalScan scan,
               sqlite::scan_wal(*wal_, *header, content.end, [&](const sqlite::ScannedFrame& frame) -> Result<void> {
                 content.entries.push_back({frame.pgno, frame.frame});
                 return {};
               }));
    content.end = scan.end;
    content.commit = scan.commit;
  }
  keep_newest(content.entries);
  return content;
}

Result<void> WalCapture::reconcile(std::string_view why) {
  LOG_WARN("{}: {}; comparing the whole database with what was captured", database_.name(), why);
  counters_.reconciliations.fetch_add(1, std::memory_order_relaxed);
  TRY_ASSIGN(Content content, current_content());
  // From here on read_frame_page checks frames against the generation in the file.
  position_ = content.end;
  header_known_ = wal_ != nullptr && (content.end.salts != sqlite::Salts{} || content.end.frame != 0);
  previous_.reset();
  overlay_.clear();
  std::uint32_t page_size = header_.page_size;
  if (content.entries.empty()) {
    TRY_ASSIGN(const FileSummary file, summarise(database_file_.get()));
    if (!file.is_database && file.size != 0) {
      return make_error(Errc::unsupported, database_.name() + ": the file is no SQLite database any more");
    }
    page_size = file.page_size;
    content.commit = file.pages;
  }
  if (content.commit == 0 && database_.page_count() == 0) return {};
  std::vector<Pgno> pages;
  pages.reserve(content.commit);
  for (std::uint64_t p = 1; p <= content.commit; ++p) pages.emplace_back(static_cast<std::uint32_t>(p));
  page_buffer_.resize(page_size);
  const auto read = [&](Pgno pgno) -> Result<ByteView> {
    const auto entry = std::lower_bound(content.entries.begin(), content.entries.end(), pgno.value(),
                                        [](const Entry& e, std::uint32_t p) { return e.pgno < p; });
    if (entry != content.entries.end() && entry->pgno == pgno.value()) {
      TRY(read_frame_page(entry->frame, page_buffer_, nullptr));
    } else {
      TRY(read_file_page(pgno, page_buffer_));
    }
    return ByteView(page_buffer_);
  };
  const auto read_old = [&](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "old content is gone"); };
  const storage::CommitInput input{page_size, content.commit, pages, read, read_old, content.end};
  TRY_ASSIGN(const auto made, commit_or_rebase(database_, input, options_, node_));
  if (made) counters_.change_sets.fetch_add(1, std::memory_order_relaxed);
  return {};
}

void WalCapture::note_backfilled() {
  all_backfilled_ = false;
  if (shm_ == nullptr || wal_ == nullptr) return;
  const auto index = shm_->read();
  if (index.has_error() || index->state == HeaderState::invalid) return;
  const bool same = index->header.mx_frame == 0 ||
                    (index->header.salts == position_.salts && index->header.mx_frame == position_.frame);
  all_backfilled_ = same && index->checkpoint.backfilled >= index->header.mx_frame;
}

// SQLite removes a WAL only after backfilling all of it; `rm` does not. Then pages go back to what the database file has.
Result<void> WalCapture::after_wal_removal(FunctionRef<Result<std::uint32_t>()> page_count_of_file) {
  const bool captured = header_known_ && position_.frame != 0;
  const bool clean = all_backfilled_ || !captured;
  const std::uint32_t page_size = header_.page_size;
  std::vector<Pgno> pages;
  Result<void> listed;
  if (!clean && wal_ != nullptr) {
    listed = overlay_.extend(*wal_, page_size, position_.frame, nullptr);
    for (const auto& [pgno, frame] : overlay_.pages()) pages.emplace_back(pgno);
    std::sort(pages.begin(), pages.end());
  }
  set_wal(nullptr);
  forget();
  if (clean || database_file_ == nullptr) return {};
  if (listed.has_error()) return reconcile(listed.error().message);
  TRY_ASSIGN(const std::uint32_t commit, page_count_of_file());
  page_buffer_.resize(page_size);
  const auto read = [&](Pgno pgno) -> Result<ByteView> {
    TRY(read_file_page(pgno, page_buffer_));
    return ByteView(page_buffer_);
  };
  const auto read_old = [&](Pgno) -> Result<ByteView> { return make_error(Errc::not_found, "old content is gone"); };
  const storage::CommitInput input{page_size, commit, pages, read, read_old, {}};
  auto made = commit_or_rebase(database_, input, options_, node_);
  if (made.has_error()) return reconcile(made.error().message);
  if (!*made) return {};
  counters_.change_sets.fetch_add(1, std::memory_order_relaxed);
  LOG_WARN("{}: its WAL was removed before all of it was in the database file; the database went back to what the file "
           "has, and so do the replicas ({})",
           database_.name(), **made);
  return {};
}

}  // namespace sluice::fuse
