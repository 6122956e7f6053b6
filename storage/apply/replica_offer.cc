// What a replica that is off the log offers: its page checksums, as blocks first. Decision 0005.
#include <chrono>

#include "base/log.h"
#include "storage/apply/replica_database.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage::apply {
namespace {

constexpr auto kSlice = std::chrono::milliseconds(10);
constexpr std::uint64_t kLookEvery = 4096;  // pages of which the checksum is known, between looks at the clock
/// More of them, and the content is not worth comparing with.
constexpr std::size_t kMostDamaged = 65536;

}  // namespace

/// Is the live content one that a snapshot of this page size can be completed with?
bool LiveReplicaDatabase::local_usable(std::uint32_t page_size) {
  return live_ && !live_->blocked && !failed() && database_->page_count() != 0 && database_->page_size() == page_size &&
         damaged_.size() <= kMostDamaged;
}

PageChecksums& LiveReplicaDatabase::page_checksums() {
  MutexLock lock(database_->commit_mutex());
  return database_->checksums();  // whoever changes them beside us changes single entries
}

/// Of a page of the live content; Checksum{}: not known, or the page is known to be damaged.
Checksum LiveReplicaDatabase::local_sum(Pgno pgno) {
  if (pgno.value() > database_->page_count() || damaged_.contains(pgno.value())) return Checksum{};
  return page_checksums().get(pgno);
}

/// By reading the page. What cannot be read, or is not what its checksum says, is damaged: the primary sends it.
Checksum LiveReplicaDatabase::compute_local_sum(Pgno pgno) {
  if (pgno.value() > database_->page_count() || damaged_.contains(pgno.value())) return Checksum{};
  scratch_.resize(database_->page_size());
  MutexLock lock(database_->commit_mutex());
  const Checksum known = database_->checksums().get(pgno);
  const Result<void> read = read_page(pgno, scratch_);
  const Checksum found = read.has_error() ? Checksum{} : ltx::page_checksum(pgno, scratch_);
  Result<void> kept;
  if (known == Checksum{} && found != Checksum{}) kept = database_->checksums().set(pgno, found);
  if (found == Checksum{} || (known != Checksum{} && known != found) || kept.has_error()) {
    LOG_WARN("{}: page {} {}; it is asked of the primary", name_, pgno,
             read.has_error() ? read.error().message : "is not what its checksum says");
    damaged_.insert(pgno.value());
    return Checksum{};
  }
  return found;
}

void LiveReplicaDatabase::mark_damaged(std::span<const Pgno> pages) {
  MutexLock lock(apply_mutex_);
  offering_.reset();
  for (const Pgno pgno : pages) damaged_.insert(pgno.value());
  if (pages.empty()) mismatches_ = std::max(mismatches_, 1);
}

std::size_t LiveReplicaDatabase::damaged() {
  MutexLock lock(apply_mutex_);
  return std::max<std::size_t>(damaged_.size(), mismatches_ > 0 ? 1 : 0);
}

Result<void> LiveReplicaDatabase::begin_offer() {
  if (stopped_) return make_error(Errc::cancelled, name_ + ": stopped");
  TRY(wake());  // and it stays awake until the snapshot has come
  incoming_.reset();
  collecting_ = false;
  Offering& o = offering_.emplace();
  // Twice what was here did not add up to what the primary has, even with every page read: start from nothing.
  if (mismatches_ > 1) snapshot_.reset();
  const std::uint32_t page_size = snapshot_ ? snapshot_->page_size() : database_->page_size();
  o.local = mismatches_ <= 1 && local_usable(page_size);
  o.offer.page_size = page_size;
  o.offer.pages = std::max(o.local ? database_->page_count() : 0, snapshot_ ? snapshot_->highest() : 0);
  o.offer.block_pages = block_pages_for(o.offer.pages);
  return {};
}

Result<bool> LiveReplicaDatabase::prepare_offer(PageOffer& offer) {
  MutexLock lock(apply_mutex_);
  if (!offering_ || offering_->complete) TRY(begin_offer());
  if (stopped_) return make_error(Errc::cancelled, name_ + ": stopped");
  Offering& o = *offering_;
  const auto until = std::chrono::steady_clock::now() + kSlice;
  const std::uint32_t lock_pgno = o.offer.pages == 0 ? 0 : lock_page(o.offer.page_size).value();
  for (std::uint64_t cheap = 0; o.next <= o.offer.pages; ++o.next) {
    const Pgno pgno(static_cast<std::uint32_t>(o.next));
    if (o.next != lock_pgno) {
      Checksum sum = snapshot_ ? snapshot_->collected(pgno) : Checksum{};
      bool computed = false;
      if (sum == Checksum{} && o.local) {
        if (mismatches_ == 0) sum = local_sum(pgno);
        computed = sum == Checksum{} && o.next <= database_->page_count();
        if (computed) sum = compute_local_sum(pgno);
      }
      o.block.add(sum);
      ++cheap;
      if (computed) cheap = kLookEvery;
    }
    if (o.next % o.offer.block_pages == 0 || o.next == o.offer.pages) {
      o.offer.blocks.push_back(std::exchange(o.block, BlockSum()).value());
    }
    if (cheap < kLookEvery) continue;
    cheap = 0;
    if (std::chrono::steady_clock::now() < until) continue;
    ++o.next;
    if (o.next <= o.offer.pages) return false;
    break;
  }
  o.complete = true;
  offer = std::move(o.offer);
  o.offer.blocks.clear();
  return true;
}

Result<void> LiveReplicaDatabase::offered_sums(Pgno first, std::span<std::uint64_t> out) {
  MutexLock lock(apply_mutex_);
  if (!offering_ || !offering_->complete) return make_error(Errc::position, name_ + ": nothing was offered");
  const Offering& o = *offering_;
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::uint64_t p = first.value() + std::uint64_t{i};
    out[i] = 0;
    if (p == 0 || p > o.offer.pages || Pgno(static_cast<std::uint32_t>(p)) == lock_page(o.offer.page_size)) continue;
    const Pgno pgno(static_cast<std::uint32_t>(p));
    Checksum sum = snapshot_ ? snapshot_->collected(pgno) : Checksum{};
    if (sum == Checksum{} && o.local) sum = local_sum(pgno);
    out[i] = sum.value();
  }
  return {};
}

}  // namespace sluice::storage::apply
