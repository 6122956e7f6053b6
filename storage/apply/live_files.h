// The open files of one database that a replica maintains, and SQLite's locks on them. Locks and sizes go through the
// mount, contents through the backing tree.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "storage/mount_access.h"
#include "storage/sqlite/wal_index.h"

namespace sluice::storage::apply {

/// Not thread-safe except for the locks: those of different bytes may be taken and given back by different threads. Locks
/// belong to this object's open files, so two threads of ours do not exclude each other by them.
class LiveFiles {
 public:
  /// Opens the database file, not yet locked. Errc::not_found when it is not there.
  static Result<std::unique_ptr<LiveFiles>> open(MountAccess& access, std::string name);
  /// Did the process before this one have the database open, and left its descriptors?
  static bool were_left(MountAccess& access, const std::string& name);
  /// Lets go of the locks, also in the descriptors that were kept for the next process (MountAccess::descriptors).
  ~LiveFiles();

  /// After open_wal(): what the locks are on was left by the process before us, which held them until now: nobody else can have
  /// changed -wal or -shm. Locks of the wal-index that we have not asked for may be held.
  bool inherited() const { return inherited_database_ && inherited_shm_; }

  /// SHARED, by way of PENDING as unixLock() takes it: while held, nobody deletes -wal or -shm or changes the journal mode.
  Result<void> lock_shared(int wait_ms);
  /// EXCLUSIVE: nobody is connected in WAL mode or reading in rollback mode. Errc::busy names the holders.
  Result<void> lock_exclusive(int wait_ms);
  /// EXCLUSIVE -> SHARED without a gap.
  Result<void> downgrade();

  /// Opens or creates -wal (never leaving it empty: a header for `page_size` at least) and -shm, and joins the users of the
  /// -shm (SQLite's DMS lock), after which nobody truncates it. SHARED is held.
  Result<void> open_wal(std::uint32_t page_size, int wait_ms);

  /// Write locks of `count` bytes of the -shm from `first`.
  Result<void> lock(sqlite::ShmLock first, unsigned count, int wait_ms);
  bool try_lock(sqlite::ShmLock first, unsigned count);
  void unlock(sqlite::ShmLock first, unsigned count);
  /// All but DMS: what the process before us may have left.
  void unlock_all() { unlock(sqlite::ShmLock::write, 8); }
  /// The write lock of each of `count` bytes in turn, keeping those it has got: new readers cannot starve it. Errc::busy
  /// with the holders' pids, and none is kept.
  Result<void> lock_each(sqlite::ShmLock first, unsigned count, int wait_ms);
  /// "pid 4711" of those who hold the read marks.
  std::string readers() const;

  /// Sets the size of the database, -shm or -wal through the mount: a FUSE request, never under a commit lock.
  Result<void> resize_database(std::uint64_t size);
  Result<void> resize_shm(std::uint64_t size);
  Result<void> resize_wal(std::uint64_t size);

  const std::string& name() const { return name_; }
  std::string wal_name() const { return name_ + "-wal"; }
  std::string shm_name() const { return name_ + "-shm"; }
  MountAccess& access() { return access_; }
  int database() const { return database_.get(); }  ///< backing
  int wal() const { return wal_.get(); }            ///< backing; to read
  int shm() const { return shm_.get(); }            ///< backing
  int mount_shm() const { return mount_shm_.get(); }
  /// Writes to the WAL so that readers see it: with passthrough in the backing file, else through the mount (a FUSE request that
  /// waits for nothing but the disk; a commit lock may be held).
  Result<void> write_wal(std::uint64_t offset, ByteView data);

 private:
  LiveFiles(MountAccess& access, std::string name) : access_(access), name_(std::move(name)) {}
  Result<UniqueFd> open_beside(const std::string& path, UniqueFd* through_mount);
  UniqueFd take_left(const std::string& label, int backing) const;
  void keep(const std::string& label, int fd) const;

  MountAccess& access_;
  const std::string name_;
  UniqueFd mount_database_;
  UniqueFd mount_shm_;
  UniqueFd mount_wal_;  ///< only without passthrough
  UniqueFd database_;
  UniqueFd wal_;
  UniqueFd shm_;
  bool inherited_database_ = false;
  bool inherited_shm_ = false;
};

}  // namespace sluice::storage::apply
