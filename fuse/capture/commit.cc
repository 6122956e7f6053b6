#include "fuse/capture/commit.h"

#include <array>

#include "base/log.h"
#include "storage/ltx/checksum.h"
#include "storage/sqlite/database_header.h"

namespace sluice::fuse {

Result<FileSummary> summarise(const File* file) {
  FileSummary summary;
  if (file == nullptr) return summary;
  std::array<std::byte, sqlite::kDatabaseHeaderSize> bytes{};
  TRY_ASSIGN(summary.size, file->size());
  TRY_ASSIGN(const std::size_t n, file->read_at(0, bytes));
  const auto header = sqlite::parse_database_header(ByteView(bytes).first(n));
  if (header.has_error()) return summary;
  summary.is_database = true;
  summary.wal_mode = header->is_wal();
  summary.page_size = header->page_size;
  summary.pages = header->pages(summary.size);
  return summary;
}

namespace {

Result<std::optional<Pos>> rebase(storage::Database& database, const storage::CommitInput& input,
                                  const CaptureOptions& options) NO_THREAD_SAFETY_ANALYSIS {
  storage::RecordInfo base;
  base.epoch = options.epoch;
  base.pre = database.pos();
  base.min_txid = base.pre.txid.next();
  base.post = {base.min_txid, kEmptyChecksum};
  base.page_size = input.page_size;
  base.commit = input.commit;
  base.timestamp_ms = system_clock().wall_ms();
  base.base = true;
  base.wal = input.wal;
  std::vector<Checksum> sums(std::size_t{input.commit} + 1);
  const Pgno lock = lock_page(input.page_size);
  for (std::uint64_t p = 1; p <= input.commit; ++p) {
    const Pgno pgno(static_cast<std::uint32_t>(p));
    if (pgno == lock) continue;
    TRY_ASSIGN(const ByteView page, input.read(pgno));
    sums[p] = ltx::page_checksum(pgno, page);
    base.post.checksum = ltx::toggle(base.post.checksum, sums[p]);
  }
  LOG_INFO("{}: the change log starts at {}; replicas are sent a snapshot", database.name(), base.post);
  TRY(database.rebase(base, [&sums](Pgno pgno) { return sums[pgno.value()]; }));
  return std::optional<Pos>(base.post);
}

// After a loss of power most checksums can be unknown. Those of pages that the log has changed since their checkpoint are known from
// the log; if all others are as the file has them, and the rolling checksum proves it, they need not be sent to anybody.
Result<bool> learn_unknown(storage::Database& database, const storage::CommitInput& input) NO_THREAD_SAFETY_ANALYSIS {
  if (input.page_size != database.page_size()) return false;
  const Pgno lock = lock_page(input.page_size);
  std::vector<Checksum> found(std::size_t{database.page_count()} + 1);
  Checksum total = kEmptyChecksum;
  for (std::uint32_t p = 1; p < found.size(); ++p) {
    const Pgno pgno(p);
    if (pgno == lock) continue;
    Checksum sum = database.checksums().get(pgno);
    if (sum == Checksum{}) {
      if (p > input.commit) return false;
      TRY_ASSIGN(const ByteView page, input.read(pgno));
      sum = ltx::page_checksum(pgno, page);
      found[p] = sum;
    }
    total = ltx::toggle(total, sum);
  }
  if (total != database.pos().checksum) return false;
  for (std::uint32_t p = 1; p < found.size(); ++p) {
    if (found[p] != Checksum{}) TRY(database.checksums().set(Pgno(p), found[p]));
  }
  return true;
}

}  // namespace

Result<std::optional<Pos>> commit_or_rebase(storage::Database& database, const storage::CommitInput& input,
                                            const CaptureOptions& options, NodeId node) NO_THREAD_SAFETY_ANALYSIS {
  const bool is_new = database.pos().txid == Txid(0);
  if (is_new && input.commit != 0 && std::uint64_t{input.commit} * input.page_size > options.base_bytes) {
    return rebase(database, input, options);
  }
  auto made = database.commit(input, options.epoch, node);
  if (made.has_value() || made.error().code != Errc::not_found || input.commit == 0) return made;
  TRY_ASSIGN(const bool learned, learn_unknown(database, input));
  if (learned) return database.commit(input, options.epoch, node);
  return rebase(database, input, options);
}

}  // namespace sluice::fuse
