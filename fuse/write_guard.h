// The mount's observer on a replica: clients read databases, only the node itself (MountAccess) changes them.
// What SQLite says to a writer follows from the errno chosen here (DESIGN §5).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "fuse/observer.h"

namespace sluice::fuse {

struct WriteGuardOptions {
  /// replica-writes: wait. Databases may be opened read-write; the node holds SQLite's write locks, so
  /// writers get BUSY.
  bool allow_write_opens = false;
  /// Is `name` a database that this node replicates (with content)? A database that only this node has is an
  /// ordinary file that may be deleted or renamed. Thread-safe, quick.
  std::function<bool(std::string_view name)> is_replicated;
  /// Is there a replicated database below this directory? Thread-safe, quick.
  std::function<bool(std::string_view directory)> has_replicated_below;
};

/// Thread-safe. Never blocks: everything runs inline.
class WriteGuard final : public Observer {
 public:
  explicit WriteGuard(WriteGuardOptions options) : options_(std::move(options)) {}

  /// Clients may open databases from now on. Before, opens get EAGAIN: recovery has not made the files whole
  /// yet.
  void start_serving() { serving_ = true; }

  bool can_run_inline(const Op&) override { return true; }
  int run(const Op& op, FunctionRef<int()> perform) override;
  void opened(const Op&) override {}
  void released(const Op&) override {}
  bool writable() const override { return options_.allow_write_opens; }

 private:
  /// 0, or the errno that refuses the operation.
  int refuse(const Op& op) const;
  int refuse_open(const Op& op) const;
  int refuse_rename(const Op& op) const;

  const WriteGuardOptions options_;
  std::atomic<bool> serving_{false};
};

}  // namespace sluice::fuse
