// Capture on the primary: turns committed SQLite transactions into change sets (DESIGN §3; invariants I1-I3).
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/thread_pool.h"
#include "fuse/observer.h"
#include "storage/mount_access.h"
#include "storage/store.h"

namespace sluice::fuse {

struct CaptureOptions {
  Epoch epoch{1};
  int poll_us = 1000;               ///< tail interval while a database is busy
  int idle_after_ms = 200;          ///< unchanged for so long: wait for inotify instead
  std::uint64_t stream_bytes = 8u << 20;   ///< transactions over this are read twice from the WAL instead of kept in memory
  std::uint64_t ahead_bytes = 8u << 20;    ///< most that is kept, for all databases, of transactions that are not committed yet
  std::uint64_t base_bytes = 256u << 20;   ///< a new database over this gets a base record instead of a full change set
  /// Hot takeover: the clients of the process before are still connected to the mount; opened() tells of their files before
  /// anything is served.
  bool clients_connected = false;
  /// Opens the database at this path below the mount as an ordinary SQLite client in another process, which rolls a hot
  /// journal back. Empty: that waits for the first application that opens the database.
  std::function<Result<void>(const std::string& database)> recover_client;
  /// Databases that are not served: their files cannot be opened (OrphanFence::refused()).
  std::map<std::string, Error> refused;
};

struct CaptureCounters;

/// The mount's observer on a primary. Thread-safe.
class Capture : public Observer {
 public:
  /// `pool` is used for captures and parked operations.
  static std::unique_ptr<Capture> create(storage::Store& store, ThreadPool& pool, CaptureOptions options);

  /// Before the mount serves: recovers every database of the backing tree (captures what was committed while no daemon
  /// ran), finds new ones. Nobody has files of the backing tree open: OrphanFence has seen to that (I9).
  virtual Result<void> recover() = 0;
  /// After the mount serves: starts the tail. `access` outlives stop().
  virtual Result<void> start(storage::MountAccess& access) = 0;
  /// Captures what is committed in `database` now and makes it durable. Blocks; not on a FUSE worker.
  virtual Result<void> capture_now(const std::string& database) = 0;
  /// Before unmounting: lets go of the files that capture has open through the mount (they keep it busy), and from now on
  /// holds none longer than it needs.
  virtual void release_mount() = 0;
  virtual const CaptureCounters& counters() const = 0;
  /// After the mount stopped serving. Captures the rest, notes that this was a clean stop.
  virtual void stop() = 0;
};

}  // namespace sluice::fuse
