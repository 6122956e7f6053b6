#include "base/strong_int.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <unordered_set>

namespace sluice {
namespace {

using Apples = StrongInt<struct ApplesTag, std::uint32_t>;
using Pears = StrongInt<struct PearsTag, std::uint32_t>;

static_assert(!std::is_convertible_v<std::uint32_t, Apples>, "explicit in");
static_assert(!std::is_convertible_v<Apples, std::uint32_t>, "explicit out");
static_assert(!std::is_constructible_v<Apples, Pears>, "kinds do not mix");
static_assert(!std::equality_comparable_with<Apples, Pears>);
static_assert(sizeof(Apples) == sizeof(std::uint32_t));

TEST(StrongInt, ComparesAndCounts) {
  EXPECT_EQ(Apples().value(), 0u);
  EXPECT_EQ(Apples(3), Apples(3));
  EXPECT_NE(Apples(3), Apples(4));
  EXPECT_LT(Apples(3), Apples(4));
  EXPECT_GE(Apples(4), Apples(4));
  EXPECT_EQ(Apples(3).next(), Apples(4));
}

TEST(StrongInt, Hashes) {
  const std::unordered_set<Apples> set = {Apples(1), Apples(2), Apples(1)};
  EXPECT_EQ(set.size(), 2u);
  EXPECT_TRUE(set.contains(Apples(2)));
  EXPECT_FALSE(set.contains(Apples(3)));
}

}  // namespace
}  // namespace sluice
