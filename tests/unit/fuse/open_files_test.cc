#include "fuse/files/open_files.h"

#include <gtest/gtest.h>

namespace sluice::fuse {
namespace {

TEST(OpenFiles, RemembersHowAFileWasOpened) {
  OpenFiles files;
  const HandleId a = files.add(OpenFile{NodeId(5), true, true, false, nullptr});
  const HandleId b = files.add(OpenFile{NodeId(6), false, false, true, nullptr});
  EXPECT_NE(a, b);
  EXPECT_TRUE(files.find(a)->write_only);
  EXPECT_TRUE(files.find(b)->own);
  files.set_content(b, std::make_shared<const std::string>("text"));
  EXPECT_EQ(*files.find(b)->content, "text");
}

TEST(OpenFiles, SecondRemovalFindsNothing) {
  OpenFiles files;
  const HandleId a = files.add(OpenFile{NodeId(5), false, false, false, nullptr});
  EXPECT_TRUE(files.remove(a));
  EXPECT_FALSE(files.remove(a));
  const HandleId b = files.add(OpenFile{NodeId(6), false, false, false, nullptr});
  EXPECT_NE(a, b);  // same slot, another generation
  EXPECT_FALSE(files.remove(a));
  EXPECT_TRUE(files.find(b));
  EXPECT_FALSE(files.find(HandleId(0xffff'ffff'ffff)));
}

}  // namespace
}  // namespace sluice::fuse
