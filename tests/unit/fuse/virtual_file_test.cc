#include "fuse/files/virtual_file.h"

#include <gtest/gtest.h>

#include <cerrno>

namespace sluice::fuse {
namespace {

class Files : public VirtualFiles {
 public:
  std::string primary() override { return primary_; }
  std::string lag() override { return "+000000007\n"; }
  std::string position(std::string_view database) override { return "pos of " + std::string(database); }
  std::string primary_;
};

TEST(VirtualFile, KindsByPath) {
  EXPECT_EQ(virtual_kind(".primary"), VirtualKind::primary);
  EXPECT_EQ(virtual_kind(".lag"), VirtualKind::lag);
  EXPECT_EQ(virtual_kind("a/b.db-pos"), VirtualKind::position);
  EXPECT_FALSE(virtual_kind("a/.primary"));  // only in the root
  EXPECT_FALSE(virtual_kind("a/-pos"));
  EXPECT_FALSE(virtual_kind("app.db"));
}

TEST(VirtualFile, Attributes) {
  Files files;
  struct stat st {};
  EXPECT_EQ(virtual_attr(files, VirtualKind::primary, ".primary", st), ENOENT);
  files.primary_ = "host\n";
  ASSERT_EQ(virtual_attr(files, VirtualKind::primary, ".primary", st), 0);
  EXPECT_EQ(st.st_size, 5);
  ASSERT_EQ(virtual_attr(files, VirtualKind::lag, ".lag", st), 0);
  EXPECT_EQ(st.st_size, 11);
  EXPECT_EQ(st.st_mode, static_cast<mode_t>(S_IFREG | 0444));
  ASSERT_EQ(virtual_attr(files, VirtualKind::position, "x-pos", st), 0);
  EXPECT_EQ(st.st_size, 34);
}

TEST(VirtualFile, Content) {
  Files files;
  EXPECT_EQ(virtual_content(files, VirtualKind::lag, ".lag"), "+000000007\n");
  EXPECT_EQ(virtual_content(files, VirtualKind::position, "a/b.db-pos"), "pos of a/b.db");
}

}  // namespace
}  // namespace sluice::fuse
