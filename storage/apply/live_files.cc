#include "storage/apply/live_files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <chrono>

#include "base/log.h"
#include "storage/apply/fresh_wal.h"
#include "storage/apply/io.h"
#include "storage/ids.h"

namespace sluice::storage::apply {

using sqlite::ShmLock;

namespace {

constexpr const char* kDatabaseLabel = "db-";
constexpr const char* kShmLabel = "shm-";

/// Names of kept descriptors are short; which file one is of is checked when it is taken.
std::string label_of(const char* kind, const std::string& name) {
  std::uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : name) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return kind + to_hex(hash);
}

}  // namespace

bool LiveFiles::were_left(MountAccess& access, const std::string& name) {
  const DescriptorStore* const descriptors = access.descriptors();
  return descriptors != nullptr && descriptors->has(label_of(kDatabaseLabel, name)) && descriptors->has(label_of(kShmLabel, name));
}

// Closing gives the locks back only where nobody keeps copies. Who does closes them in its own time, or never if this process dies now.
LiveFiles::~LiveFiles() {
  DescriptorStore* const descriptors = access_.descriptors();
  if (descriptors == nullptr) return;
  if (mount_shm_) {
    unlock(ShmLock::write, 9);  // DMS, too
    descriptors->drop(label_of(kShmLabel, name_));
  }
  if (mount_database_) {
    (void)ofd_lock(mount_database_.get(), F_UNLCK, sqlite::kPendingByte, 2 + sqlite::kSharedSize);
    descriptors->drop(label_of(kDatabaseLabel, name_));
  }
}

UniqueFd LiveFiles::take_left(const std::string& label, int backing) const {
  DescriptorStore* const descriptors = access_.descriptors();
  if (descriptors == nullptr) return {};
  UniqueFd left = descriptors->take(label);
  struct stat there {};
  struct stat wanted {};
  const bool same = left && ::fstat(left.get(), &there) == 0 && ::fstat(backing, &wanted) == 0 && there.st_ino == wanted.st_ino;
  return same ? std::move(left) : UniqueFd();
}

void LiveFiles::keep(const std::string& label, int fd) const {
  DescriptorStore* const descriptors = access_.descriptors();
  if (descriptors == nullptr) return;
  const Result<void> kept = descriptors->keep(label, fd);
  if (kept.has_error()) LOG_WARN("{}: its locks would not outlive this process: {}", name_, kept.error().message);
}

namespace {

/// Of a file that is in the backing tree. Recovery may have put it there while the kernel remembered that there is none: at a takeover
/// the mount is older than the recovery.
Result<UniqueFd> open_through_mount(MountAccess& access, const std::string& name) {
  auto opened = access.open(name, O_RDWR);
  if (!opened.has_error() || opened.error().code != Errc::not_found) return opened;
  access.invalidate_entry(name);
  return access.open(name, O_RDWR);
}

}  // namespace

Result<std::unique_ptr<LiveFiles>> LiveFiles::open(MountAccess& access, std::string name) {
  std::unique_ptr<LiveFiles> files(new LiveFiles(access, std::move(name)));
  TRY_ASSIGN(files->database_, access.open_backing(files->name_, O_RDWR));
  const std::string label = label_of(kDatabaseLabel, files->name_);
  files->mount_database_ = files->take_left(label, files->database_.get());
  files->inherited_database_ = static_cast<bool>(files->mount_database_);
  if (!files->mount_database_) {
    TRY_ASSIGN(files->mount_database_, open_through_mount(access, files->name_));
    files->keep(label, files->mount_database_.get());
  }
  return files;
}

Result<void> LiveFiles::lock_shared(int wait_ms) {
  const int fd = mount_database_.get();
  TRY(ofd_lock_wait(fd, F_RDLCK, sqlite::kPendingByte, 1, wait_ms));
  const Result<void> shared = ofd_lock_wait(fd, F_RDLCK, sqlite::kSharedFirst, sqlite::kSharedSize, wait_ms);
  TRY(ofd_lock(fd, F_UNLCK, sqlite::kPendingByte, 1));
  return shared;
}

Result<void> LiveFiles::lock_exclusive(int wait_ms) {
  // PENDING first, so that new readers wait; RESERVED and the shared bytes follow it in the file.
  const int fd = mount_database_.get();
  Result<void> locked = ofd_lock_wait(fd, F_WRLCK, sqlite::kPendingByte, 1, wait_ms);
  if (!locked.has_error()) {
    locked = ofd_lock_wait(fd, F_WRLCK, sqlite::kReservedByte, 1 + sqlite::kSharedSize, wait_ms);
    if (locked.has_error()) TRY(ofd_lock(fd, F_UNLCK, sqlite::kPendingByte, 1));
  }
  if (locked.has_error() && locked.error().code == Errc::busy) {
    return make_error(Errc::busy, name_ + " is in use by " +
                                      lock_holders(fd, sqlite::kPendingByte, 2 + sqlite::kSharedSize));
  }
  return locked;
}

Result<void> LiveFiles::downgrade() {
  const int fd = mount_database_.get();
  TRY(ofd_lock(fd, F_RDLCK, sqlite::kSharedFirst, sqlite::kSharedSize));
  return ofd_lock(fd, F_UNLCK, sqlite::kPendingByte, 2);
}

Result<UniqueFd> LiveFiles::open_beside(const std::string& path, UniqueFd* through_mount) {
  auto existing = access_.open(path, O_RDWR);
  const bool created = existing.has_error() && existing.error().code == Errc::not_found;
  if (created) existing = access_.open(path, O_RDWR | O_CREAT, 0644);
  TRY_ASSIGN(UniqueFd mounted, std::move(existing));
  TRY_ASSIGN(UniqueFd backing, access_.open_backing(path, O_RDWR));
  if (created) inherit_owner(backing.get(), access_.backing_path(name_), 0666);
  if (through_mount != nullptr) *through_mount = std::move(mounted);
  return backing;
}

Result<void> LiveFiles::open_wal(std::uint32_t page_size, int wait_ms) {
  TRY_ASSIGN(wal_, open_beside(wal_name(), access_.passthrough() ? nullptr : &mount_wal_));
  TRY_ASSIGN(const std::uint64_t wal_size, file_size(wal_.get(), wal_name()));
  if (wal_size == 0) {
    const FreshWalHeader fresh = make_fresh_wal_header(page_size, 0);
    TRY(write_wal(0, fresh.bytes));
  }
  const std::string label = label_of(kShmLabel, name_);
  if (auto shm = access_.open_backing(shm_name(), O_RDWR)) mount_shm_ = take_left(label, shm->get());
  inherited_shm_ = static_cast<bool>(mount_shm_);
  if (inherited_shm_) {
    TRY_ASSIGN(shm_, access_.open_backing(shm_name(), O_RDWR));
  } else {
    TRY_ASSIGN(shm_, open_beside(shm_name(), &mount_shm_));
    keep(label, mount_shm_.get());
  }
  // A client that comes first truncates and recovers under the write lock of this byte. We never need to truncate: what
  // the file says is judged, and put right, under the WRITE lock.
  return ofd_lock_wait(mount_shm_.get(), F_RDLCK, static_cast<std::uint64_t>(ShmLock::dms), 1, wait_ms);
}

Result<void> LiveFiles::write_wal(std::uint64_t offset, ByteView data) {
  return write_full(mount_wal_ ? mount_wal_.get() : wal_.get(), offset, data, wal_name());
}

Result<void> LiveFiles::lock(ShmLock first, unsigned count, int wait_ms) {
  return ofd_lock_wait(mount_shm_.get(), F_WRLCK, static_cast<std::uint64_t>(first), count, wait_ms);
}

bool LiveFiles::try_lock(ShmLock first, unsigned count) {
  return !ofd_lock(mount_shm_.get(), F_WRLCK, static_cast<std::uint64_t>(first), count).has_error();
}

void LiveFiles::unlock(ShmLock first, unsigned count) {
  // Unlocking bytes of one's own open file cannot conflict; ENOLCK needs a lock table that is full.
  (void)ofd_lock(mount_shm_.get(), F_UNLCK, static_cast<std::uint64_t>(first), count);
}

Result<void> LiveFiles::lock_each(ShmLock first, unsigned count, int wait_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(wait_ms);
  for (unsigned i = 0; i < count; ++i) {
    const auto byte = static_cast<ShmLock>(static_cast<std::uint32_t>(first) + i);
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - std::chrono::steady_clock::now());
    const int left_ms = left.count() > 0 ? static_cast<int>(left.count()) : 0;
    const Result<void> locked = lock(byte, 1, left_ms);
    if (!locked.has_error()) continue;
    if (i > 0) unlock(first, i);
    if (locked.error().code != Errc::busy && locked.error().code != Errc::deadline) return locked;
    return make_error(Errc::busy, name_ + ": still being read after " + std::to_string(wait_ms) + " ms by " +
                                      readers());
  }
  return {};
}

std::string LiveFiles::readers() const {
  return lock_holders(mount_shm_.get(), static_cast<std::uint64_t>(ShmLock::read0), 5);
}

Result<void> LiveFiles::resize_database(std::uint64_t size) {
  return access_.truncate(mount_database_.get(), size);
}

Result<void> LiveFiles::resize_shm(std::uint64_t size) { return access_.truncate(mount_shm_.get(), size); }

Result<void> LiveFiles::resize_wal(std::uint64_t size) {
  TRY_ASSIGN(const UniqueFd mounted, access_.open(wal_name(), O_RDWR));
  return access_.truncate(mounted.get(), size);
}

}  // namespace sluice::storage::apply
