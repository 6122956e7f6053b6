#include "base/utf8.h"

#include <gtest/gtest.h>

namespace sluice {
namespace {

TEST(Utf8, ValidStaysAsItIs) {
  for (const std::string text : {"", "app.db", "caf\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\xf4\x8f\xbf\xbf", "\xed\x9f\xbf"}) {
    EXPECT_TRUE(is_utf8(text)) << text;
    EXPECT_EQ(clean_utf8(text), text);
  }
}

TEST(Utf8, WhatIsNotIsReplacedByteByByte) {
  const std::string mark = "\xef\xbf\xbd";
  const std::pair<std::string, std::string> cases[] = {
      {"caf\xe9", "caf" + mark},                   // Latin-1
      {"\x80", mark},                             // nothing to continue
      {"\xc0\xaf", mark + mark},                  // "/" in two bytes
      {"\xe0\x80\xaf", mark + mark + mark},       // in three
      {"\xed\xa0\x80", mark + mark + mark},       // a surrogate
      {"\xf4\x90\x80\x80", mark + mark + mark + mark},  // above U+10FFFF
      {"\xff\xfe", mark + mark},
      {"a\xe2\x82", "a" + mark + mark},           // cut off
      {"\xe2" "b", mark + "b"},
  };
  for (const auto& [text, clean] : cases) {
    EXPECT_FALSE(is_utf8(text));
    EXPECT_EQ(clean_utf8(text), clean);
  }
}

}  // namespace
}  // namespace sluice
