#include "fuse/fusermount.h"

#include <gtest/gtest.h>

namespace sluice::fuse {
namespace {

TEST(Fusermount, FindsTheLineThatPermitsAllowOther) {
  EXPECT_TRUE(permits_allow_other("user_allow_other"));
  EXPECT_TRUE(permits_allow_other("# a comment\n\tuser_allow_other \r\nmount_max = 1000\n"));
  EXPECT_TRUE(permits_allow_other("user_allow_other # for all\n"));
  EXPECT_FALSE(permits_allow_other(""));
  EXPECT_FALSE(permits_allow_other("#user_allow_other\n"));
  EXPECT_FALSE(permits_allow_other("user_allow_others\nno user_allow_other\n"));
}

}  // namespace
}  // namespace sluice::fuse
