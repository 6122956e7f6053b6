#include "storage/change_set_writer.h"

#include "storage/ltx/checksum.h"

namespace sluice::storage {

ChangeSetWriter::ChangeSetWriter(Database& database, const CommitInput& input, Epoch epoch, NodeId node)
    : database_(database),
      input_(input),
      node_(node),
      old_pages_(database.page_count() != 0 && database.page_size() != input.page_size && input.commit != 0
                     ? 0
                     : database.page_count()),
      replaces_(old_pages_ != database.page_count()),
      rolling_(replaces_ ? kEmptyChecksum : database.pos().checksum) {
  info_.epoch = epoch;
  info_.pre = database.pos();
  info_.min_txid = info_.pre.txid.next();
  info_.post.txid = info_.min_txid;
  info_.page_size = input.commit == 0 && database.page_size() != 0 ? database.page_size() : input.page_size;
  info_.commit = input.commit;
  info_.timestamp_ms = database.clock_.wall_ms();
  info_.wal = input.wal;
}

Result<bool> ChangeSetWriter::write() {
  // Pages beyond the old size must all be in the change set, also those nobody wrote (LTX's hole rule).
  std::uint32_t required = old_pages_ + 1;
  for (const Pgno pgno : input_.pages) {
    if (pgno.value() == 0 || pgno.value() > input_.commit) continue;
    if (pgno.value() > old_pages_) {
      if (pgno.value() < required) continue;
      TRY(add_range(required, pgno.value()));
      required = pgno.value() + 1;
    } else {
      TRY(add(pgno));
    }
  }
  TRY(add_range(required, input_.commit));
  TRY(remove_tail());
  if (!begun_ && !replaces_ && input_.commit == old_pages_) return false;
  TRY(begin());
  if (input_.commit == 0) rolling_ = kEmptyChecksum;
  info_.post.checksum = rolling_;
  TRY(database_.encoder_->finish(rolling_));
  return true;
}

Result<void> ChangeSetWriter::begin() {
  if (begun_) return {};
  begun_ = true;
  ltx::Header header;
  header.page_size = info_.page_size;
  header.commit = info_.commit;
  header.min_txid = info_.min_txid;
  header.max_txid = info_.post.txid;
  header.timestamp_ms = info_.timestamp_ms;
  header.pre_apply_checksum = header.is_snapshot() ? 0 : info_.pre.checksum.value();
  header.node_id = node_.value();
  ChangeLog& log = *database_.log_;
  TRY(log.begin_append());
  return database_.encoder().begin(
      header, [&log](ByteView bytes) { return log.append_bytes(bytes); }, database_.options_.helpers);
}

Result<void> ChangeSetWriter::add(Pgno pgno) {
  if (pgno == lock_page(info_.page_size)) return {};
  TRY_ASSIGN(const ByteView page, input_.read(pgno));
  const Checksum sum = ltx::page_checksum(pgno, page);
  if (pgno.value() <= old_pages_) {
    TRY_ASSIGN(const Checksum old, old_checksum(pgno));
    if (old == sum) return {};
    rolling_ = ltx::toggle(rolling_, old);
  }
  rolling_ = ltx::toggle(rolling_, sum);
  TRY(begin());
  const ByteView block = input_.packed != nullptr ? input_.packed->find(pgno, sum) : ByteView{};
  TRY(database_.encoder_->add_page(pgno, page, block));
  sums_.push_back({pgno, sum});
  return {};
}

Result<void> ChangeSetWriter::add_range(std::uint32_t first, std::uint32_t last) {
  for (std::uint64_t p = first; p <= last; ++p) TRY(add(Pgno(static_cast<std::uint32_t>(p))));
  return {};
}

Result<void> ChangeSetWriter::remove_tail() {
  if (input_.commit == 0) return {};
  for (std::uint64_t p = std::uint64_t{input_.commit} + 1; p <= old_pages_; ++p) {
    const Pgno pgno(static_cast<std::uint32_t>(p));
    if (pgno == lock_page(info_.page_size)) continue;
    TRY_ASSIGN(const Checksum old, old_checksum(pgno));
    rolling_ = ltx::toggle(rolling_, old);
  }
  return {};
}

Result<Checksum> ChangeSetWriter::old_checksum(Pgno pgno) {
  const Checksum known = database_.checksums_->get(pgno);
  if (known != Checksum{}) return known;
  TRY_ASSIGN(const ByteView page, input_.read_old(pgno));
  return ltx::page_checksum(pgno, page);
}

}  // namespace sluice::storage
