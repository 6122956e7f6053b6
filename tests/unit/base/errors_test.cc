#include "base/errors.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <memory>
#include <set>
#include <stdexcept>

#include "base/check.h"

namespace sluice {
namespace {

TEST(Errors, EveryCodeHasItsOwnName) {
  std::set<std::string_view> names;
  for (int i = 0; i <= static_cast<int>(Errc::internal); ++i) names.insert(errc_name(static_cast<Errc>(i)));
  EXPECT_EQ(names.size(), static_cast<std::size_t>(Errc::internal) + 1);
  EXPECT_EQ(errc_name(Errc::stale_epoch), "stale epoch");
}

TEST(Errors, Text) {
  const Error error = with_context("open app.db", make_error(Errc::corrupt, "page 7"));
  EXPECT_EQ(error.to_string(), "corrupt: open app.db: page 7");
  EXPECT_EQ(error.code, Errc::corrupt);
}

TEST(Errors, FromErrno) {
  const auto check = [](int err, Errc code) {
    const Error error = errno_error("write x", err);
    EXPECT_EQ(error.code, code) << err;
    EXPECT_EQ(error.sys_errno, err);
    EXPECT_EQ(error.message.substr(0, 9), "write x: ");
    EXPECT_GT(error.message.size(), 9u);
    EXPECT_EQ(with_context("c", error).sys_errno, err) << "the number survives the context";
  };
  check(ENOSPC, Errc::no_space);
  check(EDQUOT, Errc::no_space);
  check(ENOENT, Errc::not_found);
  check(EEXIST, Errc::exists);
  check(EROFS, Errc::read_only);
  check(EIO, Errc::io);
  check(EACCES, Errc::io);
}

Result<int> half(int n) {
  if (n % 2 != 0) return make_error(Errc::invalid_argument, "odd");
  return n / 2;
}
Result<void> need_even(int n) {
  TRY(half(n));
  return {};
}
Result<std::string> quarter(int n) {
  TRY_ASSIGN(const int once, half(n));
  TRY_ASSIGN(const int twice, half(once));
  return std::to_string(twice);
}
Result<std::unique_ptr<int>> boxed(int n) {
  TRY_ASSIGN(auto value, half(n));
  return std::make_unique<int>(value);
}
Result<int> unboxed(int n) {
  TRY_ASSIGN(auto box, boxed(n));
  return *box;
}

TEST(Errors, TryPassesValuesAndErrors) {
  EXPECT_TRUE(need_even(4).has_value());
  EXPECT_EQ(need_even(3).error().message, "odd");
  EXPECT_EQ(*quarter(8), "2");
  EXPECT_EQ(quarter(6).error().code, Errc::invalid_argument);
  EXPECT_EQ(*unboxed(10), 5) << "move-only values";
  EXPECT_TRUE(unboxed(11).has_error());
}

TEST(Errors, ValueOfAFailedResultThrowsABug) {
  try {
    (void)half(3).value();
    FAIL();
  } catch (const std::logic_error& e) {
    EXPECT_NE(std::string(e.what()).find("odd"), std::string::npos);
  }
}

TEST(CheckDeathTest, AbortsWithTheExpression) {
  const int one = 1;
  CHECK(one == 1);
  EXPECT_DEATH(CHECK(one == 2), "CHECK failed: one == 2 at .*errors_test");
}

}  // namespace
}  // namespace sluice
