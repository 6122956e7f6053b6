#include "fuse/files/backing_tree.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/unit/fuse/temp_dir.h"

namespace sluice::fuse {
namespace {

TEST(BackingTree, ListsFromAnyPosition) {
  const TempDir dir;
  auto tree = BackingTree::open(dir.path());
  ASSERT_TRUE(tree);
  for (int i = 0; i < 300; ++i) {
    UniqueFd fd;
    ASSERT_EQ(tree->open_file("f" + std::to_string(i), O_CREAT | O_RDWR, 0644, fd), 0);
  }
  std::vector<DirectoryEntry> all;
  std::int64_t at = 0;
  for (std::vector<DirectoryEntry> part; tree->list("", at, part) == 0 && !part.empty();) {
    at = part.back().next;
    all.insert(all.end(), part.begin(), part.end());
  }
  ASSERT_EQ(all.size(), 302u);  // with "." and ".."
  // From each entry's position follows exactly the rest, also after what came before was removed.
  const std::size_t cut = 100;
  for (std::size_t i = 0; i < cut; ++i) (void)tree->unlink(all[i].name);
  std::vector<DirectoryEntry> rest;
  ASSERT_EQ(tree->list("", all[cut - 1].next, rest), 0);
  ASSERT_EQ(rest.size(), all.size() - cut);
  for (std::size_t i = 0; i < rest.size(); ++i) EXPECT_EQ(rest[i].name, all[cut + i].name);
}

TEST(BackingTree, FollowsNoSymlinkOutOfTheTree) {
  const TempDir dir;
  auto tree = BackingTree::open(dir.path());
  ASSERT_TRUE(tree);
  ASSERT_EQ(tree->make_symlink("/etc/passwd", "link"), 0);
  UniqueFd fd;
  EXPECT_EQ(tree->open_file("link", O_RDONLY, 0, fd), ELOOP);
  struct stat st {};
  ASSERT_EQ(tree->stat("link", st), 0);
  EXPECT_TRUE(S_ISLNK(st.st_mode));
}

TEST(BackingTree, MissingDirectoryIsAnError) { EXPECT_FALSE(BackingTree::open("/nonexistent/sluice")); }

TEST(BackingTree, ReadsStopAtTheEnd) {
  const TempDir dir;
  auto tree = BackingTree::open(dir.path());
  UniqueFd fd;
  ASSERT_EQ(tree->open_file("f", O_CREAT | O_RDWR, 0644, fd), 0);
  std::size_t done = 0;
  ASSERT_EQ(write_all(fd.get(), 10, as_bytes("SQLite"), done), 0);
  EXPECT_EQ(done, 6u);
  Bytes buffer(100);
  ASSERT_EQ(read_all(fd.get(), 8, buffer, done), 0);
  EXPECT_EQ(done, 8u);
  EXPECT_FALSE(file_has_magic(fd.get()));
  ASSERT_EQ(write_all(fd.get(), 0, as_bytes(std::string_view("SQLite format 3\0", 16)), done), 0);
  EXPECT_TRUE(file_has_magic(fd.get()));
}

}  // namespace
}  // namespace sluice::fuse
