// A real mount in a temporary directory, with an observer that records (and can refuse or park) every operation, and
// helpers to run programs and child processes on it. Needs root and /dev/fuse; without them the tests fail.
#pragma once

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "fuse/mount.h"

namespace sluice::fuse {

/// A copy of an Op.
struct SeenOp {
  OpKind kind{};
  FileKind file{};
  std::string path, database, new_path;
  std::uint64_t offset = 0, size = 0, length = 0;
  FileKind replaced_kind{};
  bool replaces = false, write_access = false, write_only = false, own = false, unlinked = false;
  bool opened = false, released = false;  ///< from opened() / released() instead of run()

  /// "write database app.db 0+4096", "truncate journal app.db-journal 0", "rename database a.db b.db" …
  std::string text() const;
};

/// Lets everything through and remembers it. Thread-safe.
class RecordingObserver : public Observer {
 public:
  bool can_run_inline(const Op& op) override;
  int run(const Op& op, FunctionRef<int()> perform) override;
  void opened(const Op& op) override;
  void released(const Op& op) override;
  bool writable() const override { return true; }
  bool changes_side_files() const override { return changes_side_files_; }

  /// As on a primary: the kernel may keep the attributes of -wal and -shm.
  void leave_side_files_alone() { changes_side_files_ = false; }
  void park_everything() { park_ = true; }
  /// Answers an errno (not 0) instead of performing.
  void refuse(std::function<int(const Op&)> rule);

  std::vector<SeenOp> take();
  /// text() of everything seen since the last take(), without opens and releases.
  std::vector<std::string> take_changes();
  bool saw(const std::function<bool(const SeenOp&)>& match) const;
  std::size_t parked() const { return parked_; }

 private:
  void remember(const Op& op, bool opened, bool released);

  mutable std::mutex mutex_;
  std::vector<SeenOp> seen_;
  std::function<int(const Op&)> rule_;
  std::atomic<bool> changes_side_files_{true};
  std::atomic<bool> park_{false};
  std::atomic<std::size_t> parked_{0};
};

class FakeVirtualFiles : public VirtualFiles {
 public:
  std::string primary() override;
  std::string lag() override { return "+000000000\n"; }
  std::string position(std::string_view database) override;
  void set_primary(std::string text);
  void set_position(std::string text);

 private:
  std::mutex mutex_;
  std::string primary_;
  std::string position_ = "0000000000000001/8000000000000000\n";
};

struct RunResult {
  int status = -1;  ///< exit code, or 128 + signal
  std::string output;
};

class MountFixture : public ::testing::Test {
 protected:
  MountFixture();
  ~MountFixture() override;
  void SetUp() override;
  void TearDown() override;

  MountOptions options() const;
  /// Mounts (SetUp does it with allow_other).
  void start_mount();
  void stop_mount();
  std::string at(const std::string& path) const { return mountpoint_ + "/" + path; }
  std::string backing(const std::string& path) const { return backing_ + "/" + path; }

  /// Runs `sql` with the sqlite3 shell on a database of the mount; fails the test if it fails, unless `may_fail`.
  std::string sqlite(const std::string& database, const std::string& sql, bool may_fail = false);
  static RunResult run(const std::vector<std::string>& arguments, const std::string& input = "");
  /// Requests of one kind since start.
  std::uint64_t requests(const std::string& opcode) const;
  std::uint64_t all_requests() const;
  /// Runs `body` in a child process; its return value is the exit code. Waits for it at most 60 s.
  static int in_child(const std::function<int()>& body);

  std::string directory_, mountpoint_, backing_;
  RecordingObserver observer_;
  FakeVirtualFiles virtual_files_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Mount> mount_;
};

/// The I/O path that the tests run on: SLUICE_TEST_IO, native if it is not set.
IoPath test_io_path();
inline bool plain_path() { return test_io_path() == IoPath::plain; }

/// Waits until `condition` holds, at most `deadline_ms`.
bool wait_for(const std::function<bool()>& condition, int deadline_ms = 10'000);
std::string read_text(const std::string& path);
/// Creates or replaces; throws std::runtime_error on failure.
void write_text(const std::string& path, const std::string& text);

}  // namespace sluice::fuse
