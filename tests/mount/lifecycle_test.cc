// Starting and stopping, changes beside the mount, locks from both sides, virtual files.
#include <fcntl.h>
#include <poll.h>
#include <gmock/gmock.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "base/fd.h"
#include "tests/mount/mount_fixture.h"

namespace sluice::fuse {
namespace {

using ::testing::HasSubstr;

class LifecycleTest : public MountFixture {
 protected:
  std::string start_error(const MountOptions& o) {
    auto mount = Mount::start(o, observer_, virtual_files_, *pool_);
    return mount ? "" : mount.error().to_string();
  }
};

TEST_F(LifecycleTest, RefusesBadMountPoints) {
  MountOptions o = options();
  EXPECT_THAT(start_error(o), HasSubstr("already a Sluice mount"));
  o.mountpoint = directory_ + "/missing";
  EXPECT_THAT(start_error(o), HasSubstr("no such directory"));
  write_text(directory_ + "/file", "x");
  o.mountpoint = directory_ + "/file";
  EXPECT_THAT(start_error(o), HasSubstr("not a directory"));
  std::filesystem::create_directories(directory_ + "/full/x");
  o.mountpoint = directory_ + "/full";
  EXPECT_THAT(start_error(o), HasSubstr("not empty"));
  std::filesystem::create_directory(backing_ + "/inside");
  o.mountpoint = backing_ + "/inside";
  EXPECT_THAT(start_error(o), HasSubstr("contain one another"));
  o.mountpoint = directory_;
  EXPECT_THAT(start_error(o), HasSubstr("contain one another"));
}

void leave_dead_mount(const std::string& path, const char* type) {
  std::filesystem::create_directory(path);
  const UniqueFd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  const std::string data = "fd=" + std::to_string(device.get()) + ",rootmode=40000,user_id=0,group_id=0";
  ASSERT_EQ(::mount("x", path.c_str(), type, 0, data.c_str()), 0);
}

TEST_F(LifecycleTest, ReplacesTheMountOfADeadNode) {
  MountOptions o = options();
  o.mountpoint = directory_ + "/dead";
  leave_dead_mount(o.mountpoint, "fuse.sluice");
  auto mount = Mount::start(o, observer_, virtual_files_, *pool_);
  ASSERT_TRUE(mount) << mount.error().message;
  EXPECT_TRUE((*mount)->stop(1000));
  EXPECT_TRUE(std::filesystem::is_empty(o.mountpoint));  // nothing is mounted below either
}

TEST_F(LifecycleTest, ForeignDeadMountIsNamedWithItsCure) {
  MountOptions o = options();
  o.mountpoint = directory_ + "/dead";
  leave_dead_mount(o.mountpoint, "fuse.other");
  EXPECT_THAT(start_error(o), HasSubstr("umount -l " + o.mountpoint));
  ::umount2(o.mountpoint.c_str(), MNT_DETACH);
}

TEST_F(LifecycleTest, NeedsCapabilityAndSaysSo) {
  const int failed = in_child([&] {
    std::filesystem::create_directory(directory_ + "/m2");
    ::chmod(backing_.c_str(), 0755);
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return 1;
    MountOptions o = options();
    o.mountpoint = directory_ + "/m2";  // not that user's: fusermount3 refuses
    o.allow_other = false;
    auto mount = Mount::start(o, observer_, virtual_files_, *pool_);
    if (mount) return 2;
    return mount.error().message.find("CAP_SYS_ADMIN") != std::string::npos ? 0 : 3;
  });
  EXPECT_EQ(failed, 0);
}

TEST_F(LifecycleTest, TakesThePathThatItIsToldOrCan) {
  EXPECT_EQ(mount_->io_path(), test_io_path());
  EXPECT_EQ(mount_->access().passthrough(), !plain_path());
  stop_mount();
  MountOptions o = options();
  o.io = IoPath::automatic;
  auto mount = Mount::start(o, observer_, virtual_files_, *pool_);
  ASSERT_TRUE(mount) << mount.error().message;
  EXPECT_EQ((*mount)->io_path(), IoPath::native);  // these tests run where it is to be had
  EXPECT_TRUE((*mount)->stop(1000));
}

// What replicas and capture on the plain path rest on: reading through the mount agrees with a client's mapping.
TEST_F(LifecycleTest, OwnReadsAgreeWithMappingsOfClients) {
  sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x);");
  int to[2] = {};
  int from[2] = {};
  ASSERT_EQ(::pipe2(to, O_CLOEXEC), 0);
  ASSERT_EQ(::pipe2(from, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::alarm(60);
    ::close(to[1]);
    const int fd = ::open(at("app.db-shm").c_str(), O_RDWR | O_CREAT, 0644);
    if (::ftruncate(fd, 32768) != 0) ::_exit(1);
    auto* map = static_cast<char*>(::mmap(nullptr, 32768, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    for (char value = 1; value < 100; ++value) {
      __atomic_store_n(&map[100], value, __ATOMIC_SEQ_CST);
      if (::write(from[1], &value, 1) != 1 || ::read(to[0], &value, 1) != 1) ::_exit(2);
    }
    ::_exit(0);
  }
  char value = 0;
  UniqueFd own;
  for (int i = 1; i < 100; ++i) {
    ASSERT_EQ(::read(from[0], &value, 1), 1);
    if (!own) own = std::move(mount_->access().open("app.db-shm", O_RDWR, 0)).value();
    char seen = 0;
    EXPECT_EQ(::pread(own.get(), &seen, 1, 100), 1);
    EXPECT_EQ(seen, i);
    ASSERT_EQ(::write(to[1], &value, 1), 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (const int fd : {to[0], to[1], from[0], from[1]}) ::close(fd);
}

TEST_F(LifecycleTest, StopsAndStartsAgain) {
  write_text(at("f"), "x");
  EXPECT_TRUE(mount_->stop(1000));
  EXPECT_TRUE(mount_->stop(1000));  // idempotent
  EXPECT_FALSE(std::filesystem::exists(at("f")));
  mount_.reset();
  start_mount();
  EXPECT_EQ(read_text(at("f")), "x");
}

TEST_F(LifecycleTest, StopsWithFilesOpen) {
  sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x);");
  write_text(at("f"), std::string(100'000, 'x'));
  const UniqueFd file(::open(at("f").c_str(), O_RDWR));
  EXPECT_TRUE(mount_->stop(200));
  char c = 0;
  EXPECT_EQ(::pwrite(file.get(), &c, 1, 0), -1);
  EXPECT_FALSE(std::filesystem::exists(at("f")));
  mount_.reset();
  start_mount();
  EXPECT_EQ(read_text(at("f")).size(), 100'000u);
}

TEST_F(LifecycleTest, WaitsForTheLastClient) {
  write_text(at("f"), "x");
  int ready[2] = {};
  ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(at("f").c_str(), O_RDWR);
    if (::write(ready[1], "r", 1) != 1) ::_exit(1);
    ::poll(nullptr, 0, 300);
    ::_exit(::pwrite(fd, "y", 1, 0) == 1 ? 0 : 2);
  }
  char c = 0;
  ASSERT_EQ(::read(ready[0], &c, 1), 1);
  EXPECT_TRUE(mount_->stop(10'000));
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_text(backing("f")), "y");
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_F(LifecycleTest, ExternalUnmountEndsTheSession) {
  std::atomic<int> ended{0};
  mount_->on_session_end([&] { ++ended; });
  ASSERT_EQ(::umount2(mountpoint_.c_str(), 0), 0);
  EXPECT_TRUE(wait_for([&] { return ended == 1; }));
  // Our own way does not lead into the directory below.
  EXPECT_FALSE(mount_->access().open("stray", O_CREAT | O_RDWR, 0644));
  EXPECT_FALSE(std::filesystem::exists(at("stray")));
  EXPECT_TRUE(mount_->stop(1000));
  EXPECT_EQ(ended, 1);
}

TEST_F(LifecycleTest, StopIsNotTheEndOfTheSession) {
  std::atomic<int> ended{0};
  mount_->on_session_end([&] { ++ended; });
  EXPECT_TRUE(mount_->stop(1000));
  EXPECT_EQ(ended, 0);
}

TEST_F(LifecycleTest, InvalidateShowsChangedPages) {
  write_text(at("f"), std::string(20'000, 'a'));
  const UniqueFd fd(::open(at("f").c_str(), O_RDONLY));
  std::string buffer(20'000, '\0');
  ASSERT_EQ(::pread(fd.get(), buffer.data(), buffer.size(), 0), 20'000);
  {
    auto direct = mount_->access().open_backing("f", O_RDWR, 0);
    ASSERT_TRUE(direct);
    ASSERT_EQ(::pwrite(direct->get(), "BBBB", 4, 8192), 4);
    ASSERT_EQ(::pwrite(direct->get(), "CCCC", 4, 16384), 4);
  }
  ASSERT_EQ(::pread(fd.get(), buffer.data(), 4, 8192), 4);
  EXPECT_EQ(buffer.substr(0, 4), "aaaa");  // cached, as promised
  mount_->access().invalidate("f", 8192, 4);
  ASSERT_EQ(::pread(fd.get(), buffer.data(), 4, 8192), 4);
  EXPECT_EQ(buffer.substr(0, 4), "BBBB");
  ASSERT_EQ(::pread(fd.get(), buffer.data(), 4, 16384), 4);
  EXPECT_EQ(buffer.substr(0, 4), "aaaa");
  mount_->access().invalidate("f", 0, 0);
  ASSERT_EQ(::pread(fd.get(), buffer.data(), 4, 16384), 4);
  EXPECT_EQ(buffer.substr(0, 4), "CCCC");
  mount_->access().invalidate("never/looked/up", 0, 0);
}

TEST_F(LifecycleTest, FilesInstalledBesideTheMountAppear) {
  write_text(at("f"), "old");
  const UniqueFd old_file(::open(at("f").c_str(), O_RDWR));
  struct stat before {};
  ASSERT_EQ(::fstat(old_file.get(), &before), 0);
  EXPECT_FALSE(std::filesystem::exists(at("fresh")));  // a negative entry
  write_text(backing("tmp"), "new content");
  ASSERT_EQ(::rename(backing("tmp").c_str(), backing("f").c_str()), 0);
  write_text(backing("fresh"), "1");
  mount_->access().invalidate_entry("f");
  mount_->access().invalidate_entry("fresh");
  EXPECT_EQ(read_text(at("f")), "new content");
  EXPECT_EQ(read_text(at("fresh")), "1");
  struct stat after {};
  ASSERT_EQ(::stat(at("f").c_str(), &after), 0);
  EXPECT_NE(after.st_ino, before.st_ino);
  // Who had the old one keeps it.
  char buffer[4] = {};
  EXPECT_EQ(::pread(old_file.get(), buffer, 3, 0), 3);
  EXPECT_STREQ(buffer, "old");
  EXPECT_EQ(::pwrite(old_file.get(), "OLD", 3, 0), 3);
  EXPECT_EQ(read_text(at("f")), "new content");

  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(mountpoint_)) names.push_back(entry.path().filename());
  EXPECT_THAT(names, ::testing::UnorderedElementsAre(".lag", "f", "fresh"));
  write_text(backing("unseen"), "never looked up");
  mount_->access().invalidate_entry("unseen");
  names.clear();
  for (const auto& entry : std::filesystem::directory_iterator(mountpoint_)) names.push_back(entry.path().filename());
  EXPECT_THAT(names, ::testing::UnorderedElementsAre(".lag", "f", "fresh", "unseen"));
}

TEST_F(LifecycleTest, ReplacedWithoutInvalidationIsNoticedAtOpen) {
  write_text(at("f"), "old");
  // While somebody has the old file open, opens by the old name share it.
  ASSERT_TRUE(wait_for([&] { return observer_.saw([](const SeenOp& op) { return op.released && op.path == "f"; }); }));
  write_text(backing("tmp"), "new");
  ASSERT_EQ(::rename(backing("tmp").c_str(), backing("f").c_str()), 0);
  EXPECT_EQ(read_text(at("f")), "new");
}

TEST_F(LifecycleTest, OpenFileKeepsItsLockDomainAcrossInvalidation) {
  sqlite("app.db", "CREATE TABLE t(x);");
  auto first = mount_->access().open("app.db", O_RDWR, 0);
  ASSERT_TRUE(first);
  ASSERT_TRUE(storage::ofd_lock(first->get(), F_WRLCK, 100, 1));
  mount_->access().invalidate_entry("app.db");
  auto second = mount_->access().open("app.db", O_RDWR, 0);
  ASSERT_TRUE(second);
  const auto locked = storage::ofd_lock(second->get(), F_WRLCK, 100, 1);
  ASSERT_FALSE(locked);
  EXPECT_EQ(locked.error().code, Errc::busy);
}

TEST_F(LifecycleTest, LocksConflictBetweenClientsAndOurselves) {
  sqlite("app.db", "PRAGMA journal_mode=WAL; CREATE TABLE t(x);");
  auto try_posix = [&](const std::string& file, short type, off_t start) {
    return in_child([&] {
      const int fd = ::open(at(file).c_str(), O_RDWR);
      struct flock lock {};
      lock.l_type = type;
      lock.l_whence = SEEK_SET;
      lock.l_start = start;
      lock.l_len = 1;
      return ::fcntl(fd, F_SETLK, &lock) == 0 ? 0 : (errno == EAGAIN || errno == EACCES ? 1 : 2);
    });
  };
  const UniqueFd keep(::open(at("app.db-shm").c_str(), O_RDWR | O_CREAT, 0644));
  for (const std::string file : {"app.db", "app.db-shm"}) {
    auto own = mount_->access().open(file, O_RDWR, 0);
    ASSERT_TRUE(own);
    // Ours against a client's.
    ASSERT_TRUE(storage::ofd_lock(own->get(), F_WRLCK, 120, 1));
    EXPECT_EQ(try_posix(file, F_WRLCK, 120), 1);
    EXPECT_EQ(try_posix(file, F_RDLCK, 120), 1);
    EXPECT_EQ(try_posix(file, F_WRLCK, 121), 0);
    ASSERT_TRUE(storage::ofd_lock(own->get(), F_RDLCK, 120, 1));
    EXPECT_EQ(try_posix(file, F_RDLCK, 120), 0);
    ASSERT_TRUE(storage::ofd_lock(own->get(), F_UNLCK, 120, 1));
    EXPECT_EQ(try_posix(file, F_WRLCK, 120), 0);

    // A client's against ours; gone when the client is killed.
    int ready[2] = {};
    ASSERT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    const pid_t child = ::fork();
    if (child == 0) {
      const int fd = ::open(at(file).c_str(), O_RDWR);
      struct flock lock {};
      lock.l_type = F_WRLCK;
      lock.l_start = 128;
      lock.l_len = 1;
      if (::fcntl(fd, F_SETLK, &lock) != 0 || ::write(ready[1], "r", 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char c = 0;
    ASSERT_EQ(::read(ready[0], &c, 1), 1);
    const auto requests_before = all_requests();
    EXPECT_TRUE(storage::ofd_is_locked(own->get(), 128, 1).value());
    EXPECT_FALSE(storage::ofd_is_locked(own->get(), 129, 1).value());
    EXPECT_EQ(storage::ofd_lock(own->get(), F_RDLCK, 128, 1).error().code, Errc::busy);
    EXPECT_EQ(all_requests(), requests_before);
    EXPECT_EQ(storage::lock_holders(own->get(), 128, 1), std::to_string(child));
    EXPECT_EQ(storage::ofd_lock_wait(own->get(), F_WRLCK, 128, 1, 30).error().code, Errc::busy);
    ::kill(child, SIGKILL);
    EXPECT_TRUE(storage::ofd_lock_wait(own->get(), F_WRLCK, 128, 1, 10'000));
    ::waitpid(child, nullptr, 0);
    ::close(ready[0]);
    ::close(ready[1]);
  }
}

TEST_F(LifecycleTest, VirtualFiles) {
  auto list = [&](const std::string& path) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(at(path))) names.push_back(entry.path().filename());
    return names;
  };
  EXPECT_FALSE(std::filesystem::exists(at(".primary")));
  virtual_files_.set_primary("node-a\n");
  EXPECT_EQ(read_text(at(".primary")), "node-a\n");
  virtual_files_.set_primary("node-bb\n");
  EXPECT_EQ(read_text(at(".primary")), "node-bb\n");
  struct stat st {};
  ASSERT_EQ(::stat(at(".primary").c_str(), &st), 0);
  EXPECT_EQ(st.st_size, 8);
  EXPECT_EQ(st.st_mode, static_cast<mode_t>(S_IFREG | 0444));
  EXPECT_EQ(read_text(at(".lag")), "+000000000\n");

  ASSERT_EQ(::mkdir(at("sub").c_str(), 0755), 0);
  EXPECT_FALSE(std::filesystem::exists(at("sub/app.db-pos")));
  sqlite("sub/app.db", "CREATE TABLE t(x);");
  EXPECT_EQ(read_text(at("sub/app.db-pos")), "0000000000000001/8000000000000000\n");
  const UniqueFd position(::open(at("sub/app.db-pos").c_str(), O_RDONLY));
  char buffer[64] = {};
  EXPECT_EQ(::read(position.get(), buffer, 20), 20);
  virtual_files_.set_position("0000000000000002/8000000000000000\n");
  EXPECT_EQ(::read(position.get(), buffer + 20, 40), 14);  // the rest of what the first read saw
  EXPECT_STREQ(buffer, "0000000000000001/8000000000000000\n");
  EXPECT_EQ(::pread(position.get(), buffer, 64, 0), 34);
  EXPECT_EQ(buffer[15], '2');
  ASSERT_EQ(::stat(at("sub/app.db-pos").c_str(), &st), 0);
  EXPECT_EQ(st.st_size, 34);

  EXPECT_THAT(list(""), ::testing::UnorderedElementsAre(".primary", ".lag", "sub"));
  EXPECT_THAT(list("sub"), ::testing::UnorderedElementsAre("app.db"));
  virtual_files_.set_primary("");
  mount_->invalidate_virtual(".primary");
  EXPECT_TRUE(wait_for([&] { return list("").size() == 2; }));
  EXPECT_FALSE(std::filesystem::exists(at(".primary")));

  EXPECT_EQ(::open(at(".lag").c_str(), O_RDWR), -1);
  EXPECT_EQ(errno, EACCES);
  EXPECT_EQ(::unlink(at("sub/app.db-pos").c_str()), -1);
  EXPECT_EQ(::rename(at("sub/app.db").c_str(), at(".lag").c_str()), -1);
  EXPECT_EQ(::truncate(at(".lag").c_str(), 0), -1);
  // A user's own file of that name wins.
  write_text(at("mine-pos"), "plain");
  EXPECT_EQ(read_text(at("mine-pos")), "plain");
  ASSERT_EQ(::unlink(at("sub/app.db").c_str()), 0);
  EXPECT_FALSE(std::filesystem::exists(at("sub/app.db-pos")));
  EXPECT_TRUE(wait_for([&] { return list("sub").empty(); }));
}

}  // namespace
}  // namespace sluice::fuse
