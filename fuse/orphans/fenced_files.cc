#include "fuse/orphans/fenced_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>

#include "base/log.h"

namespace sluice::fuse {
namespace {

ino_t inode_of(const std::string& path) {
  struct stat st {};
  return ::lstat(path.c_str(), &st) == 0 ? st.st_ino : 0;
}

// With the rights of the file it takes the place of, so that those who could open that one can open this one.
void inherit_rights(int fd, const std::string& model) {
  struct stat st {};
  if (::stat(model.c_str(), &st) != 0) return;
  if (::fchown(fd, st.st_uid, st.st_gid) != 0) LOG_DEBUG("{}: cannot hand its owner on", model);
  if (::fchmod(fd, st.st_mode & 07777) != 0) LOG_WARN("{}: cannot hand its permissions on", model);
}

bool same_wal(const sqlite::WalCut& a, const sqlite::WalCut& b) {
  return a.empty == b.empty && (a.empty || (a.header.salts == b.header.salts && a.header.checksum == b.header.checksum));
}

}  // namespace

FencedFiles::FencedFiles(storage::Store& store, std::string name, std::string directory, bool can_stop)
    : store_(store),
      fs_(store.fs()),
      name_(std::move(name)),
      directory_(std::move(directory)),
      path_(store.backing_path(name_)),
      can_stop_(can_stop) {}

// The -wal keeps its old name, too, until there is something to put in its place: whoever looks into DATA/fs after a crash
// finds a whole database. An immutable file could not be moved.
Result<void> FencedFiles::take_aside() {
  TRY(fs_.make_directories(directory_));
  TRY_ASSIGN(const bool replaced, wal_replaced());
  if (!replaced && inode_of(wal()) == 0 && ::link((path_ + "-wal").c_str(), wal().c_str()) != 0 && errno != ENOENT)
    return errno_error("link " + path_ + "-wal to " + wal(), errno);
  if (inode_of(path_ + "-shm") != 0 && inode_of(shm()) == 0) TRY(fs_.rename(path_ + "-shm", shm()));
  TRY(fs_.sync_directory(directory_));
  TRY(fs_.sync_directory(parent_directory(directory_)));
  return fs_.sync_directory(parent_directory(path_));
}

Result<void> FencedFiles::stop_orphans() {
  if (inode_of(wal()) != 0 && can_stop_) TRY(set_immutable(wal(), true));
  return boost::system::in_place_value;
}

Result<void> FencedFiles::poison() {
  if (inode_of(shm()) == 0) return boost::system::in_place_value;
  TRY_ASSIGN(const auto index, fs_.open(shm(), {.write = true}));
  std::array<std::byte, sqlite::kWalIndexHeaderSize> bytes{};
  TRY_ASSIGN(const std::size_t n, index->read_at(0, bytes));
  if (n < bytes.size()) return boost::system::in_place_value;  // never used: whoever begins to must open files, and cannot
  sqlite::WalIndexHeader header;
  const auto state = sqlite::read_header(bytes.data(), header);
  if (state == sqlite::HeaderState::valid && header.version == sqlite::kPoisonedVersion) return boost::system::in_place_value;
  sqlite::poison_header(bytes.data());
  // pwrite, not a mapping: somebody may truncate the file, and a mapping would then kill us.
  return index->write_at(0, ByteView(bytes).first(2 * sizeof(sqlite::WalIndexHeader)));
}

// Which frames count. A commit is acknowledged when its writer has published it in the wal-index, but a writer that had written
// its last frame before the -wal became immutable can do that at any time later, even after the poison:
//
//   orphan                                        here
//   lock WRITE
//   write the commit frame
//                                                 -wal immutable
//                                                 WRITE is locked: the commit frame counts
//   publish, unlock, COMMIT returns
//
// So the locks are looked at first. Nobody writing: what the index says is final, and complete transactions behind it are failed
// commits (synchronous=FULL), which stay failed. Nobody connected through this index, as far as can be seen: the chain decides,
// as in SQLite's recovery.
Result<FencedFiles::Committed> FencedFiles::committed() {
  Committed result;
  const ino_t shm_inode = inode_of(shm());
  const ShmLocks locks = shm_inode != 0 ? shm_locks(shm_inode) : ShmLocks{};
  std::array<std::byte, sqlite::kWalIndexHeaderSize> bytes{};
  std::size_t n = 0;
  if (shm_inode != 0) {
    TRY_ASSIGN(const auto index, fs_.open(shm(), {}));
    TRY_ASSIGN(n, index->read_at(0, bytes));
  }
  sqlite::WalIndexHeader header;
  const bool valid = n == bytes.size() && sqlite::read_header(bytes.data(), header) != sqlite::HeaderState::invalid;
  TRY(poison());
  if (inode_of(wal()) == 0) return result;
  TRY_ASSIGN(const auto file, fs_.open(wal(), {}));
  TRY_ASSIGN(result.cut, sqlite::find_committed(*file, valid ? &header : nullptr));
  const bool final_index = locks.connected && !locks.writing && result.cut.index_counts;
  result.frames = final_index ? result.cut.published : result.cut.complete;
  if (valid && header.salts == result.cut.header.salts && result.frames < header.mx_frame)
    LOG_ERROR("{}: its wal-index has {} frames, its WAL only {}", name_, header.mx_frame, result.frames);
  return result;
}

Result<bool> FencedFiles::wal_replaced() const {
  const ino_t old = inode_of(wal());
  return old != 0 && inode_of(path_ + "-wal") != old;
}

Result<void> FencedFiles::put_copy(const Committed& committed, bool over_immutable) {
  const std::string temporary = store_.tmp_dir() + "/fence-" + storage::escape_name(name_);
  {
    TRY_ASSIGN(const auto from, fs_.open(wal(), {}));
    TRY_ASSIGN(const auto to, fs_.open(temporary, {.write = true, .create = true}));
    TRY(to->truncate(0));
    inherit_rights(to->fd(), wal());
    // With a header even if no frame counts: an empty file was emptied by somebody else, see extend_copy().
    if (!committed.cut.empty) TRY(sqlite::copy_committed(*from, committed.cut.header, committed.frames, *to));
    TRY(to->sync_data());
  }
  if (over_immutable) TRY(set_immutable(wal(), false));  // also where an earlier start could make it so and this one could not
  Result<void> renamed = fs_.rename(temporary, path_ + "-wal");
  TRY(stop_orphans());
  TRY(renamed);
  kept_frames_ = committed.frames;
  return fs_.sync_directory(parent_directory(path_));
}

// An earlier start came to the replacement and died: orphans may have written while the file could be renamed.
Result<void> FencedFiles::extend_copy(const Committed& committed) {
  const std::string path = path_ + "-wal";
  if (inode_of(path) == 0) {
    LOG_WARN("{}: somebody used it in DATA/fs while no node ran; its fenced WAL is not looked at again", name_);
    return boost::system::in_place_value;
  }
  sqlite::WalCut copied;
  {
    TRY_ASSIGN(const auto file, fs_.open(path, {}));
    TRY_ASSIGN(copied, sqlite::find_committed(*file, nullptr));
  }
  kept_frames_ = copied.complete;
  if (copied.complete >= committed.frames || !same_wal(copied, committed.cut))
    return boost::system::in_place_value;
  return put_copy(committed, false);
}

Result<void> FencedFiles::replace() {
  TRY_ASSIGN(const bool replaced, wal_replaced());
  TRY_ASSIGN(const Committed first, committed());
  if (inode_of(wal()) == 0) return boost::system::in_place_value;
  if (replaced) return extend_copy(first);
  TRY(put_copy(first, true));
  // The rename needed a moment in which the old file could be written.
  TRY_ASSIGN(const Committed second, committed());
  if (second.frames == first.frames && same_wal(first.cut, second.cut)) return boost::system::in_place_value;
  LOG_INFO("{}: a process committed while its WAL was being moved: copying it again", name_);
  return put_copy(second, false);
}

Result<void> FencedFiles::finish() {
  TRY(poison());
  TRY(write_file_atomically(fs_, directory_ + "/done", as_bytes(name_ + "\n")));
  return boost::system::in_place_value;
}

Result<bool> FencedFiles::is_done() const { return fs_.exists(directory_ + "/done"); }

Result<void> FencedFiles::remove() {
  if (inode_of(wal()) != 0) TRY(set_immutable(wal(), false));
  TRY_ASSIGN(const auto entries, fs_.list(directory_));
  // The marker last: without it the next start would go on with the fence.
  for (const DirEntry& entry : entries)
    if (entry.name != "done") TRY(fs_.unlink(directory_ + "/" + entry.name));
  TRY_ASSIGN(const bool marked, is_done());
  if (marked) TRY(fs_.unlink(directory_ + "/done"));
  return fs_.remove_directory(directory_);
}

std::vector<FileIdentity> FencedFiles::identities() const {
  const std::string base = name_.substr(name_.rfind('/') + 1);
  return {{base + "-wal", inode_of(wal())}, {base + "-shm", inode_of(shm())}};
}

}  // namespace sluice::fuse
