#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/config.h"

namespace sluice::server {
namespace {

using ::testing::ElementsAre;
using ::testing::Optional;

std::string expand(std::string_view text) {
  return expand_environment(text, [](const std::string& name) -> std::optional<std::string> {
    if (name == "REGION") return "ams";
    if (name == "PRIMARY_REGION") return "ams";
    if (name == "X_1") return "one";
    return std::nullopt;
  });
}

TEST(ExpandEnvironment, LiteFsForms) {
  EXPECT_EQ(expand("a $REGION b"), "a ams b");
  EXPECT_EQ(expand("${REGION}/${ X_1 }"), "ams/one");
  EXPECT_EQ(expand("${REGION == 'ams'}"), "true");
  EXPECT_EQ(expand("${REGION != \"ams\"}"), "false");
  EXPECT_EQ(expand("${REGION == PRIMARY_REGION}"), "true");
  EXPECT_EQ(expand("${REGION == X_1}"), "false");
  EXPECT_EQ(expand("[$MISSING]"), "[]");
  EXPECT_EQ(expand("cost: 5$"), "cost: 5$");
  EXPECT_EQ(expand("${REGION"), "${REGION");
  EXPECT_EQ(expand("${ == }"), "${ == }");
  EXPECT_EQ(expand("$1"), "$1");
}

TEST(ParseDuration, Forms) {
  EXPECT_THAT(parse_duration_ms("10m"), Optional(600'000));
  EXPECT_THAT(parse_duration_ms("1h30m"), Optional(5'400'000));
  EXPECT_THAT(parse_duration_ms("1.5s"), Optional(1500));
  EXPECT_THAT(parse_duration_ms("250ms"), Optional(250));
  EXPECT_THAT(parse_duration_ms("0"), Optional(0));
  EXPECT_THAT(parse_duration_ms("-1s"), Optional(-1000));
  for (const char* bad : {"", "10", "m", "10x", "1h 2m", "1e3s", "nan s", "99999999999999h"}) {
    EXPECT_EQ(parse_duration_ms(bad), std::nullopt) << bad;
  }
}

TEST(ParseSize, Forms) {
  EXPECT_THAT(parse_size("0"), Optional(0u));
  EXPECT_THAT(parse_size("1024"), Optional(1024u));
  EXPECT_THAT(parse_size("1KB"), Optional(1000u));
  EXPECT_THAT(parse_size("2 MiB"), Optional(2u << 20));
  EXPECT_THAT(parse_size("1GiB"), Optional(1u << 30));
  for (const char* bad : {"", "-1", "1X", "1iB", "KB", "99999999999999999999", "99999999999999999TiB"}) {
    EXPECT_EQ(parse_size(bad), std::nullopt) << bad;
  }
}

TEST(SplitCommand, Quotes) {
  EXPECT_THAT(*split_command("a 'b c' \"d\\\"e\" f\\ g ''"), ElementsAre("a", "b c", "d\"e", "f g", ""));
  EXPECT_THAT(*split_command("  "), ElementsAre());
  EXPECT_EQ(split_command("a 'b"), std::nullopt);
}

TEST(ParseHostPort, Forms) {
  const auto plain = parse_host_port("127.0.0.1:80");
  ASSERT_TRUE(plain);
  EXPECT_EQ(plain->host, "127.0.0.1");
  EXPECT_EQ(plain->port, 80);
  EXPECT_TRUE(plain->loopback());
  const auto all = parse_host_port(":20202");
  ASSERT_TRUE(all);
  EXPECT_EQ(all->host, "");
  EXPECT_FALSE(all->loopback());
  const auto v6 = parse_host_port("[::1]:1");
  ASSERT_TRUE(v6);
  EXPECT_EQ(v6->host, "::1");
  EXPECT_TRUE(v6->loopback());
  EXPECT_FALSE(parse_host_port("0.0.0.0:1")->loopback());
  EXPECT_FALSE(parse_host_port("127.evil.example:1")->loopback());
  for (const char* bad : {"", "host", "host:", "host:x", "host:70000", "::1:80", "[::1]80", "h:-1"}) {
    EXPECT_TRUE(parse_host_port(bad).has_error()) << bad;
  }
}

TEST(ParseHttpUrl, Forms) {
  EXPECT_EQ(parse_http_url("http://a:1")->port, 1);
  EXPECT_EQ(parse_http_url("http://a/")->port, 80);
  EXPECT_EQ(parse_http_url("http://[::1]:7")->host, "::1");
  EXPECT_EQ(parse_http_url("http://[::1]")->host, "::1");
  EXPECT_EQ(parse_http_url("https://a").error().code, Errc::unsupported);
  for (const char* bad : {"", "a:1", "ftp://a", "http://", "http://:1", "http://a/b", "http://u@a:1"}) {
    EXPECT_TRUE(parse_http_url(bad).has_error()) << bad;
  }
}

}  // namespace
}  // namespace sluice::server
