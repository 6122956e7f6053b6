#include "base/log.h"

#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <string>

namespace sluice {
namespace {

// A database's name can have any byte in it, and log collectors drop a line that is not JSON.
TEST(JsonLog, EveryMessageIsOneValidLine) {
  init_logging({.json = true, .debug = false});
  testing::internal::CaptureStderr();
  const std::string hostile = "a\"b\\c\nd\te\x01" "f\xff\xc3(\xed\xa0\x80 \xc3\xa9.db";
  LOG_WARN("{}: odd", hostile);
  const std::string line = testing::internal::GetCapturedStderr();
  init_logging({});
  ASSERT_FALSE(line.empty());
  EXPECT_EQ(line.find('\n'), line.size() - 1);
  boost::system::error_code ec;
  const auto value = boost::json::parse(line, ec);
  ASSERT_FALSE(ec) << ec.message() << ": " << line;
  EXPECT_EQ(value.at("level").as_string(), "warning");
  const std::string_view message = value.at("message").as_string();
  EXPECT_NE(message.find("a\"b\\c\nd\te\x01" "f"), std::string_view::npos);
  EXPECT_NE(message.find("\xc3\xa9.db: odd"), std::string_view::npos) << "valid characters stay";
}

}  // namespace
}  // namespace sluice
