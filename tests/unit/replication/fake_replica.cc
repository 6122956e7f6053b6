#include "tests/unit/replication/fake_replica.h"

#include <algorithm>

#include "base/check.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"

namespace sluice::replication::testing {
namespace {

Checksum checksum_of(const std::map<std::uint32_t, Bytes>& pages, std::uint32_t page_size) {
  Checksum sum = kEmptyChecksum;
  for (const auto& [pgno, page] : pages) {
    if (Pgno(pgno) != lock_page(page_size)) sum = ltx::toggle(sum, ltx::page_checksum(Pgno(pgno), page));
  }
  return sum;
}

}  // namespace

// The contract: calls (but sync) are serialised by the caller.
void FakeDatabase::enter() { CHECK(++inside_ == 1); }

Epoch FakeDatabase::epoch() const {
  MutexLock lock(mutex_);
  return epoch_;
}

Pos FakeDatabase::pos() const {
  MutexLock lock(mutex_);
  return pos_;
}

std::map<std::uint32_t, Bytes> FakeDatabase::pages() const {
  MutexLock lock(mutex_);
  return pages_;
}

std::size_t FakeDatabase::snapshots() const {
  MutexLock lock(mutex_);
  return snapshots_;
}

std::size_t FakeDatabase::change_sets() const {
  MutexLock lock(mutex_);
  return change_sets_;
}

std::string FakeDatabase::order_error() const {
  MutexLock lock(mutex_);
  return order_error_;
}

void FakeDatabase::hold() {
  MutexLock lock(mutex_);
  held_ = true;
}

void FakeDatabase::release() {
  MutexLock lock(mutex_);
  held_ = false;
  changed_.notify_all();
}

bool FakeDatabase::waiting() const {
  MutexLock lock(mutex_);
  return waiting_ > 0;
}

void FakeDatabase::wait_while_held() {
  ++waiting_;
  while (held_) changed_.wait(mutex_);
  --waiting_;
}

void FakeDatabase::fail_next(int times, Errc code) {
  MutexLock lock(mutex_);
  fail_times_ = times;
  fail_code_ = code;
}

void FakeDatabase::fail_snapshots(int times, Errc code) {
  MutexLock lock(mutex_);
  fail_snapshots_ = times;
  fail_snapshot_code_ = code;
}

void FakeDatabase::damage() {
  MutexLock lock(mutex_);
  pages_.begin()->second[0] ^= std::byte{1};
}

Result<void> FakeDatabase::begin_change_set(const storage::IncomingChangeSet& head) {
  enter();
  MutexLock lock(mutex_);
  leave();
  if (head.epoch < epoch_) return make_error(Errc::stale_epoch, "the primary's epoch is over");
  if (head.pre != pos_) return make_error(Errc::position, name_ + ": does not follow");
  head_ = head;
  image_.clear();
  return {};
}

Result<void> FakeDatabase::change_set_bytes(ByteView bytes) {
  enter();
  image_.insert(image_.end(), bytes.begin(), bytes.end());
  leave();
  return {};
}

Result<void> FakeDatabase::finish_change_set() {
  enter();
  MutexLock lock(mutex_);
  wait_while_held();
  leave();
  if (fail_times_ > 0) {
    --fail_times_;
    return make_error(fail_code_, "made to fail by the test");
  }
  Pages pages = pages_;
  if (head_.page_size != page_size_) pages.clear();
  auto decoded = ltx::decode(ltx::memory_source(image_), image_.size(), [&](Pgno pgno, ByteView page) -> Result<void> {
    pages[pgno.value()] = Bytes(page.begin(), page.end());
    return {};
  });
  if (decoded.has_error()) return decoded.error();
  const ltx::Header& header = decoded->header;
  if (header.max_txid != head_.post.txid || header.min_txid != head_.pre.txid.next() ||
      header.commit != head_.commit || header.page_size != head_.page_size ||
      header.timestamp_ms != head_.timestamp_ms) {
    return make_error(Errc::corrupt, "head and image differ");
  }
  pages.erase(pages.upper_bound(head_.commit), pages.end());
  if (checksum_of(pages, head_.page_size) != head_.post.checksum) {
    return make_error(Errc::position, name_ + ": another content than announced");
  }
  if (head_.post.txid <= pos_.txid) order_error_ = "went backwards";
  pages_ = std::move(pages);
  page_size_ = head_.page_size;
  pos_ = head_.post;
  epoch_ = head_.epoch;
  ++change_sets_;
  return {};
}

void FakeDatabase::abort_change_set() { image_.clear(); }

std::size_t FakeDatabase::pages_received() const {
  MutexLock lock(mutex_);
  return pages_received_;
}

/// Staged from a snapshot that was broken off, or of the content.
Checksum FakeDatabase::sum_of(std::uint32_t pgno) {
  const std::uint32_t page_size = staged_.empty() ? page_size_ : staged_page_size_;
  if (page_size == 0 || Pgno(pgno) == lock_page(page_size)) return Checksum{};
  if (damaged_.contains(pgno) && !staged_.contains(pgno)) return Checksum{};
  if (const auto it = staged_.find(pgno); it != staged_.end()) return ltx::page_checksum(Pgno(pgno), it->second);
  const auto it = pages_.find(pgno);
  return it == pages_.end() || page_size != page_size_ ? Checksum{} : ltx::page_checksum(Pgno(pgno), it->second);
}

Result<bool> FakeDatabase::prepare_offer(storage::PageOffer& offer) {
  enter();
  MutexLock lock(mutex_);
  leave();
  if (slow_offer_ > 0) {
    --slow_offer_;
    return false;
  }
  offer = {};
  offer.page_size = staged_.empty() ? page_size_ : staged_page_size_;
  if (!staged_.empty()) offer.pages = staged_.rbegin()->first;
  if (!pages_.empty() && page_size_ == offer.page_size) offer.pages = std::max(offer.pages, pages_.rbegin()->first);
  offer.block_pages = storage::block_pages_for(offer.pages);
  storage::BlockSum block;
  for (std::uint32_t p = 1; p <= offer.pages; ++p) {
    if (Pgno(p) != lock_page(offer.page_size)) block.add(sum_of(p));
    if (p % offer.block_pages == 0 || p == offer.pages) {
      offer.blocks.push_back(block.value());
      block = {};
    }
  }
  return true;
}

Result<void> FakeDatabase::offered_sums(Pgno first, std::span<std::uint64_t> out) {
  MutexLock lock(mutex_);
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = sum_of(first.value() + static_cast<std::uint32_t>(i)).value();
  return {};
}

Result<void> FakeDatabase::begin_snapshot(std::uint32_t page_size, std::uint32_t) {
  enter();
  if (page_size != staged_page_size_) staged_.clear();
  staged_page_size_ = page_size;
  leave();
  return {};
}

Result<void> FakeDatabase::snapshot_page(Pgno pgno, ByteView content) {
  enter();
  CHECK(content.size() == staged_page_size_);
  staged_[pgno.value()] = Bytes(content.begin(), content.end());
  MutexLock lock(mutex_);
  ++pages_received_;
  leave();
  return {};
}

Result<void> FakeDatabase::finish_snapshot(const storage::SnapshotEnd& end) {
  enter();
  MutexLock lock(mutex_);
  wait_while_held();
  leave();
  if (fail_snapshots_ > 0) {
    --fail_snapshots_;
    return make_error(fail_snapshot_code_, "made to fail by the test");
  }
  if (page_size_ == end.page_size) staged_.insert(pages_.begin(), pages_.end());  // what was left out
  staged_.erase(staged_.upper_bound(end.commit), staged_.end());
  if (checksum_of(staged_, end.page_size) != end.pos.checksum) {
    staged_.clear();
    return make_error(Errc::corrupt, name_ + ": the snapshot is not what it says");
  }
  pages_ = std::move(staged_);
  staged_.clear();
  damaged_.clear();
  page_size_ = end.page_size;
  pos_ = end.pos;
  epoch_ = end.epoch;
  ++snapshots_;
  return {};
}

void FakeDatabase::mark_damaged(std::span<const Pgno> pages) {
  MutexLock lock(mutex_);
  for (const Pgno pgno : pages) damaged_.insert(pgno.value());
}

std::size_t FakeDatabase::damaged() {
  MutexLock lock(mutex_);
  return damaged_.size();
}

void FakeDatabase::abort_snapshot() {}  // what came stays for the next offer

Result<Txid> FakeDatabase::sync() { return pos().txid; }

Result<std::shared_ptr<storage::ReplicaDatabase>> FakeReplica::database(const std::string& name) {
  return std::shared_ptr<storage::ReplicaDatabase>(fake(name));
}

std::vector<std::shared_ptr<storage::ReplicaDatabase>> FakeReplica::list() const {
  MutexLock lock(mutex_);
  std::vector<std::shared_ptr<storage::ReplicaDatabase>> all;
  for (const auto& [name, database] : databases_) all.push_back(database);
  return all;
}

Result<void> FakeReplica::discard(const std::string& name) {
  MutexLock lock(mutex_);
  databases_.erase(name);
  discarded_.push_back(name);
  return {};
}

std::shared_ptr<FakeDatabase> FakeReplica::fake(const std::string& name) {
  MutexLock lock(mutex_);
  auto& database = databases_[name];
  if (!database) database = std::make_shared<FakeDatabase>(name);
  return database;
}

std::shared_ptr<FakeDatabase> FakeReplica::find(const std::string& name) const {
  MutexLock lock(mutex_);
  const auto it = databases_.find(name);
  return it == databases_.end() ? nullptr : it->second;
}

std::vector<std::string> FakeReplica::discarded() const {
  MutexLock lock(mutex_);
  return discarded_;
}

}  // namespace sluice::replication::testing
