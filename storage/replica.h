// The replica's side of the databases: receives change sets and snapshots, logs them, applies them to SQLite's files while
// readers go on. Invariants I4 and I5 (DESIGN §5). Transport-free: replication/ drives it, tests drive it directly.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "storage/mount_access.h"
#include "storage/snapshot.h"
#include "storage/store.h"

namespace sluice::storage {

/// The process that maps wal-indexes (storage/apply/index_helper.h): our end of a SOCK_SEQPACKET pair whose other end it has,
/// and its id.
struct HelperProcess {
  UniqueFd socket;
  int pid = -1;
};

struct ReplicaOptions {
  std::uint32_t checkpoint_frames = 1000;    ///< backfill when the WAL has this many frames that are not
  std::uint32_t max_wal_frames = 100'000;    ///< over this, warn with the pid of the reader that pins the WAL
  int idle_checkpoint_ms = 1000;             ///< backfill this long after the last change
  int exclusive_wait_ms = 5000;              ///< replace (page size change, snapshot with other page size): wait for readers
  /// Hot takeover: the mount's clients were connected to the process before this one, and read on.
  bool resume = false;
  bool hold_write_locks = false;             ///< replica-writes: wait — clients may open read-write and get BUSY
  /// Starts a process that runs serve_index_helper() and has no /dev/fuse open. Needed where -shm is not passthrough.
  std::function<Result<HelperProcess>()> start_index_helper;
  bool start_asleep = false;                 ///< databases that need nothing stay closed until they change
  /// More than so many are not kept open; the others sleep. Not with hold_write_locks, which needs all of them open.
  std::size_t most_awake = 256;
};

/// What a change set says of itself before its bytes arrive.
struct IncomingChangeSet {
  Epoch epoch;
  Pos pre;
  Pos post;
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;
  std::int64_t timestamp_ms = 0;
  std::uint64_t length = 0;
};

/// One database on a replica. Calls are serialised by the caller, but sync(), which may run beside the others, and the
/// positions; they block on the disk.
class ReplicaDatabase {
 public:
  virtual ~ReplicaDatabase() = default;
  virtual const std::string& name() const = 0;
  /// Position of the log (received), and of what readers see. logged() is Pos{} while the content is not usable (an error
  /// after the point of no return, files that do not fit the log): a snapshot, or the history from TXID 1, heals it.
  virtual Pos logged() const = 0;
  virtual Pos applied() const = 0;
  virtual Epoch epoch() const = 0;

  /// I4. Errc::position when `pre` is not logged(); Errc::stale_epoch when the epoch is older than the newest seen.
  virtual Result<void> begin_change_set(const IncomingChangeSet& head) = 0;
  virtual Result<void> change_set_bytes(ByteView bytes) = 0;
  /// Verifies the whole image (structure, file checksum, post-apply checksum against the page checksums), appends it to
  /// the log, applies it. Errc::corrupt / Errc::position: nothing was changed, resynchronise. Errc::busy: readers are in
  /// the way of a page size change; nothing was changed, offer it again. Any other error: see logged(); unless it is
  /// Pos{} nothing was changed (a full disk, say), offer it again later.
  virtual Result<void> finish_change_set() = 0;
  virtual void abort_change_set() = 0;

  /// For a primary that sends only what differs: what is here, in the content at logged() and in a snapshot that was broken
  /// off. Works for some milliseconds, computing checksums that are not known; true: `offer` is complete, false: call
  /// again. A change set, or the end of a snapshot, begins anew.
  virtual Result<bool> prepare_offer(PageOffer& offer) = 0;
  /// The page checksums behind the offer, from page `first` on; 0: not here, or not as it should be.
  virtual Result<void> offered_sums(Pgno first, std::span<std::uint64_t> out) = 0;

  /// A snapshot: pages in any order, the last version counts. Collected beside the live database and installed at the end
  /// after its checksum over all pages equals end.pos.checksum; with the same page size only differing pages are applied, as
  /// one change set, so readers see no break. Pages not sent are taken from a snapshot of that page size that was aborted
  /// before, then from the database as it is. Errc::corrupt, Errc::stale_epoch and Errc::busy (readers in the way of another
  /// page size): nothing was changed.
  virtual Result<void> begin_snapshot(std::uint32_t page_size, std::uint32_t pages) = 0;
  virtual Result<void> snapshot_page(Pgno pgno, ByteView content) = 0;
  virtual Result<void> finish_snapshot(const SnapshotEnd& end) = 0;
  /// What was collected stays for the next offer.
  virtual void abort_snapshot() = 0;

  /// These pages are not what their checksums say (none named: it is not known which; every page is read for the next offer).
  /// What is offered next leaves them out, so that the primary sends them.
  virtual void mark_damaged(std::span<const Pgno> pages) = 0;
  /// Marked, and not replaced by a snapshot since.
  virtual std::size_t damaged() = 0;

  /// I5: makes what was received durable; returns the TXID that may be acknowledged as durable.
  virtual Result<Txid> sync() = 0;
};

/// All databases of a replica. Thread-safe.
class Replica {
 public:
  /// Before the mount starts: recovers every database of the store (WAL and wal-index are disposable on a replica, the log
  /// above the backfilled TXID is replayed into the database file), so that no client ever opens one that is half-way.
  /// Databases of a directory last used as primary are moved to DATA/lost+found. Records the role. A database that
  /// does not fit its log is no error: it will ask for a snapshot.
  static Result<void> recover(Store& store);
  /// Opens every database of the store, recovering what recover() was not called for. `pool` runs checkpoints.
  static Result<std::unique_ptr<Replica>> open(Store& store, MountAccess& access, ThreadPool& pool,
                                               ReplicaOptions options);
  virtual ~Replica() = default;
  virtual Result<std::shared_ptr<ReplicaDatabase>> database(const std::string& name) = 0;
  virtual std::vector<std::shared_ptr<ReplicaDatabase>> list() const = 0;
  /// The primary does not have this database: its files go to DATA/lost+found, never just away.
  virtual Result<void> discard(const std::string& name) = 0;
  /// Backfills what can be, releases locks, stops timers.
  virtual void stop() = 0;
};

}  // namespace sluice::storage
