// The content of frames, handed to storage::ReplicaDatabase in the order that the protocol allows. Everything is checked:
// what does not fit is an error, and nothing of it is applied.
#include <fmt/format.h>
#include <lz4.h>

#include <utility>

#include "base/log.h"
#include "replication/database_feed.h"

namespace sluice::replication {
namespace {

constexpr std::size_t kMostAnswers = 4;  // a primary asks for the next page checksums when it has the last ones

Error broken(std::string what) { return make_error(Errc::protocol, std::move(what)); }

}  // namespace

Result<void> DatabaseFeed::handle(const Item& item) {
  if (!item.payload_intact) return make_error(Errc::corrupt, "a payload arrived damaged (its CRC does not fit)");
  const Message& message = item.message;
  if (std::holds_alternative<DatabaseUnknown>(message)) return discard();
  if (!database_) TRY(open_database());
  if (std::holds_alternative<DatabaseStart>(message)) return {};
  if (const auto* m = std::get_if<ChangeSet>(&message)) return change_set(*m, item.payload);
  if (const auto* m = std::get_if<ChangeSetData>(&message)) return change_set_data(m->offset, item.payload);
  if (const auto* m = std::get_if<ChangeSetEnd>(&message)) return end_change_set(m->txid);
  if (std::holds_alternative<OfferRequest>(message)) return offer(item);
  if (const auto* m = std::get_if<PageSumsRequest>(&message)) return page_sums(*m, item.generation);
  if (const auto* m = std::get_if<SnapshotBegin>(&message)) return snapshot_begin(*m);
  if (const auto* m = std::get_if<SnapshotPages>(&message)) return snapshot_pages(*m, item.payload);
  if (const auto* m = std::get_if<SnapshotDone>(&message)) return snapshot_end(*m);
  if (std::holds_alternative<SnapshotAbort>(message)) {
    if (open_ == Open::snapshot) abort_open();
    return {};
  }
  return broken(fmt::format("a {} frame is not about a database's content", kind_name(message)));
}

Result<void> DatabaseFeed::open_database() {
  TRY_ASSIGN(database_, context_.replica.database(name_));
  return {};
}

Result<void> DatabaseFeed::discard() {
  abort_open();
  LOG_WARN("the primary has no database {}; this node's copy is put away in lost+found", name_);
  // When that fails it is still here, and is announced again with the next connection.
  TRY(context_.replica.discard(name_));
  database_ = nullptr;
  return {};
}

void DatabaseFeed::abort_open() {
  if (open_ == Open::change_set) database_->abort_change_set();
  if (open_ == Open::snapshot) database_->abort_snapshot();
  set_phase(ResyncProgress::Phase::none, 0);
  open_ = Open::nothing;
}

Result<void> DatabaseFeed::change_set(const ChangeSet& head, ByteView image) {
  TRY(begin_change_set(head));
  if (!head.whole) return {};
  TRY(change_set_data(0, image));
  return end_change_set(head.post.txid);
}

Result<void> DatabaseFeed::begin_change_set(const ChangeSet& head) {
  if (open_ != Open::nothing) return broken("a change set begins inside another one or a snapshot");
  storage::IncomingChangeSet incoming;
  incoming.epoch = head.epoch;
  incoming.pre = head.pre;
  incoming.post = head.post;
  incoming.page_size = head.page_size;
  incoming.commit = head.commit;
  incoming.timestamp_ms = head.timestamp_ms;
  incoming.length = head.length;
  TRY(database_->begin_change_set(incoming));
  open_ = Open::change_set;
  head_ = head;
  received_ = 0;
  return {};
}

Result<void> DatabaseFeed::change_set_data(std::uint64_t offset, ByteView bytes) {
  if (open_ != Open::change_set) return broken("a piece of a change set that did not begin");
  if (offset != received_) return broken(fmt::format("a piece at {} where {} was next", offset, received_));
  if (bytes.size() > head_.length - received_) return broken("more of a change set than was announced");
  TRY(database_->change_set_bytes(bytes));
  received_ += bytes.size();
  return {};
}

Result<void> DatabaseFeed::end_change_set(Txid txid) {
  if (open_ != Open::change_set) return broken("the end of a change set that did not begin");
  if (received_ != head_.length || txid != head_.post.txid) return broken("a change set ends before all of it came");
  // Finished or failed, it is not open any more: finish cleans up after itself.
  open_ = Open::nothing;
  return database_->finish_change_set();
}

Result<void> DatabaseFeed::offer(const Item& item) {
  if (open_ == Open::change_set) return broken("an offer is asked for inside a change set");
  abort_open();
  open_ = Open::offer;
  offer_ = {};
  offer_generation_ = item.generation;
  offer_arrived_ = item.arrived;
  set_phase(ResyncProgress::Phase::comparing, 0);
  return {};
}

Result<void> DatabaseFeed::page_sums(const PageSumsRequest& request, std::uint64_t generation) {
  if (open_ != Open::nothing) return broken("page checksums are asked for inside of something else");
  {
    MutexLock lock(mutex_);
    if (outgoing_.size() >= kMostAnswers) return broken("more page checksums are asked for than are taken");
  }
  std::vector<std::uint64_t> sums(request.count);
  TRY(database_->offered_sums(request.first, sums));
  post(PageSums{0, 0, request.first}, encode_sums(sums), generation);
  return {};
}

Result<void> DatabaseFeed::snapshot_begin(const SnapshotBegin& begin) {
  if (open_ == Open::change_set) return broken("a snapshot begins inside a change set");
  abort_open();  // starts over
  TRY(database_->begin_snapshot(begin.page_size, begin.pages));
  open_ = Open::snapshot;
  page_size_ = begin.page_size;
  set_phase(ResyncProgress::Phase::copying, begin.compared ? begin.differing : begin.pages);
  return {};
}

Result<void> DatabaseFeed::snapshot_pages(const SnapshotPages& pages, ByteView payload) {
  if (open_ != Open::snapshot) return broken("pages of a snapshot that did not begin");
  if (pages.raw_length != pages.pgnos.size() * page_size_) return broken("snapshot pages of another page size");
  ByteView content = payload;
  if (pages.lz4) {
    scratch_.resize(pages.raw_length);
    const int size = LZ4_decompress_safe(reinterpret_cast<const char*>(payload.data()),
                                         reinterpret_cast<char*>(scratch_.data()), static_cast<int>(payload.size()),
                                         static_cast<int>(pages.raw_length));
    if (size < 0 || static_cast<std::uint32_t>(size) != pages.raw_length) {
      return broken("snapshot pages that do not decompress");
    }
    content = scratch_;
  }
  for (std::size_t i = 0; i < pages.pgnos.size(); ++i) {
    TRY(database_->snapshot_page(pages.pgnos[i], content.subspan(i * page_size_, page_size_)));
  }
  count_pages(pages.pgnos.size(), payload.size());
  return {};
}

Result<void> DatabaseFeed::snapshot_end(const SnapshotDone& end) {
  if (open_ != Open::snapshot) return broken("the end of a snapshot that did not begin");
  if (end.commit != 0 && end.page_size != page_size_) return broken("a snapshot ends with another page size");
  open_ = Open::nothing;
  const Result<void> finished = database_->finish_snapshot({end.pos, end.epoch, end.page_size, end.commit, end.timestamp_ms});
  set_phase(ResyncProgress::Phase::none, 0);
  return finished;
}

}  // namespace sluice::replication
