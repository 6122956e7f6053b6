// The FUSE session: libfuse's protocol engine over our own /dev/fuse descriptor, its worker threads, and the table of
// request handlers.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/errors.h"
#include "base/fd.h"
#include "base/mutex.h"
#include "fuse/operations.h"
#include "fuse/passthrough.h"
#include "fuse/protocol.h"
#include "fuse/request_run.h"
#include "fuse/takeover/in_flight.h"

struct fuse_session;

namespace sluice::fuse {

/// Thread-safe after create().
class Session {
 public:
  /// `device`: /dev/fuse, already mounted. Takes it over. `state`: what outlives this process; nullptr: nothing.
  static Result<std::unique_ptr<Session>> create(UniqueFd device, Operations& operations, unsigned max_threads,
                                                 unsigned stack_depth, takeover::State* state = nullptr);
  /// The workers must have ended (wait_ended).
  ~Session();

  /// Starts the workers and waits for the kernel's INIT. Errc::deadline if it does not come. On a connection taken over: repeats
  /// the INIT exchange of the process that began it (Errc::unsupported: this program would have answered otherwise), and asks the
  /// kernel for what was not answered.
  Result<void> start(int deadline_ms);
  /// After start(): did the kernel offer passthrough?
  bool passthrough_offered() const { return init_.offered(); }
  fuse_session* handle() { return session_; }
  /// After start(): can the kernel send unanswered requests again (Linux 6.9)?
  bool can_resend() const { return init_.can_resend(); }

  /// True once every worker has ended: the file system was unmounted or the connection aborted.
  bool wait_ended(int timeout_ms) EXCLUDES(mutex_);
  /// Called once by the last worker to end; at once if they have ended already. Must not wait for the session.
  void on_end(std::function<void()> callback) EXCLUDES(mutex_);

  std::map<std::string, std::uint64_t> request_counts() const;

 private:
  Session(Operations& operations, unsigned max_threads, unsigned stack_depth, takeover::State* state);

  static ssize_t read_hook(int fd, void* buffer, std::size_t size, void* user);
  static ssize_t write_hook(int fd, iovec* parts, int count, void* user);
  Result<void> take_over();
  ssize_t give_saved_init(void* buffer, std::size_t size);
  ssize_t save_init_reply(int fd, const iovec* parts, int count);
  bool admit(int fd, const protocol::InHeader& header);
  void work();
  void add_worker() EXCLUDES(mutex_);
  void worker_ended() EXCLUDES(mutex_);
  void init_answered() EXCLUDES(mutex_);

  friend struct Handlers;

  Operations& operations_;
  const unsigned max_threads_;
  InitPatch init_;
  takeover::State* const state_;
  std::optional<takeover::InFlight> in_flight_;
  bool repeating_init_ = false;  // before there are workers
  bool init_differs_ = false;
  fuse_session* session_ = nullptr;
  std::array<std::atomic<std::uint64_t>, 64> counts_{};
  std::atomic<int> idle_{0};  // workers waiting for a request
  RequestRun run_;

  mutable Mutex mutex_;
  CondVar changed_;
  bool initialised_ GUARDED_BY(mutex_) = false;
  bool ended_ GUARDED_BY(mutex_) = false;
  unsigned running_ GUARDED_BY(mutex_) = 0;
  std::function<void()> on_end_ GUARDED_BY(mutex_);
  std::vector<std::thread> threads_ GUARDED_BY(mutex_);
};

}  // namespace sluice::fuse
