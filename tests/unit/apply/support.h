// What the tests of apply share: a plain directory as mount, real SQLite databases as source of change sets, a replica on
// a data directory of its own.
#pragma once

#include <sqlite3.h>
#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/os.h"
#include "storage/replica.h"

namespace sluice::storage::apply_test {

/// Removed with everything in it.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

/// Mount and backing tree are the same directory.
class PlainDirAccess final : public MountAccess {
 public:
  explicit PlainDirAccess(std::string root) : root_(std::move(root)) {}
  Result<UniqueFd> open(const std::string& path, int flags, unsigned mode) override;
  Result<UniqueFd> open_backing(const std::string& path, int flags, unsigned mode) override;
  Result<void> truncate(int mount_fd, std::uint64_t size) override;
  void invalidate(const std::string& path, std::uint64_t offset, std::uint64_t length) override;
  void invalidate_entry(const std::string& path) override;
  std::string backing_path(const std::string& path) const override { return root_ + "/" + path; }
  /// SLUICE_TEST_IO=plain: as on the plain path, with a helper process for the wal-index.
  bool passthrough() const override;

  DescriptorStore* descriptors() override { return kept; }

  DescriptorStore* kept = nullptr;
  std::atomic<int> invalidations{0};
  std::atomic<int> forgotten_entries{0};
  /// Size changes fail with ENOSPC while set.
  std::atomic<bool> full{false};

 private:
  const std::string root_;
};

/// A SQLite connection; every failure throws std::runtime_error with SQLite's message.
class Connection {
 public:
  explicit Connection(const std::string& path, int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  void exec(const std::string& sql);
  /// SQLite's result code instead of an exception.
  int try_exec(const std::string& sql);
  std::int64_t integer(const std::string& sql);
  std::string text(const std::string& sql);
  sqlite3* handle() { return db_; }

 private:
  sqlite3* db_ = nullptr;
};

struct ChangeSet {
  IncomingChangeSet head;
  Bytes image;
};

/// A real database and the change sets of its history. In WAL mode it is checkpointed before each.
class Source {
 public:
  Source(const std::string& path, std::uint32_t page_size, const std::string& journal_mode);
  ~Source();
  Connection& sql() { return *connection_; }
  /// What changed since the last call, as one change set.
  ChangeSet next();
  /// Deletes the database, and its change set.
  ChangeSet remove();
  /// Creates it again (after remove()).
  void create(std::uint32_t page_size, const std::string& journal_mode);
  const Bytes& content() const { return content_; }
  Pos pos() const { return pos_; }
  std::uint32_t page_size() const { return page_size_; }
  std::uint32_t pages() const { return page_size_ == 0 ? 0 : static_cast<std::uint32_t>(content_.size() / page_size_); }
  SnapshotEnd end() const;
  Epoch epoch{1};

 private:
  ChangeSet encode(const Bytes& now, std::uint32_t page_size);

  const std::string path_;
  std::unique_ptr<Connection> connection_;
  Bytes content_;
  std::uint32_t page_size_ = 0;
  Pos pos_;
};

/// The accounts: SUM(v) is always 0 and COUNT(*) of journal always meta.n.
void create_accounts(Connection& sql, int accounts);
void transfer(Connection& sql, int number);

/// As a node does it: with an executable that runs serve_index_helper().
Result<HelperProcess> start_index_helper();

class ReplicaNode {
 public:
  explicit ReplicaNode(const std::string& data_dir, ReplicaOptions options = {}, FileSystem& fs = real_file_system());
  ~ReplicaNode();
  /// Stops (or drops without a last checkpoint) and opens again.
  void restart(ReplicaOptions options = {});
  void close();
  Replica& replica() { return *replica_; }
  Store& store() { return *store_; }
  PlainDirAccess& access() { return *access_; }
  std::shared_ptr<ReplicaDatabase> database(const std::string& name);
  std::string path(const std::string& name) const { return data_dir_ + "/fs/" + name; }
  Result<void> apply(const std::string& name, const ChangeSet& change);
  Result<void> snapshot(const std::string& name, const Source& source, const std::vector<std::uint32_t>& leave_out = {});
  const std::string& data_dir() const { return data_dir_; }
  /// The process that maps wal-indexes; -1: none was started.
  int helper_pid() const { return helper_pid_; }

 private:
  std::atomic<int> helper_pid_{-1};
  void open(ReplicaOptions options);

  const std::string data_dir_;
  FileSystem& fs_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Store> store_;
  std::unique_ptr<PlainDirAccess> access_;
  std::unique_ptr<Replica> replica_;
};

/// What a primary sends to a replica that says what it has: the pages of `content` that differ from the offer, at most
/// `most` of them (more: the snapshot is aborted, Errc::cancelled). Returns how many.
Result<std::size_t> send_differences(ReplicaDatabase& database, const Bytes& content, const SnapshotEnd& end,
                                     std::size_t most = static_cast<std::size_t>(-1));
Result<void> apply_to(ReplicaDatabase& database, const ChangeSet& change);
/// The database as `connection`'s read transaction sees it, page by page; compared with `expected`.
std::string difference(const std::string& path, const Bytes& expected);
Bytes file_content(const std::string& path);
bool exists(const std::string& path);
/// Waits for `condition`, at most `seconds`.
bool eventually(const std::function<bool()>& condition, int seconds = 20);

/// A program of ours with a pipe to its standard input (closed: it shall end) and from its standard output.
class Child {
 public:
  explicit Child(const std::vector<std::string>& arguments);
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  pid_t pid() const { return pid_; }
  void close_input();
  void write_line();
  /// Blocks for a line; empty at the end of the output.
  std::string read_line();
  /// Exit status; -signal if it was killed.
  int wait();
  void kill();

 private:
  pid_t pid_ = -1;
  int input_ = -1;
  int output_ = -1;
};

}  // namespace sluice::storage::apply_test
