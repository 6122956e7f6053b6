// The mount as a directory tree: what every other file system does, it does.
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/fs.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <filesystem>
#include <atomic>
#include <set>
#include <thread>

#include "base/fd.h"
#include "tests/mount/mount_fixture.h"

namespace sluice::fuse {
namespace {

namespace fs = std::filesystem;

class DirectoryTest : public MountFixture {
 protected:
  static std::multiset<std::string> list(const std::string& path) {
    std::multiset<std::string> names;
    for (const auto& entry : fs::directory_iterator(path)) names.insert(entry.path().filename());
    return names;
  }
  static struct stat stat_of(const std::string& path) {
    struct stat st {};
    EXPECT_EQ(::lstat(path.c_str(), &st), 0) << path;
    return st;
  }
};

TEST_F(DirectoryTest, ShowsAsSluiceInTheMountTable) {
  EXPECT_NE(read_text("/proc/self/mounts").find("sluice " + mountpoint_ + " fuse.sluice "), std::string::npos);
  EXPECT_NE(read_text("/proc/self/mounts").find("default_permissions"), std::string::npos);
}

TEST_F(DirectoryTest, FilesMirrorTheBackingTree) {
  fs::create_directories(at("a/b/c"));
  write_text(at("a/b/c/file"), "hello");
  EXPECT_EQ(read_text(backing("a/b/c/file")), "hello");
  EXPECT_EQ(read_text(at("a/b/c/file")), "hello");
  EXPECT_EQ(stat_of(at("a/b/c/file")).st_ino, stat_of(backing("a/b/c/file")).st_ino);
  EXPECT_EQ(stat_of(at("a/b/c/file")).st_size, 5);

  write_text(at("a/b/c/file"), "x");  // truncates
  EXPECT_EQ(read_text(backing("a/b/c/file")), "x");
  EXPECT_EQ(::rmdir(at("a/b").c_str()), -1);
  EXPECT_EQ(errno, ENOTEMPTY);
  EXPECT_EQ(::unlink(at("a/b/c/file").c_str()), 0);
  EXPECT_EQ(::rmdir(at("a/b/c").c_str()), 0);
  EXPECT_FALSE(fs::exists(backing("a/b/c")));
  EXPECT_EQ(::access(at("a/b/c").c_str(), F_OK), -1);
}

TEST_F(DirectoryTest, AppendsAndWritesAtOffsets) {
  write_text(at("f"), "0123456789");
  const UniqueFd append(::open(at("f").c_str(), O_WRONLY | O_APPEND));
  ASSERT_EQ(::write(append.get(), "ab", 2), 2);
  const UniqueFd fd(::open(at("f").c_str(), O_RDWR));
  ASSERT_EQ(::pwrite(fd.get(), "X", 1, 5), 1);
  ASSERT_EQ(::pwrite(fd.get(), "end", 3, 5000), 3);
  const std::string text = read_text(backing("f"));
  EXPECT_EQ(text.substr(0, 12), "01234X6789ab");
  EXPECT_EQ(text.size(), 5003u);
  EXPECT_EQ(text[4000], '\0');
  ASSERT_EQ(::ftruncate(fd.get(), 3), 0);
  EXPECT_EQ(read_text(at("f")), "012");
  ASSERT_EQ(::truncate(at("f").c_str(), 2), 0);
  EXPECT_EQ(read_text(backing("f")), "01");
}

TEST_F(DirectoryTest, LargeFileInAndOut) {
  std::string text;
  for (int i = 0; text.size() < (5u << 20); ++i) text += std::to_string(i) + "\n";
  write_text(at("big"), text);
  EXPECT_TRUE(read_text(backing("big")) == text);
  EXPECT_TRUE(read_text(at("big")) == text);
}

TEST_F(DirectoryTest, CachedReadsCostNoRequest) {
  write_text(at("f"), std::string(100'000, 'x'));
  const UniqueFd fd(::open(at("f").c_str(), O_RDONLY));
  std::string buffer(100'000, '\0');
  ASSERT_EQ(::pread(fd.get(), buffer.data(), buffer.size(), 0), 100'000);
  const auto before = all_requests();
  for (int i = 0; i < 100; ++i) ASSERT_EQ(::pread(fd.get(), buffer.data(), 4096, 4096 * (i % 20)), 4096);
  EXPECT_EQ(all_requests(), before);
  // Also after the file was closed and opened again.
  const auto reads = requests("READ");
  EXPECT_EQ(read_text(at("f")).size(), 100'000u);
  EXPECT_EQ(requests("READ"), reads);
}

TEST_F(DirectoryTest, NamesAreRememberedAlsoMissingOnes) {
  write_text(at("f"), "x");
  EXPECT_EQ(::access(at("missing").c_str(), F_OK), -1);
  struct stat st {};
  ASSERT_EQ(::stat(at("f").c_str(), &st), 0);
  const auto before = all_requests();
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(::access(at("missing").c_str(), F_OK), -1);
    EXPECT_EQ(::stat(at("f").c_str(), &st), 0);
  }
  EXPECT_EQ(all_requests(), before);
}

TEST_F(DirectoryTest, RenameMovesAndReplaces) {
  write_text(at("a"), "a");
  write_text(at("b"), "b");
  const UniqueFd old_b(::open(at("b").c_str(), O_RDWR));
  ASSERT_EQ(::rename(at("a").c_str(), at("b").c_str()), 0);
  EXPECT_EQ(read_text(at("b")), "a");
  EXPECT_FALSE(fs::exists(at("a")));
  // What was replaced goes on for those who have it open.
  char c = 0;
  EXPECT_EQ(::pread(old_b.get(), &c, 1, 0), 1);
  EXPECT_EQ(c, 'b');
  EXPECT_EQ(::pwrite(old_b.get(), "zz", 2, 0), 2);
  EXPECT_EQ(read_text(at("b")), "a");
  struct stat st {};
  ASSERT_EQ(::fstat(old_b.get(), &st), 0);
  EXPECT_EQ(st.st_nlink, 0u);

  write_text(at("c"), "c");
  EXPECT_EQ(::renameat2(AT_FDCWD, at("c").c_str(), AT_FDCWD, at("b").c_str(), RENAME_NOREPLACE), -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(::renameat2(AT_FDCWD, at("c").c_str(), AT_FDCWD, at("d").c_str(), RENAME_NOREPLACE), 0);
  EXPECT_EQ(::renameat2(AT_FDCWD, at("d").c_str(), AT_FDCWD, at("b").c_str(), RENAME_EXCHANGE), -1);
  EXPECT_EQ(errno, EINVAL);
}

TEST_F(DirectoryTest, RenamedDirectoryTakesItsChildrenAlong) {
  fs::create_directories(at("x/y"));
  write_text(at("x/y/f"), "1");
  const UniqueFd open_file(::open(at("x/y/f").c_str(), O_RDWR));
  fs::create_directory(at("z"));
  ASSERT_EQ(::rename(at("x").c_str(), at("z/moved").c_str()), 0);
  EXPECT_EQ(read_text(at("z/moved/y/f")), "1");
  write_text(at("z/moved/y/g"), "2");
  EXPECT_EQ(read_text(backing("z/moved/y/g")), "2");
  ASSERT_EQ(::ftruncate(open_file.get(), 0), 0);
  EXPECT_EQ(read_text(backing("z/moved/y/f")), "");
  EXPECT_FALSE(fs::exists(at("x")));
}

TEST_F(DirectoryTest, UnlinkedFileWorksUntilClosed) {
  write_text(at("f"), "abc");
  UniqueFd fd(::open(at("f").c_str(), O_RDWR));
  ASSERT_EQ(::unlink(at("f").c_str()), 0);
  EXPECT_FALSE(fs::exists(backing("f")));
  ASSERT_EQ(::pwrite(fd.get(), "xyz", 3, 3), 3);
  ASSERT_EQ(::ftruncate(fd.get(), 5), 0);
  ASSERT_EQ(::fsync(fd.get()), 0);
  ASSERT_EQ(::fchmod(fd.get(), 0600), 0);
  char buffer[8] = {};
  EXPECT_EQ(::pread(fd.get(), buffer, 8, 0), 5);
  EXPECT_STREQ(buffer, "abcxy");
  struct stat st {};
  ASSERT_EQ(::fstat(fd.get(), &st), 0);
  EXPECT_EQ(st.st_size, 5);
  EXPECT_EQ(st.st_nlink, 0u);
  // A new file of that name is another one.
  write_text(at("f"), "new");
  EXPECT_EQ(::pread(fd.get(), buffer, 8, 0), 5);
  EXPECT_EQ(read_text(at("f")), "new");
}

TEST_F(DirectoryTest, MappedFile) {
  write_text(at("f"), std::string(8192, 'a'));
  const UniqueFd fd(::open(at("f").c_str(), O_RDWR));
  Mapping map(::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0), 8192);
  ASSERT_NE(map.data(), MAP_FAILED);
  map.data()[5000] = std::byte{'Z'};
  ASSERT_EQ(::msync(map.data(), 8192, MS_SYNC), 0);
  EXPECT_EQ(read_text(backing("f"))[5000], 'Z');
}

TEST_F(DirectoryTest, FiveThousandEntries) {
  fs::create_directory(at("many"));
  for (int i = 0; i < 5000; ++i) ::close(::open(backing("many/file-" + std::to_string(i)).c_str(), O_CREAT | O_WRONLY, 0644));
  const auto names = list(at("many"));
  EXPECT_EQ(names.size(), 5000u);
  EXPECT_EQ(std::set<std::string>(names.begin(), names.end()).size(), 5000u);
  // Removing while listing, as rm -r does, misses none.
  std::error_code error;
  EXPECT_EQ(fs::remove_all(at("many"), error), 5001u) << error.message();
  EXPECT_FALSE(fs::exists(backing("many")));
}

TEST_F(DirectoryTest, ListingFollowsChanges) {
  EXPECT_EQ(list(mountpoint_), (std::multiset<std::string>{".lag"}));
  write_text(at("a"), "");
  EXPECT_EQ(list(mountpoint_), (std::multiset<std::string>{".lag", "a"}));
  ASSERT_EQ(::rename(at("a").c_str(), at("b").c_str()), 0);
  EXPECT_EQ(list(mountpoint_), (std::multiset<std::string>{".lag", "b"}));
  ASSERT_EQ(::unlink(at("b").c_str()), 0);
  EXPECT_EQ(list(mountpoint_), (std::multiset<std::string>{".lag"}));
}

TEST_F(DirectoryTest, SymlinksModesTimesAndRefusals) {
  write_text(at("f"), "x");
  ASSERT_EQ(::symlink("f", at("link").c_str()), 0);
  EXPECT_EQ(read_text(at("link")), "x");
  EXPECT_EQ(fs::read_symlink(backing("link")), "f");
  ASSERT_EQ(::chmod(at("f").c_str(), 0640), 0);
  EXPECT_EQ(stat_of(backing("f")).st_mode & 07777, 0640u);
  ASSERT_EQ(::chown(at("f").c_str(), 1234, 2345), 0);
  EXPECT_EQ(stat_of(backing("f")).st_uid, 1234u);
  EXPECT_EQ(stat_of(at("f")).st_gid, 2345u);
  const timespec times[2] = {{1000, 5}, {2000, 7}};
  ASSERT_EQ(::utimensat(AT_FDCWD, at("f").c_str(), times, 0), 0);
  EXPECT_EQ(stat_of(at("f")).st_mtim.tv_sec, 2000);
  EXPECT_EQ(stat_of(backing("f")).st_mtim.tv_nsec, 7);

  EXPECT_EQ(::link(at("f").c_str(), at("g").c_str()), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::mkfifo(at("fifo").c_str(), 0600), -1);
  EXPECT_EQ(errno, EPERM);
  EXPECT_EQ(::mknod(at("node").c_str(), S_IFREG | 0600, 0), 0);
  EXPECT_EQ(stat_of(backing("node")).st_size, 0);
  EXPECT_EQ(::open(at("f").c_str(), O_CREAT | O_EXCL | O_RDWR, 0600), -1);
  EXPECT_EQ(errno, EEXIST);
  EXPECT_EQ(::open(at(std::string(256, 'n')).c_str(), O_CREAT | O_RDWR, 0600), -1);
  EXPECT_EQ(errno, ENAMETOOLONG);
  EXPECT_GE(UniqueFd(::open(at(std::string(255, 'n')).c_str(), O_CREAT | O_RDWR, 0600)).get(), 0);
  struct statvfs here {};
  struct statvfs there {};
  ASSERT_EQ(::statvfs(mountpoint_.c_str(), &here), 0);
  ASSERT_EQ(::statvfs(backing_.c_str(), &there), 0);
  EXPECT_EQ(here.f_blocks, there.f_blocks);
  const UniqueFd dir(::open(mountpoint_.c_str(), O_RDONLY | O_DIRECTORY));
  EXPECT_EQ(::fsync(dir.get()), 0);
}

TEST_F(DirectoryTest, OtherUsersGetTheirOwnFilesAndNoOthers) {
  ASSERT_EQ(::mkdir(at("open").c_str(), 0755), 0);
  ASSERT_EQ(::chmod(at("open").c_str(), 0777), 0);
  write_text(at("secret"), "x");
  ASSERT_EQ(::chmod(at("secret").c_str(), 0600), 0);
  const int failed = in_child([&] {
    if (::setgroups(0, nullptr) != 0 || ::setgid(65534) != 0 || ::setuid(65534) != 0) return 1;
    ::umask(027);
    if (::open(at("secret").c_str(), O_RDONLY) >= 0 || errno != EACCES) return 2;
    if (::open(at("new").c_str(), O_CREAT | O_WRONLY, 0666) >= 0 || errno != EACCES) return 3;
    if (::open(at("open/mine").c_str(), O_CREAT | O_WRONLY, 0666) < 0) return 4;
    if (::mkdir(at("open/dir").c_str(), 0777) != 0) return 5;
    if (::unlink(at("secret").c_str()) == 0 || errno != EACCES) return 6;
    return 0;
  });
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(stat_of(backing("open/mine")).st_uid, 65534u);
  EXPECT_EQ(stat_of(backing("open/mine")).st_gid, 65534u);
  EXPECT_EQ(stat_of(backing("open/mine")).st_mode & 07777, 0640u);
  EXPECT_EQ(stat_of(backing("open/dir")).st_mode & 07777, 0750u);
}

TEST_F(DirectoryTest, SetGroupIdDirectoryPassesItsGroupOn) {
  ASSERT_EQ(::mkdir(at("shared").c_str(), 0755), 0);
  ASSERT_EQ(::chown(at("shared").c_str(), 0, 777), 0);
  ASSERT_EQ(::chmod(at("shared").c_str(), 02775), 0);
  write_text(at("shared/f"), "");
  ASSERT_EQ(::mkdir(at("shared/sub").c_str(), 0755), 0);
  EXPECT_EQ(stat_of(at("shared/f")).st_gid, 777u);
  EXPECT_EQ(stat_of(at("shared/sub")).st_gid, 777u);
  EXPECT_NE(stat_of(at("shared/sub")).st_mode & S_ISGID, 0u);
}

TEST_F(DirectoryTest, ManyThreadsInOneDirectory) {
  std::atomic<int> failures{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int i = 0; i < 100; ++i) {
        const std::string mine = at("f" + std::to_string(t));
        const std::string shared = at("shared");
        try {
          write_text(mine, std::to_string(i));
          if (read_text(mine) != std::to_string(i)) ++failures;
        } catch (const std::exception&) {
          ++failures;
        }
        ::close(::open(shared.c_str(), O_CREAT | O_RDWR, 0644));
        ::rename(mine.c_str(), (mine + "x").c_str());
        ::unlink(shared.c_str());
        if (::unlink((mine + "x").c_str()) != 0) ++failures;
      }
    });
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  ::unlink(at("shared").c_str());
  EXPECT_EQ(list(mountpoint_), (std::multiset<std::string>{".lag"}));
}

}  // namespace
}  // namespace sluice::fuse
