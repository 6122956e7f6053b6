// What the kernel may keep of attributes is never wrong: sizes of passthrough files, which change without a request.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/mount/mount_fixture.h"

namespace sluice::fuse {
namespace {

class AttributesTest : public MountFixture {};

off_t size_by_name(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 ? st.st_size : -1;
}

off_t size_by_descriptor(int fd) {
  struct stat st {};
  return ::fstat(fd, &st) == 0 ? st.st_size : -1;
}

// The kernel answers for a -wal that nobody writes to, and asks again once somebody did.
TEST_F(AttributesTest, ASideFileIsAskedForOnlyAfterItChanged) {
  observer_.leave_side_files_alone();
  write_text(at("a.db"), "");
  write_text(at("a.db-wal"), "frames");
  ASSERT_EQ(size_by_name(at("a.db-wal")), 6);
  const std::uint64_t before = requests("GETATTR") + requests("LOOKUP");
  for (int i = 0; i < 100; ++i) ASSERT_EQ(size_by_name(at("a.db-wal")), 6);
  EXPECT_LE(requests("GETATTR") + requests("LOOKUP"), before + 1);
}

TEST_F(AttributesTest, TheSizeOfASideFileIsTrueAfterEveryWriteOfAnotherProcess) {
  observer_.leave_side_files_alone();
  write_text(at("a.db"), "");
  write_text(at("a.db-wal"), "");
  const UniqueFd held(::open(at("a.db-wal").c_str(), O_RDWR | O_CLOEXEC));
  ASSERT_TRUE(held);
  int to_child[2];
  int from_child[2];
  ASSERT_EQ(::pipe(to_child), 0);
  ASSERT_EQ(::pipe(from_child), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const int fd = ::open(at("a.db-wal").c_str(), O_RDWR);
    off_t size = 0;
    char go = 0;
    while (::read(to_child[0], &go, 1) == 1 && go != 'q') {
      const bool cut = go == 'c';
      if (cut ? ::ftruncate(fd, size / 2) != 0 : ::pwrite(fd, "0123456789", 10, size) != 10) ::_exit(1);
      size = cut ? size / 2 : size + 10;
      if (::write(from_child[1], &size, sizeof size) != sizeof size) ::_exit(2);
    }
    ::_exit(0);
  }
  for (int i = 0; i < 500; ++i) {
    const char go = i % 50 == 49 ? 'c' : 'w';
    ASSERT_EQ(::write(to_child[1], &go, 1), 1);
    off_t expected = 0;
    ASSERT_EQ(::read(from_child[0], &expected, sizeof expected), static_cast<ssize_t>(sizeof expected));
    ASSERT_EQ(size_by_descriptor(held.get()), expected) << "step " << i;
    ASSERT_EQ(size_by_name(at("a.db-wal")), expected) << "step " << i;
  }
  ASSERT_EQ(::write(to_child[1], "q", 1), 1);
  int status = -1;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (const int fd : {to_child[0], to_child[1], from_child[0], from_child[1]}) ::close(fd);
}

}  // namespace
}  // namespace sluice::fuse
