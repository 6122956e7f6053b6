#include "storage/snapshot.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>
#include <vector>

#include "storage/ltx/checksum.h"

namespace sluice::storage {
namespace {

using std::chrono::milliseconds;

constexpr std::size_t kBatchPages = 64;
constexpr std::size_t kBatchBytes = 256 * 1024;
/// Checksums compared in one hold of the commit lock: well below a millisecond.
constexpr std::uint32_t kScanSlice = 32 * 1024;
/// So few pages may be left for the last round, which keeps them in memory.
constexpr std::uint64_t kFinalPages = 256;
/// A writer that changes more than that all the time: after so many rounds the last one goes through a file.
constexpr int kMaxRounds = 10;
constexpr milliseconds kFirstRetry{2};
constexpr milliseconds kLongestRetry{100};

/// A file nobody else sees.
Result<std::unique_ptr<File>> unlinked_file(const std::string& dir) {
  static std::atomic<std::uint64_t> counter{0};
  FileSystem& fs = real_file_system();
  const std::string path = fmt::format("{}/snapshot-{}-{}.tmp", dir, ::getpid(), counter.fetch_add(1));
  TRY(fs.make_directories(dir));
  TRY_ASSIGN(auto file, fs.open(path, {.write = true, .create = true, .exclusive = true}));
  TRY(fs.unlink(path));
  return file;
}

/// Checksum of each page as the receiver has it, 0 for none; on disk, because a database may have billions of
/// pages.
class SentTable {
 public:
  explicit SentTable(std::string dir) : dir_(std::move(dir)) {}

  Result<void> reserve(std::uint64_t pages) {
    if (pages <= capacity_) return {};
    if (!file_) {
      TRY_ASSIGN(file_, unlinked_file(dir_));
    }
    // Zeros are written, so that a full disk is an error here and not SIGBUS at a store.
    static constexpr std::byte kZeros[64 * 1024] = {};
    const std::uint64_t goal = pages + pages / 4 + 1024;
    for (std::uint64_t at = capacity_ * 8; at < goal * 8; at += sizeof kZeros)
      TRY(file_->write_at(at, kZeros));
    TRY_ASSIGN(mapping_, file_->map_shared(goal * 8));
    capacity_ = goal;
    return {};
  }
  std::uint64_t& operator[](Pgno pgno) {
    return reinterpret_cast<std::uint64_t*>(mapping_.data())[pgno.value() - 1];
  }
  std::uint64_t capacity() const { return capacity_; }

 private:
  const std::string dir_;
  std::unique_ptr<File> file_;
  Mapping mapping_;
  std::uint64_t capacity_ = 0;
};

/// Pages read under the commit lock that wait to be sent: in memory, or (`spill`) in a file.
class PageBatch {
 public:
  Result<void> use_file(const std::string& dir) {
    TRY_ASSIGN(file_, unlinked_file(dir));
    return {};
  }
  std::size_t size() const { return pages_.size(); }
  Result<void> add(Pgno pgno, ByteView content) {
    if (file_) {
      TRY(file_->write_at(pages_.size() * content.size(), content));
    } else {
      bytes_.insert(bytes_.end(), content.begin(), content.end());
    }
    pages_.push_back(pgno);
    return {};
  }
  Result<void> send(SnapshotSink& sink, std::uint32_t page_size) {
    Bytes page(page_size);
    for (std::size_t i = 0; i < pages_.size(); ++i) {
      const std::uint64_t at = i * std::uint64_t{page_size};
      if (!file_) {
        TRY(sink.page(pages_[i], ByteView(bytes_).subspan(static_cast<std::size_t>(at), page_size)));
        continue;
      }
      TRY_ASSIGN(const std::size_t n, file_->read_at(at, page));
      if (n != page.size()) return make_error(Errc::io, "snapshot: the spill file lost a page");
      TRY(sink.page(pages_[i], page));
    }
    pages_.clear();
    bytes_.clear();
    return {};
  }

 private:
  std::vector<Pgno> pages_;
  Bytes bytes_;
  std::unique_ptr<File> file_;
};

class Copier {
 public:
  Copier(Database& database, const SnapshotOptions& options, SnapshotSink& sink)
      : database_(database), options_(options), sink_(sink), receiver_(options.receiver), sent_(options.tmp_dir) {}

  Result<SnapshotEnd> run() {
    for (;;) {
      TRY_ASSIGN(const Outcome outcome, attempt());
      if (outcome == Outcome::done) return end_;
    }
  }

 private:
  enum class Outcome { done, start_over };
  /// What one slice of a round met.
  struct Slice {
    std::uint32_t next = 1;  ///< page to go on with
    bool last = false;       ///< reached the end of the database
    bool changed = false;    ///< page size changed or database deleted: start over
    bool busy = false;       ///< pages were left out
  };

  Result<Outcome> attempt() {
    page_size_ = database_.page_size();
    const std::uint32_t pages = database_.page_count();
    if (!valid_page_size(page_size_)) page_size_ = 4096;
    TRY(forget_sent(pages));
    // Once: whatever was sent after that is the receiver's, too.
    if (ReceiverPages* const receiver = std::exchange(receiver_, nullptr)) TRY(compare(*receiver));
    TRY(sink_.begin(page_size_, pages));
    for (int round = 1;; ++round) {
      TRY_ASSIGN(const Slice result, run_round());
      if (result.changed) return Outcome::start_over;
      if (result.busy) TRY(wait_busy());
      TRY_ASSIGN(const bool done, try_to_finish(round > kMaxRounds));
      if (done) return Outcome::done;
      if (changed_) return Outcome::start_over;
    }
  }

  Result<void> forget_sent(std::uint32_t pages) {
    changed_ = false;
    TRY(sent_.reserve(pages));
    for (std::uint64_t p = 1; p <= sent_.capacity(); ++p) sent_[Pgno(static_cast<std::uint32_t>(p))] = 0;
    return {};
  }

  // ---- comparing with what the receiver has ----

  Result<void> compare(ReceiverPages& receiver) {
    const PageOffer& offer = receiver.offer();
    const std::uint32_t pages = std::min(offer.pages, database_.page_count());
    if (pages == 0 || offer.page_size != page_size_) return {};
    // Pages first…last of blocks that differ and are next to each other are asked for together.
    std::uint64_t first = 0;
    std::uint64_t last = 0;
    for (std::size_t b = 0; b < offer.blocks.size(); ++b) {
      const std::uint64_t begin = b * std::uint64_t{offer.block_pages} + 1;
      const std::uint64_t end = std::min<std::uint64_t>(begin + offer.block_pages - 1, offer.pages);
      if (begin > pages) break;
      TRY(check_cancelled());
      TRY(know_checksums(begin, std::min<std::uint64_t>(end, pages)));
      if (block_matches(begin, end, offer.blocks[b])) continue;
      if (first == 0) first = begin;
      if (begin != last + 1 && last != 0) {
        TRY(ask(receiver, first, last));
        first = begin;
      }
      last = std::min<std::uint64_t>(end, pages);
    }
    if (first != 0) TRY(ask(receiver, first, last));
    sink_.differing(count_differing());
    return {};
  }

  /// Checksums that are not known are computed, a page in each hold of the commit lock; what cannot be read now stays
  /// unknown and counts as different.
  Result<void> know_checksums(std::uint64_t begin, std::uint64_t end) NO_THREAD_SAFETY_ANALYSIS {
    scratch_.resize(page_size_);
    for (std::uint64_t p = begin; p <= end; ++p) {
      const Pgno pgno(static_cast<std::uint32_t>(p));
      MutexLock lock(database_.commit_mutex());
      if (layout_changed() || p > database_.page_count()) return {};
      if (pgno == lock_page(page_size_) || database_.checksums().get(pgno) != Checksum{}) continue;
      const auto sum = database_.page_checksum(pgno, scratch_);
      if (sum.has_error() && sum.error().code != Errc::busy) return sum.error();
    }
    return {};
  }

  /// If so, the receiver has our pages begin…end. A block is compared in one hold of the commit lock.
  bool block_matches(std::uint64_t begin, std::uint64_t end, std::uint64_t theirs) NO_THREAD_SAFETY_ANALYSIS {
    MutexLock lock(database_.commit_mutex());
    if (layout_changed() || end > database_.page_count() || end > sent_.capacity()) return false;
    BlockSum ours;
    for (std::uint64_t p = begin; p <= end; ++p) {
      const Pgno pgno(static_cast<std::uint32_t>(p));
      if (pgno != lock_page(page_size_)) ours.add(database_.checksums().get(pgno));
    }
    if (ours.value() != theirs) return false;
    for (std::uint64_t p = begin; p <= end; ++p) {
      const Pgno pgno(static_cast<std::uint32_t>(p));
      sent_[pgno] = database_.checksums().get(pgno).value();
    }
    return true;
  }

  Result<void> ask(ReceiverPages& receiver, std::uint64_t first, std::uint64_t last) {
    last = std::min(last, sent_.capacity());
    for (std::uint64_t p = first; p <= last;) {
      TRY(check_cancelled());
      const std::uint64_t n = std::min<std::uint64_t>(last - p + 1, kMaxPageSums);
      TRY(receiver.page_sums(Pgno(static_cast<std::uint32_t>(p)),
                             std::span(&sent_[Pgno(static_cast<std::uint32_t>(p))], static_cast<std::size_t>(n))));
      p += n;
    }
    return {};
  }

  std::uint32_t count_differing() NO_THREAD_SAFETY_ANALYSIS {
    std::uint32_t differing = 0;
    for (std::uint64_t from = 1;; from += kScanSlice) {
      MutexLock lock(database_.commit_mutex());
      const std::uint64_t count = std::min<std::uint64_t>(database_.page_count(), sent_.capacity());
      for (std::uint64_t p = from; p <= count && p < from + kScanSlice; ++p) {
        const Pgno pgno(static_cast<std::uint32_t>(p));
        if (pgno == lock_page(page_size_)) continue;
        const Checksum known = database_.checksums().get(pgno);
        differing += known == Checksum{} || known.value() != sent_[pgno] ? 1 : 0;
      }
      if (from + kScanSlice > count) return differing;
    }
  }

  // ---- rounds ----

  /// Sends every page that differs from what was sent, once.
  Result<Slice> run_round() {
    Slice result;
    bool busy = false;
    do {
      TRY(check_cancelled());
      TRY(make_table_large_enough());
      PageBatch batch;
      TRY_ASSIGN(result, read_slice(result.next, batch));
      busy = busy || result.busy;
      TRY(batch.send(sink_, page_size_));
    } while (!result.last && !result.changed);
    result.busy = busy;
    return result;
  }

  Result<void> make_table_large_enough() { return sent_.reserve(database_.page_count()); }

  /// From page `from`: one batch of pages, or kScanSlice pages that need none.
  Result<Slice> read_slice(std::uint32_t from, PageBatch& batch) NO_THREAD_SAFETY_ANALYSIS {
    MutexLock lock(database_.commit_mutex());
    Slice slice;
    slice.changed = layout_changed();
    if (slice.changed) return slice;
    const std::uint64_t count = std::min<std::uint64_t>(database_.page_count(), sent_.capacity());
    const std::size_t batch_pages = std::max<std::size_t>(1, std::min(kBatchPages, kBatchBytes / page_size_));
    std::uint64_t p = from;
    for (std::uint32_t scanned = 0; p <= count && scanned < kScanSlice && batch.size() < batch_pages;
         ++p, ++scanned) {
      TRY_ASSIGN(const bool taken, take_if_different(Pgno(static_cast<std::uint32_t>(p)), batch));
      slice.busy = slice.busy || !taken;
    }
    slice.last = p > count;
    slice.next = static_cast<std::uint32_t>(std::min<std::uint64_t>(p, 0xffffffffu));
    return slice;
  }

  bool layout_changed() const {
    const std::uint32_t pages = database_.page_count();
    return pages != 0 && database_.page_size() != page_size_;
  }

  /// Reads the page into `batch` unless the receiver has it. False: it cannot be read now. Commit lock held.
  Result<bool> take_if_different(Pgno pgno, PageBatch& batch) NO_THREAD_SAFETY_ANALYSIS {
    if (pgno == lock_page(page_size_)) return true;
    const Checksum known = database_.checksums().get(pgno);
    if (known != Checksum{} && known.value() == sent_[pgno]) return true;
    PageSource* const source = database_.page_source();
    if (source == nullptr) {
      return make_error(Errc::unavailable, database_.name() + ": its content is not available now");
    }
    scratch_.resize(page_size_);
    if (auto read = source->read_page(pgno, scratch_); read.has_error()) {
      if (read.error().code == Errc::busy) return false;
      return std::move(read).error();
    }
    const Checksum sum = ltx::page_checksum(pgno, scratch_);
    if (known == Checksum{}) {
      TRY(database_.checksums().set(pgno, sum));
    } else if (known != sum) {
      return make_error(Errc::corrupt, fmt::format("{}: page {} does not have its checksum at {}",
                                                   database_.name(), pgno, database_.pos()));
    }
    if (sum.value() == sent_[pgno]) return true;
    TRY(batch.add(pgno, scratch_));
    sent_[pgno] = sum.value();
    return true;
  }

  /// The last round: everything that still differs, with the position standing still. False: too much differs
  /// (unless `spill`), or a page was busy.
  Result<bool> try_to_finish(bool spill) {
    PageBatch batch;
    if (spill) TRY(batch.use_file(options_.tmp_dir));
    TRY(check_cancelled());
    TRY(make_table_large_enough());
    TRY_ASSIGN(const FinalRead result, read_rest(batch, spill));
    TRY(batch.send(sink_, page_size_));  // also when it was not enough: the table says they were sent
    if (result == FinalRead::busy) TRY(wait_busy());
    if (result != FinalRead::all) return false;
    TRY(sink_.end(end_));
    return true;
  }

  enum class FinalRead { all, too_many, busy, changed };

  Result<FinalRead> read_rest(PageBatch& batch, bool spill) NO_THREAD_SAFETY_ANALYSIS {
    MutexLock lock(database_.commit_mutex());
    changed_ = layout_changed();
    if (changed_) return FinalRead::changed;
    const std::uint32_t count = database_.page_count();
    if (count > sent_.capacity()) return FinalRead::too_many;
    Checksum database = kEmptyChecksum;
    bool busy = false;
    for (std::uint64_t p = 1; p <= count; ++p) {
      const Pgno pgno(static_cast<std::uint32_t>(p));
      if (pgno == lock_page(page_size_)) continue;
      TRY_ASSIGN(const bool taken, take_if_different(pgno, batch));
      busy = busy || !taken;
      if (taken) database = ltx::toggle(database, Checksum(sent_[pgno]));
      if (!spill && batch.size() > kFinalPages) return FinalRead::too_many;
    }
    if (busy) return FinalRead::busy;
    end_ = {database_.pos(), database_.epoch(), page_size_, count, database_.timestamp_ms()};
    if (database != end_.pos.checksum) {  // I3
      return make_error(Errc::corrupt,
                        fmt::format("{}: the pages add up to checksum {}, but the position is {}",
                                    database_.name(), to_hex(database.value()), end_.pos));
    }
    busy_since_.reset();
    return FinalRead::all;
  }

  Result<void> check_cancelled() const {
    if (options_.cancelled && options_.cancelled()) return make_error(Errc::cancelled, "snapshot: cancelled");
    return {};
  }

  /// Waits a little for the transaction that holds pages; nothing tells us when it ends.
  Result<void> wait_busy() {
    const auto now = std::chrono::steady_clock::now();
    if (!busy_since_) {
      busy_since_ = now;
      retry_ = kFirstRetry;
    }
    if (now - *busy_since_ >= milliseconds(options_.busy_timeout_ms)) {
      return make_error(Errc::busy, fmt::format("{}: a transaction has kept pages locked for {} ms",
                                                database_.name(), options_.busy_timeout_ms));
    }
    MutexLock lock(wait_mutex_);
    const auto until = now + retry_;
    while (std::chrono::steady_clock::now() < until && wait_.wait_until(wait_mutex_, until)) {
    }
    retry_ = std::min(retry_ * 2, kLongestRetry);
    return check_cancelled();
  }

  Database& database_;
  const SnapshotOptions& options_;
  SnapshotSink& sink_;
  ReceiverPages* receiver_;  ///< until it was asked
  SentTable sent_;
  std::uint32_t page_size_ = 0;
  bool changed_ = false;
  Bytes scratch_;
  SnapshotEnd end_;
  std::optional<std::chrono::steady_clock::time_point> busy_since_;
  milliseconds retry_ = kFirstRetry;
  Mutex wait_mutex_;
  CondVar wait_;
};

}  // namespace

Result<SnapshotEnd> copy_database(Database& database, const SnapshotOptions& options, SnapshotSink& sink) {
  return Copier(database, options, sink).run();
}

}  // namespace sluice::storage
