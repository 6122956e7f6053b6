#include "storage/mount_access.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <chrono>

#include "tests/unit/fuse/temp_dir.h"

namespace sluice::storage {
namespace {

class OfdLockTest : public ::testing::Test {
 protected:
  UniqueFd open() const { return UniqueFd(::open((dir_.path() + "/f").c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644)); }

  fuse::TempDir dir_;
};

TEST_F(OfdLockTest, ExcludesOtherDescriptionsOnTheSameRange) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  ASSERT_TRUE(ofd_lock(a.get(), F_WRLCK, 120, 2));
  EXPECT_EQ(ofd_lock(b.get(), F_RDLCK, 121, 1).error().code, Errc::busy);
  EXPECT_TRUE(ofd_lock(b.get(), F_WRLCK, 122, 1));
  EXPECT_TRUE(ofd_is_locked(b.get(), 120, 1).value());
  EXPECT_FALSE(ofd_is_locked(a.get(), 120, 1).value());  // one's own does not count
  ASSERT_TRUE(ofd_lock(a.get(), F_RDLCK, 120, 2));       // an atomic downgrade
  EXPECT_TRUE(ofd_lock(b.get(), F_RDLCK, 121, 1));
  EXPECT_TRUE(ofd_is_locked(b.get(), 120, 1).value());  // conflicts with a write lock
  ASSERT_TRUE(ofd_lock(a.get(), F_UNLCK, 120, 2));
  EXPECT_FALSE(ofd_is_locked(b.get(), 120, 1).value());
}

TEST_F(OfdLockTest, WaitsUntilItsDeadlineOnly) {
  const UniqueFd a = open();
  const UniqueFd b = open();
  ASSERT_TRUE(ofd_lock(a.get(), F_WRLCK, 0, 1));
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(ofd_lock_wait(b.get(), F_WRLCK, 0, 1, 30).error().code, Errc::busy);
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(29));
  ASSERT_TRUE(ofd_lock(a.get(), F_UNLCK, 0, 1));
  EXPECT_TRUE(ofd_lock_wait(b.get(), F_WRLCK, 0, 1, 0));
}

TEST_F(OfdLockTest, BadDescriptorIsNotBusy) {
  EXPECT_EQ(ofd_lock(-1, F_WRLCK, 0, 1).error().code, Errc::io);
  EXPECT_FALSE(ofd_is_locked(-1, 0, 1));
  EXPECT_EQ(lock_holders(-1, 0, 1), "");
}

TEST_F(OfdLockTest, HoldersAreProcessesWithPosixLocksInTheRange) {
  const UniqueFd a = open();
  struct flock lock {};
  lock.l_type = F_WRLCK;
  lock.l_start = 100;
  lock.l_len = 0;  // to the end
  ASSERT_EQ(::fcntl(a.get(), F_SETLK, &lock), 0);
  EXPECT_EQ(lock_holders(a.get(), 1000, 1), std::to_string(::getpid()));
  EXPECT_EQ(lock_holders(a.get(), 99, 1), "");
  EXPECT_EQ(lock_holders(a.get(), 0, 0), std::to_string(::getpid()));
}

}  // namespace
}  // namespace sluice::storage
