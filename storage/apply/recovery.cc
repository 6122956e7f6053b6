#include "storage/apply/recovery.h"

#include <algorithm>
#include <array>

#include "base/log.h"
#include "storage/apply/image_file.h"
#include "storage/apply/snapshot_files.h"
#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"
#include "storage/sqlite/database_header.h"

namespace sluice::storage::apply {
namespace {

constexpr std::size_t kCopySize = std::size_t{1} << 20;

class Recovery {
 public:
  Recovery(const Placement& placement, Database& database)
      : placement_(placement),
        store_(placement.store),
        fs_(placement.store.fs()),
        database_(database),
        path_(placement.store.backing_path(database.name())) {}

  Result<Recovered> run() {
    TRY(SnapshotFiles::clean(fs_, install_directory(store_), escape_name(database_.name()), false));
    if (const auto installed = install_snapshot(); installed.has_error()) {
      if (installed.error().code != Errc::corrupt) return installed.error();
      return unfit(installed.error().message);
    }
    if (!from_) TRY(find_start());
    if (database_.pos().txid == Txid(0)) return result_;  // nothing of ours yet
    TRY_ASSIGN(const bool journal, fs_.exists(path_ + "-journal"));
    if (journal) return unfit("there is a rollback journal beside it");
    TRY(check_checkpoint());
    if (!result_.needs_snapshot) TRY(check_size());
    if (result_.needs_snapshot) return unfit(result_.why);
    if (database_.deleted()) return finish_deleted();
    TRY(replay());
    if (result_.needs_snapshot) return unfit(result_.why);
    TRY(finish());
    if (result_.needs_snapshot) return unfit(result_.why);
    return result_;
  }

 private:
  /// A marker means that the content is the snapshot's, whatever was reached before the crash.
  Result<void> install_snapshot() {
    TRY_ASSIGN(snapshot_, SnapshotFiles::open_marked(fs_, install_directory(store_), escape_name(database_.name())));
    if (!snapshot_) return {};
    const SnapshotEnd& end = snapshot_->end();
    LOG_INFO("{}: finishing the installation of the snapshot at {}", database_.name(), end.pos);
    if (snapshot_->partial()) {
      TRY(patch_file());
    } else if (snapshot_->has_image()) {
      TRY(copy_image());
    }
    if (database_.log().position_at(end.pos.txid) != end.pos) {
      RecordInfo base;
      base.epoch = end.epoch;
      base.post = end.pos;
      base.page_size = end.page_size;
      base.commit = end.commit;
      base.timestamp_ms = end.timestamp_ms;
      base.base = true;
      MutexLock lock(database_.commit_mutex());
      TRY(database_.rebase(base, [this](Pgno pgno) { return snapshot_->sum(pgno); }));
    }
    from_ = ChecksumsState{end.pos, end.page_size, end.commit};
    return {};
  }

  Result<void> copy_image() {
    TRY(set_aside_local_file());
    TRY(fs_.make_directories(parent_directory(path_)));
    TRY_ASSIGN(const auto file, fs_.open(path_, {.write = true, .create = true}));
    File& image = snapshot_->image().file();
    TRY_ASSIGN(const std::uint64_t size, image.size());
    if (size != std::uint64_t{snapshot_->end().commit} * snapshot_->end().page_size) {
      return make_error(Errc::corrupt, image.path() + " does not have the size its marker says");
    }
    Bytes piece(kCopySize);
    for (std::uint64_t at = 0; at < size;) {
      TRY_ASSIGN(const std::size_t n, image.read_at(at, piece));
      TRY(file->write_at(at, ByteView(piece).first(n)));
      at += n;
    }
    TRY(file->truncate(size));
    TRY(file->sync_data());
    return fs_.sync_directory(parent_directory(path_));
  }

  /// Decision 0005: what the image lacks is in the file, and nothing has changed it since that is not in the log.
  Result<void> patch_file() {
    const SnapshotEnd& end = snapshot_->end();
    auto file = fs_.open(path_, {.write = true});
    if (file.has_error() && file.error().code == Errc::not_found) {
      return make_error(Errc::corrupt, "the database file that a snapshot was being installed into is missing");
    }
    TRY(file);
    TRY(snapshot_->for_each_page([&](Pgno pgno, ByteView page) {
      return (*file)->write_at(std::uint64_t{pgno.value() - 1} * end.page_size, page);
    }));
    TRY((*file)->truncate(std::uint64_t{end.commit} * end.page_size));
    return (*file)->sync_data();
  }

  /// The checkpoint of the page checksums; when that was lost (a new page size starts them over), the last change set that
  /// holds every page: what the file was before does not matter to it.
  Result<void> find_start() {
    {
      MutexLock lock(database_.commit_mutex());
      from_ = database_.checksums().state();
    }
    if (from_->checkpoint.txid != Txid(0)) return {};
    std::optional<RecordInfo> before;
    return database_.log().for_each(Txid(1), [&](const ChangeLog::Handle& record) {
      const RecordInfo& info = record.info;
      // Retention may have removed what would tell of the first one.
      const bool whole = !info.base && (before ? before->page_size != info.page_size || before->commit == 0
                                               : has_every_page(record));
      if (whole) from_ = ChecksumsState{info.pre, 0, 0};
      before = info;
      return true;
    });
  }

  static ltx::Source image_of(const ChangeLog::Handle& record) {
    return [&record](std::uint64_t offset, ByteSpan out) -> Result<void> {
      TRY_ASSIGN(const std::size_t n, record.file->read_at(record.offset + offset, out));
      if (n != out.size()) return make_error(Errc::corrupt, "the change log ends inside a record");
      return {};
    };
  }

  static bool has_every_page(const ChangeLog::Handle& record) {
    if (record.info.commit == 0) return true;
    const Pgno lock = lock_page(record.info.page_size);
    std::uint64_t pages = lock.value() <= record.info.commit ? 1 : 0;
    const auto decoded = ltx::decode(image_of(record), record.info.length, [&pages](Pgno, ByteView) -> Result<void> {
      ++pages;
      return {};
    });
    return decoded.has_value() && pages == record.info.commit;
  }

  /// The crash may have come before the snapshot of a new database took the place of a local file of that name.
  Result<void> set_aside_local_file() {
    TRY_ASSIGN(const bool exists, fs_.exists(path_));
    if (!exists) return {};
    {
      TRY_ASSIGN(const auto file, fs_.open(path_, {}));
      std::array<std::byte, sqlite::kMagic.size()> magic{};
      TRY_ASSIGN(const std::size_t n, file->read_at(0, magic));
      if (n == magic.size() && sqlite::looks_like_database(magic)) return {};
    }
    TRY_ASSIGN(const std::string moved, placement_.set_aside(database_.name(), "local"));
    LOG_WARN("{}: a local file where the primary has a database was moved to {}", database_.name(), moved);
    return {};
  }

  void misfit(std::string why) {
    result_.needs_snapshot = true;
    result_.why = std::move(why);
  }

  Result<void> check_checkpoint() {
    ChangeLog& log = database_.log();
    const Pos from = from_->checkpoint;
    const Pos last = database_.pos();
    if (from.txid > last.txid || from.txid.next() < log.first_readable()) {
      misfit(fmt::format("the database file is at {}, the change log has {} to {}", from.txid, log.first_readable(),
                         last.txid));
    } else if (const auto known = log.position_at(from.txid); known && from.txid != Txid(0) && *known != from) {
      misfit(fmt::format("the database file is at {}, the change log at {}", from, *known));
    }
    return {};
  }

  /// The file is complete at the checkpoint or later: it has at least the pages of the smallest size since. A change set that
  /// holds every page (new page size, re-creation) needs nothing before it.
  Result<void> check_size() {
    std::uint64_t needed = std::uint64_t{from_->page_count} * from_->page_size;
    std::uint32_t page_size = from_->page_size;
    TRY(database_.log().for_each(from_->checkpoint.txid.next(), [&](const ChangeLog::Handle& record) {
      const RecordInfo& info = record.info;
      if (info.base || info.post.txid <= from_->checkpoint.txid) return true;
      const std::uint64_t size = std::uint64_t{info.commit} * info.page_size;
      needed = info.page_size != page_size ? 0 : std::min(needed, size);
      page_size = info.page_size;
      return true;
    }));
    TRY_ASSIGN(const bool exists, fs_.exists(path_));
    if (needed == 0) return {};
    if (!exists) {
      misfit("the database file is missing");
      return {};
    }
    TRY_ASSIGN(const auto file, fs_.open(path_, {}));
    TRY_ASSIGN(const std::uint64_t size, file->size());
    if (size < needed) misfit(fmt::format("the database file has {} bytes of at least {}", size, needed));
    return {};
  }

  Result<void> replay() {
    TRY(fs_.make_directories(parent_directory(path_)));
    TRY_ASSIGN(const auto file, fs_.open(path_, {.write = true, .create = true}));
    Result<void> status;
    Txid at = from_->checkpoint.txid;
    TRY(database_.log().for_each(at.next(), [&](const ChangeLog::Handle& record) {
      if (record.info.base || record.info.post.txid <= at) return true;
      if (record.info.min_txid != at.next()) {
        misfit(fmt::format("the change log has a gap after {}", at));
        return false;
      }
      status = replay_record(record, *file);
      at = record.info.post.txid;
      ++result_.change_sets;
      return !status.has_error();
    }));
    if (status.has_error() && status.error().code == Errc::corrupt) {
      misfit(status.error().message);
      return {};
    }
    return status;
  }

  Result<void> replay_record(const ChangeLog::Handle& record, File& file) {
    if (record.info.commit == 0) return file.truncate(0);
    const std::uint32_t page_size = record.info.page_size;
    Bytes run;
    std::uint64_t run_at = 0;
    TRY(ltx::decode(image_of(record), record.info.length, [&](Pgno pgno, ByteView page) -> Result<void> {
      const std::uint64_t offset = std::uint64_t{pgno.value() - 1} * page_size;
      if (!run.empty() && (offset != run_at + run.size() || run.size() >= kCopySize)) {
        TRY(file.write_at(run_at, run));
        run.clear();
      }
      if (run.empty()) run_at = offset;
      run.insert(run.end(), page.begin(), page.end());
      return {};
    }));
    return run.empty() ? Result<void>() : file.write_at(run_at, run);
  }

  Result<void> finish() {
    const std::uint32_t page_size = database_.page_size();
    {
      TRY_ASSIGN(const auto file, fs_.open(path_, {.write = true}));
      TRY(file->truncate(std::uint64_t{database_.page_count()} * page_size));
      TRY(check_first_page(*file, page_size));
      if (result_.needs_snapshot) return {};
      TRY(file->sync_data());
      TRY(fs_.sync_directory(parent_directory(path_)));
    }
    TRY(placement_.reset_wal(database_.name(), page_size));
    TRY(move_checkpoint());
    result_.present = true;
    return {};
  }

  /// I3, cheaply: page 1 is in nearly every change set. The scrub compares the rest.
  Result<void> check_first_page(File& file, std::uint32_t page_size) {
    MutexLock lock(database_.commit_mutex());
    const Checksum expected = database_.checksums().get(Pgno(1));
    if (expected == Checksum{}) return {};
    Bytes page(page_size);
    TRY_ASSIGN(const std::size_t n, file.read_at(0, page));
    if (n != page.size() || ltx::page_checksum(Pgno(1), page) != expected) {
      misfit("page 1 is not what the change log says");
    }
    return {};
  }

  Result<Recovered> finish_deleted() {
    // At the deletion itself already: what has that name now is a local file.
    if (from_->checkpoint != database_.pos() || snapshot_) TRY(placement_.remove(database_.name()));
    TRY(move_checkpoint());
    return result_;
  }

  /// The log before the checkpoint: recovery may have replayed records that the page cache had and the disk has not.
  Result<void> move_checkpoint() {
    TRY(database_.log().sync());
    {
      MutexLock lock(database_.commit_mutex());
      TRY(database_.checksums().checkpoint({database_.pos(), database_.page_size(), database_.page_count()}));
    }
    return snapshot_ ? snapshot_->remove() : Result<void>();
  }

  Result<Recovered> unfit(std::string why) {
    result_ = {};
    result_.needs_snapshot = true;
    result_.why = std::move(why);
    TRY_ASSIGN(const std::string moved, placement_.set_aside(database_.name(), "unfit"));
    // The marker last: a crash in between finds it again.
    TRY(SnapshotFiles::clean(fs_, install_directory(store_), escape_name(database_.name()), true));
    LOG_ERROR("{}: {}; {}a snapshot is needed", database_.name(), result_.why, moved.empty() ? "" : "moved to " + moved + ", ");
    return result_;
  }

  const Placement& placement_;
  Store& store_;
  FileSystem& fs_;
  Database& database_;
  const std::string path_;
  std::unique_ptr<SnapshotFiles> snapshot_;
  std::optional<ChecksumsState> from_;  ///< what the file is complete at
  Recovered result_;
};

}  // namespace

std::string install_directory(const Store& store) { return store.data_dir() + "/install"; }

Result<bool> is_recovered(const Store& store, Database& database) {
  FileSystem& fs = store.fs();
  const std::string path = store.backing_path(database.name());
  TRY_ASSIGN(const bool marked, fs.exists(install_directory(store) + "/" + escape_name(database.name()) + ".install"));
  if (marked) return false;
  ChecksumsState state;
  {
    MutexLock lock(database.commit_mutex());
    state = database.checksums().state();
  }
  if (state.checkpoint != database.pos() || state.page_size != database.page_size() ||
      state.page_count != database.page_count() || database.page_count() == 0) {
    return false;
  }
  TRY_ASSIGN(const bool wal_exists, fs.exists(path + "-wal"));
  TRY_ASSIGN(const bool exists, fs.exists(path));
  if (!wal_exists || !exists) return false;
  TRY_ASSIGN(const auto wal, fs.open(path + "-wal", {}));
  TRY_ASSIGN(const std::uint64_t wal_size, wal->size());
  TRY_ASSIGN(const auto file, fs.open(path, {}));
  TRY_ASSIGN(const std::uint64_t size, file->size());
  return wal_size == sqlite::kWalHeaderSize && size == std::uint64_t{state.page_count} * state.page_size;
}

Result<Recovered> recover_database(const Placement& placement, Database& database) {
  return Recovery(placement, database).run();
}

}  // namespace sluice::storage::apply
