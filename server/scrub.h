// The background scrub: reads every page of every database now and then, slowly, and compares it with its checksum (I3).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "server/verify.h"
#include "storage/store.h"

namespace sluice::server {

struct ScrubOptions {
  std::int64_t interval_ms = 0;        ///< from the end of one scrub of all databases to the next; <= 0: never
  std::uint64_t bytes_per_second = 0;  ///< 0: as fast as it goes
};

/// Of one database, since the node started.
struct ScrubStatus {
  std::int64_t ended_ms = 0;    ///< of the last, wall clock
  std::uint32_t pages = 0;      ///< read by it
  std::uint64_t bad_pages = 0;  ///< found by it
  std::uint64_t bad_total = 0;  ///< found by all
};

/// Thread-safe. One thread, with the scheduling of any other: it holds the commit lock while it reads a few pages, and a thread
/// that gets no CPU or disk then would hold up writers. What keeps it in the background is its pace, and that pages
/// are brought into the page cache before the lock is taken.
class Scrubber {
 public:
  /// Called for a database with damaged pages, on the scrubber's thread.
  using Damaged = std::function<void(const std::string& name, const VerifyReport& report)>;

  ~Scrubber() { stop(); }
  /// `store` outlives stop().
  void start(storage::Store& store, const ScrubOptions& options, Damaged damaged);
  void stop() EXCLUDES(mutex_);
  std::map<std::string, ScrubStatus> status() const EXCLUDES(mutex_);

 private:
  void run();
  void scrub(storage::Database& database);
  bool wait(std::chrono::nanoseconds duration) EXCLUDES(mutex_);
  bool stopping() const EXCLUDES(mutex_);

  storage::Store* store_ = nullptr;
  ScrubOptions options_;
  Damaged damaged_;
  std::thread thread_;
  mutable Mutex mutex_;
  CondVar wake_;
  bool stopping_ GUARDED_BY(mutex_) = false;
  std::map<std::string, ScrubStatus> status_ GUARDED_BY(mutex_);
};

}  // namespace sluice::server
