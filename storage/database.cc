#include "storage/database.h"

#include "base/check.h"
#include "base/log.h"
#include "storage/change_set_writer.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"

namespace sluice::storage {

Database::Database(FileSystem& fs, std::string name, Clock& clock, const Options& options)
    : fs_(fs), name_(std::move(name)), clock_(clock), options_(options) {}

Result<std::shared_ptr<Database>> Database::open(FileSystem& fs, std::string name, const std::string& log_dir,
                                                 const std::string& checksums_path, Clock& clock,
                                                 const Options& options) {
  std::shared_ptr<Database> database(new Database(fs, std::move(name), clock, options));
  MutexLock lock(database->commit_mutex_);
  TRY_ASSIGN(database->log_, ChangeLog::open(fs, log_dir, options.log));
  auto checksums = PageChecksums::open(fs, checksums_path);
  if (checksums.has_error() && checksums.error().code == Errc::corrupt) {
    // Only a cache of what the pages are: start it over, it fills again page by page.
    LOG_WARN("{}: {}; page checksums start over", database->name_, checksums.error().message);
    TRY(fs.unlink(checksums_path));
    checksums = PageChecksums::open(fs, checksums_path);
  }
  TRY_ASSIGN(database->checksums_, std::move(checksums));
  TRY(database->replay_log());
  return database;
}

// I3: after this the checksums are those of the pages at the log's last position, whatever mixture of older and newer
// entries a crash left: every entry changed since the checkpoint is set again from the log.
Result<void> Database::replay_log() {
  const auto last = log_->last();
  const ChecksumsState from = checksums_->state();
  if (!last) {
    if (from.checkpoint.txid != Txid(0) || from.page_count != 0) TRY(checksums_->reset());
    return {};
  }
  const Txid checkpoint = from.checkpoint.txid;
  const bool reachable = checkpoint <= last->post.txid && checkpoint.next() >= log_->first_readable();
  if (!reachable || (checkpoint != Txid(0) && log_->position_at(checkpoint) != from.checkpoint)) {
    LOG_WARN("{}: page checksums are of {}, which the change log does not continue; they fill again page by page", name_,
             from.checkpoint);
    TRY(checksums_->reset());
    publish(*last);
    return {};
  }
  std::uint32_t page_size = from.page_size;
  Result<void> status;
  TRY(log_->for_each(checkpoint.next(), [&](const ChangeLog::Handle& handle) {
    if (handle.info.base || handle.info.post.txid <= checkpoint) return true;
    status = [&]() NO_THREAD_SAFETY_ANALYSIS -> Result<void> {
      if (handle.info.page_size != page_size && page_size != 0) TRY(checksums_->reset());
      page_size = handle.info.page_size;
      const ltx::Source source = [&handle](std::uint64_t offset, ByteSpan out) -> Result<void> {
        TRY_ASSIGN(const std::size_t n, handle.file->read_at(handle.offset + offset, out));
        if (n != out.size()) return make_error(Errc::corrupt, "change log ends inside a record");
        return {};
      };
      TRY(ltx::decode(source, handle.info.length, [&](Pgno pgno, ByteView page) NO_THREAD_SAFETY_ANALYSIS {
        return checksums_->set(pgno, ltx::page_checksum(pgno, page));
      }));
      return checksums_->truncate(handle.info.commit);
    }();
    return !status.has_error();
  }));
  if (status.has_error()) return with_context(name_ + ": replaying the change log", status.error());
  publish(*last);
  return {};
}

void Database::publish(const RecordInfo& info) {
  MutexLock lock(state_mutex_);
  state_ = State{info.post, info.page_size, info.commit, info.epoch, info.timestamp_ms, info.wal};
}

Database::State Database::state() const {
  MutexLock lock(state_mutex_);
  return state_;
}

Pos Database::pos() const { return state().pos; }
std::uint32_t Database::page_size() const { return state().page_size; }
std::uint32_t Database::page_count() const { return state().page_count; }
Epoch Database::epoch() const { return state().epoch; }
std::int64_t Database::timestamp_ms() const { return state().timestamp_ms; }
sqlite::WalPosition Database::wal_position() const { return state().wal; }

std::string Database::fault() const {
  MutexLock lock(state_mutex_);
  return fault_;
}

void Database::set_fault(std::string why) {
  MutexLock lock(state_mutex_);
  fault_ = std::move(why);
}

std::string Database::waiting() const {
  MutexLock lock(state_mutex_);
  return waiting_;
}

void Database::note_attempt(const Result<void>& outcome) {
  const bool full = outcome.has_error() && outcome.error().code == Errc::no_space;
  if (outcome.has_error() && !full) return;
  bool was_waiting = false;
  {
    MutexLock lock(state_mutex_);
    was_waiting = !waiting_.empty();
    if (was_waiting == full) return;
    waiting_ = full ? outcome.error().message : std::string();
  }
  if (full) {
    LOG_ERROR("{}: the disk is full, replication of this database waits for space: {}", name_, outcome.error().message);
  } else {
    LOG_INFO("{}: there is space again, replication goes on", name_);
  }
}

Result<std::optional<Pos>> Database::commit(const CommitInput& input, Epoch epoch, NodeId node) {
  CHECK(valid_page_size(input.page_size) || input.commit == 0);
  ChangeSetWriter writer(*this, input, epoch, node);
  Result<bool> written = writer.write();
  if (written.has_error()) {
    log_->abort_append();
    return with_context(name_ + ": making a change set", std::move(written).error());
  }
  if (!*written) return std::optional<Pos>();
  TRY(finish_received(writer.info(), writer.sums()));
  return std::optional<Pos>(writer.info().post);
}

Result<void> Database::finish_received(const RecordInfo& info, std::span<const PageSum> pages) {
  // Room in the side file before the point of no return: afterwards nothing may fail.
  for (const PageSum& sum : pages) {
    Result<void> prepared = checksums_->prepare(sum.pgno);
    if (prepared.has_error()) {
      log_->abort_append();
      return with_context(name_ + ": page checksums", std::move(prepared).error());
    }
  }
  TRY(log_->finish_append(info));
  TRY(apply_sums(info, pages));
  publish(info);
  if (DatabaseObserver* observer = observer_.load()) observer->on_appended(*this);
  return {};
}

Result<void> Database::apply_sums(const RecordInfo& info, std::span<const PageSum> sums) {
  const State before = state();
  if (before.page_count != 0 && before.page_size != info.page_size) {
    // The reset is durable at once. Without the change set that has every page, recovery would find nothing to start from.
    TRY(log_->flush());
    TRY(checksums_->reset());
  }
  for (const PageSum& sum : sums) TRY(checksums_->set(sum.pgno, sum.checksum));
  if (info.commit < before.page_count) TRY(checksums_->truncate(info.commit));
  return {};
}

Result<void> Database::rebase(const RecordInfo& base, FunctionRef<Checksum(Pgno)> sum_of) {
  TRY(log_->append_base(base));
  TRY(checksums_->reset());
  const Pgno lock = lock_page(base.page_size);
  for (std::uint64_t p = 1; p <= base.commit; ++p) {
    const Pgno pgno(static_cast<std::uint32_t>(p));
    if (pgno != lock) TRY(checksums_->set(pgno, sum_of(pgno)));
  }
  TRY(checksums_->checkpoint({base.post, base.page_size, base.commit}));
  log_bytes_at_checkpoint_ = log_->size_bytes();
  publish(base);
  if (DatabaseObserver* observer = observer_.load()) {
    observer->on_appended(*this);
    observer->on_durable(*this);
  }
  return {};
}

Result<void> Database::sync(std::optional<Txid> content) {
  TRY(log_->sync(content));
  if (DatabaseObserver* observer = observer_.load()) observer->on_durable(*this);
  return {};
}

Result<void> Database::maintain(const RetentionPolicy& policy, Checkpoint checkpoint) {
  TRY(log_->flush());
  Txid keep_from;
  {
    MutexLock lock(commit_mutex_);
    const std::uint64_t bytes = log_->size_bytes();
    const bool due = bytes < log_bytes_at_checkpoint_ ||
                     bytes - log_bytes_at_checkpoint_ >= options_.checkpoint_bytes;
    if (checkpoint == Checkpoint::now || (checkpoint == Checkpoint::if_due && due)) {
      TRY(log_->flush());
      const State now = state();
      if (now.pos.txid != Txid(0)) TRY(checksums_->checkpoint({now.pos, now.page_size, now.page_count}));
      log_bytes_at_checkpoint_ = bytes;
    }
    keep_from = checksums_->state().checkpoint.txid.next();
  }
  TRY(log_->retain(policy, keep_from, clock_.wall_ms()));
  return {};
}

Result<Checksum> Database::page_checksum(Pgno pgno, ByteSpan scratch) {
  const Checksum known = checksums_->get(pgno);
  if (known != Checksum{}) return known;
  if (page_source_ == nullptr) {
    return make_error(Errc::unavailable, name_ + ": the content of page " + std::to_string(pgno.value()) +
                                             " is not available now");
  }
  TRY(page_source_->read_page(pgno, scratch));
  const Checksum sum = ltx::page_checksum(pgno, scratch);
  TRY(checksums_->set(pgno, sum));
  return sum;
}

}  // namespace sluice::storage
