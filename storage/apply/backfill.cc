#include "storage/apply/backfill.h"

#include <algorithm>

#include "storage/apply/io.h"

namespace sluice::storage::apply {

using sqlite::ShmLock;

namespace {

constexpr std::size_t kRunSize = std::size_t{1} << 20;
/// Ranges of the page cache this close together are dropped in one request; clean pages between them are read again.
constexpr std::uint64_t kMergeGap = std::uint64_t{64} << 10;

ShmLock read_lock(std::uint32_t mark) {
  return static_cast<ShmLock>(static_cast<std::uint32_t>(ShmLock::read0) + mark);
}

class Run {
 public:
  Run(LiveFiles& files, LiveIndex& index, const WalWriter::View& view, BackfillBuffers& buffers)
      : files_(files), index_(index), view_(view), buffers_(buffers) {}

  /// How far every reader lets us go; moves marks that nobody uses out of the way.
  Result<std::uint32_t> safe_frame() {
    std::uint32_t safe = view_.header.mx_frame;
    TRY_ASSIGN(const sqlite::CheckpointInfo info, index_.checkpoint_info());
    for (std::uint32_t mark = 1; mark < 5; ++mark) {
      const std::uint32_t frame = info.read_marks[mark];
      if (safe <= frame) continue;
      if (files_.try_lock(read_lock(mark), 1)) {
        const IndexStore moved{static_cast<IndexWord>(mark), mark == 1 ? safe : sqlite::kReadMarkNotUsed};
        const Result<void> stored = index_.store({&moved, 1});
        files_.unlock(read_lock(mark), 1);
        TRY(stored);
      } else {
        safe = frame;
      }
    }
    return safe;
  }

  Result<void> copy(std::uint32_t from, std::uint32_t safe) {
    TRY(collect(from, safe));
    TRY_ASSIGN(const std::uint64_t size, file_size(files_.database(), files_.name()));
    const std::uint64_t page_size = view_.page_size;
    if (!buffers_.pages.empty() && size < buffers_.pages.back().first * page_size) {
      TRY(files_.resize_database(buffers_.pages.back().first * page_size));
    }
    TRY(write_pages());
    // Only if nothing was published since: a later commit may be larger again.
    sqlite::WalIndexHeader now;
    TRY_ASSIGN(const sqlite::HeaderState state, index_.read_header(now));
    const bool newest = safe == view_.header.mx_frame && state == sqlite::HeaderState::valid &&
                        now.change == view_.header.change && now.mx_frame == safe;
    if (newest && size > view_.header.page_count * page_size) {
      TRY(files_.resize_database(view_.header.page_count * page_size));
    }
    drop_cached();
    return {};
  }

 private:
  /// The last frame of each page in (from, safe], ordered by page. Pages beyond the end of the database are left out.
  Result<void> collect(std::uint32_t from, std::uint32_t safe) {
    auto& pages = buffers_.pages;
    pages.clear();
    pages.reserve(safe - from);
    for (std::uint32_t frame = from + 1; frame <= safe; ++frame) {
      const std::uint32_t pgno = index_.page_of(frame);
      if (pgno == 0) {
        return make_error(Errc::corrupt, files_.shm_name() + " has no page for frame " + std::to_string(frame));
      }
      if (pgno <= view_.header.page_count) pages.emplace_back(pgno, frame);
    }
    std::sort(pages.begin(), pages.end());
    std::size_t kept = 0;
    for (std::size_t i = 0; i < pages.size(); ++i) {
      if (i + 1 < pages.size() && pages[i + 1].first == pages[i].first) continue;
      pages[kept++] = pages[i];
    }
    pages.resize(kept);
    return {};
  }

  Result<void> write_pages() {
    const std::size_t page_size = view_.page_size;
    const auto& pages = buffers_.pages;
    for (std::size_t i = 0; i < pages.size();) {
      const std::size_t most = std::max<std::size_t>(kRunSize / page_size, 1);
      std::size_t n = 1;
      while (n < most && i + n < pages.size() && pages[i + n].first == pages[i].first + n) ++n;
      if (buffers_.run.size() < n * page_size) buffers_.run.resize(n * page_size);
      for (std::size_t k = 0; k < n; ++k) {
        const std::uint64_t at = sqlite::frame_offset(view_.page_size, pages[i + k].second) + sqlite::kWalFrameHeaderSize;
        TRY(read_full(files_.wal(), at, ByteSpan(buffers_.run).subspan(k * page_size, page_size), files_.wal_name()));
      }
      const std::uint64_t offset = std::uint64_t{pages[i].first - 1} * page_size;
      TRY(write_full(files_.database(), offset, ByteView(buffers_.run).first(n * page_size), files_.name()));
      i += n;
    }
    return {};
  }

  void drop_cached() {
    const std::uint64_t page_size = view_.page_size;
    std::uint64_t begin = 0;
    std::uint64_t end = 0;
    for (const auto& [pgno, frame] : buffers_.pages) {
      const std::uint64_t offset = (pgno - 1) * page_size;
      if (end != 0 && offset > end + kMergeGap) {
        files_.access().invalidate(files_.name(), begin, end - begin);
        end = 0;
      }
      if (end == 0) begin = offset;
      end = offset + page_size;
    }
    if (end != 0) files_.access().invalidate(files_.name(), begin, end - begin);
  }

  LiveFiles& files_;
  LiveIndex& index_;
  const WalWriter::View& view_;
  BackfillBuffers& buffers_;
};

Result<void> store(LiveIndex& index, IndexWord word, std::uint32_t value) {
  const IndexStore one{word, value};
  return index.store({&one, 1});
}

/// CKPT is held.
Result<void> run_locked(LiveFiles& files, LiveIndex& index, const WalWriter::View& view, BackfillBuffers& buffers,
                        BackfillResult& result) {
  Run run(files, index, view, buffers);
  TRY_ASSIGN(const std::uint32_t safe, run.safe_frame());
  if (result.backfilled >= safe || !files.try_lock(ShmLock::read0, 1)) return {};
  Result<void> status = store(index, IndexWord::backfill_attempted, safe);
  if (!status.has_error()) status = run.copy(result.backfilled, safe);
  // Readers that come from here on take the pages from the file: it, and the page cache, are complete.
  if (!status.has_error()) status = store(index, IndexWord::backfilled, safe);
  files.unlock(ShmLock::read0, 1);
  TRY(status);
  result.backfilled = safe;
  result.complete = safe == view.header.mx_frame;
  return {};
}

}  // namespace

Result<BackfillResult> backfill(LiveFiles& files, LiveIndex& index, const WalWriter& writer,
                                BackfillBuffers& buffers, const std::function<Result<void>()>& sync_log) {
  // The view before the sync: what it shows is durable afterwards.
  const WalWriter::View view = writer.view();
  BackfillResult result;
  result.mx_frame = view.header.mx_frame;
  TRY_ASSIGN(const sqlite::CheckpointInfo before, index.checkpoint_info());
  result.backfilled = before.backfilled;
  result.complete = result.backfilled >= result.mx_frame;
  if (result.complete) return result;
  TRY(sync_log());
  if (!writer.holds_write_locks() && !files.try_lock(ShmLock::checkpoint, 1)) return result;
  const Result<void> status = run_locked(files, index, view, buffers, result);
  if (!writer.holds_write_locks()) files.unlock(ShmLock::checkpoint, 1);
  if (buffers.run.size() > (std::size_t{256} << 10)) Bytes().swap(buffers.run);
  if (buffers.pages.capacity() > 65536) std::vector<std::pair<std::uint32_t, std::uint32_t>>().swap(buffers.pages);
  TRY(status);
  return result;
}

}  // namespace sluice::storage::apply
