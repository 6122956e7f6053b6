// A disk that fails under the live files, which apply reaches without a FileSystem: some system calls are replaced.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <string_view>
#include <thread>

#include "tests/unit/apply/support.h"

namespace {

enum class Gate { open, wait, fail };
std::atomic<Gate> database_sync{Gate::open};  ///< fdatasync of a database file of a data directory
std::atomic<int> syncs_waiting{0};
std::atomic<int> wal_unlinks_to_fail{0};
std::atomic<bool> disk_full{false};  ///< for what fallocate() is asked for

bool is_database_file(int fd) {
  std::array<char, 512> path{};
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path.data(), path.size());
  return n > 0 && std::string_view(path.data(), static_cast<std::size_t>(n)).ends_with("/data/fs/app.db");
}

}  // namespace

extern "C" int fdatasync(int fd) {
  if (database_sync != Gate::open && is_database_file(fd)) {
    ++syncs_waiting;
    database_sync.wait(Gate::wait);
    errno = EIO;
    if (database_sync == Gate::fail) return -1;
  }
  return static_cast<int>(::syscall(SYS_fdatasync, fd));
}

extern "C" int unlink(const char* path) noexcept {
  if (std::string_view(path).ends_with("/data/fs/app.db-wal") && wal_unlinks_to_fail > 0) {
    --wal_unlinks_to_fail;
    errno = EIO;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_unlinkat, AT_FDCWD, path, 0));
}

extern "C" int fallocate(int fd, int mode, off_t offset, off_t length) {
  if (disk_full) {
    errno = ENOSPC;
    return -1;
  }
  return static_cast<int>(::syscall(SYS_fallocate, fd, mode, offset, length));
}

namespace sluice::storage::apply_test {
namespace {

class ApplyFaults : public testing::Test {
 protected:
  ~ApplyFaults() override { let(Gate::open); }
  static ReplicaOptions options() {
    ReplicaOptions options;
    options.idle_checkpoint_ms = 20;
    return options;
  }
  static void let(Gate gate) {
    database_sync = gate;
    database_sync.notify_all();
  }
  void expect_healed_by_snapshot() {
    const auto installed = node.snapshot("app.db", source);
    ASSERT_TRUE(installed.has_value()) << installed.error().to_string();
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
    EXPECT_EQ(difference(node.path("app.db"), source.content()), "");
    node.restart(options());
    EXPECT_EQ(node.database("app.db")->logged(), source.pos());
    EXPECT_EQ(file_content(node.path("app.db")), source.content());
  }

  TempDir dir;
  ReplicaNode node{dir.path() + "/data", options()};
  Source source{dir.path() + "/source.db", 4096, "WAL"};
};

//   checkpoint                                     apply
//   fdatasync of the database file ...
//                                                  the database is fine: goes on
//   ... fails: the file lacks pages for good
//                                                  done; must not make it fine again
TEST_F(ApplyFaults, AChangeSetDoesNotHideThatTheDatabaseFileWasNotSynced) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  syncs_waiting = 0;
  let(Gate::wait);
  transfer(source.sql(), 1);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  ASSERT_TRUE(eventually([] { return syncs_waiting > 0; }));

  source.sql().exec("CREATE TABLE big AS SELECT randomblob(3000000) AS b");
  const ChangeSet big = source.next();
  const auto wal_size = [this] { return file_content(node.path("app.db-wal")).size(); };
  const std::size_t before = wal_size();
  const auto replica = node.database("app.db");  // not under the commit lock: the registry's comes first
  Mutex& commit_mutex = node.store().find("app.db")->commit_mutex();
  commit_mutex.lock();
  std::thread applies([&] { EXPECT_TRUE(node.apply("app.db", big).has_value()); });
  // Frames are written before the commit lock is asked for.
  EXPECT_TRUE(eventually([&] { return wal_size() > before + (1u << 20); }));
  let(Gate::fail);
  EXPECT_TRUE(eventually([&] { return replica->logged() == Pos{}; }));
  let(Gate::open);
  commit_mutex.unlock();
  applies.join();
  EXPECT_EQ(node.database("app.db")->logged(), Pos{});
  EXPECT_EQ(*node.database("app.db")->sync(), Txid(0));
  expect_healed_by_snapshot();
}

TEST_F(ApplyFaults, NoRoomForTheWalIndexIsAnErrorAndNotASignal) {
  Source small(dir.path() + "/small.db", 512, "WAL");
  create_accounts(small.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", small.next()).has_value());
  const Pos before = small.pos();
  small.sql().exec("CREATE TABLE big AS SELECT randomblob(3000000) AS b");  // more frames than one block has
  const ChangeSet big = small.next();
  disk_full = true;
  const auto refused = node.apply("app.db", big);
  disk_full = false;
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().code, Errc::no_space);
  EXPECT_EQ(node.database("app.db")->logged(), before);
  ASSERT_TRUE(node.apply("app.db", big).has_value());
  EXPECT_EQ(difference(node.path("app.db"), small.content()), "");
}

TEST_F(ApplyFaults, ADeletionThatStoppedHalfWayTakesNoSnapshotIntoFilesWithoutAName) {
  create_accounts(source.sql(), 100);
  ASSERT_TRUE(node.apply("app.db", source.next()).has_value());
  wal_unlinks_to_fail = 1;
  EXPECT_TRUE(node.apply("app.db", source.remove()).has_error());
  EXPECT_EQ(wal_unlinks_to_fail, 0);
  EXPECT_EQ(node.database("app.db")->logged(), Pos{});
  source.create(4096, "WAL");
  create_accounts(source.sql(), 50);
  source.next();
  expect_healed_by_snapshot();
}

}  // namespace
}  // namespace sluice::storage::apply_test
