#include "replication/dialer.h"

#include <gtest/gtest.h>

namespace sluice::replication {
namespace {

TEST(PrimaryUrl, Accepted) {
  const auto full = parse_primary_url("http://db-1.internal:20203/");
  ASSERT_TRUE(full.has_value());
  EXPECT_EQ(full->host, "db-1.internal");
  EXPECT_EQ(full->port, "20203");
  EXPECT_EQ(parse_primary_url("http://10.0.0.1").value().port, "20202");
  EXPECT_EQ(parse_primary_url("http://[::1]:9").value().host, "::1");
}

TEST(PrimaryUrl, Refused) {
  for (const char* url : {"", "db-1", "db-1:20202", "ftp://x:1", "http://", "http://x:notaport", "http://x/path", "http://u:p@x"}) {
    const auto parsed = parse_primary_url(url);
    ASSERT_TRUE(parsed.has_error()) << url;
    EXPECT_EQ(parsed.error().code, Errc::invalid_argument) << url;
  }
  EXPECT_EQ(parse_primary_url("https://x:1").error().code, Errc::unsupported);
}

TEST(UpgradeAnswer, OnlyAnUpgradeToSluiceCounts) {
  EXPECT_TRUE(check_upgrade_answer("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nUPGRADE:  Sluice\r\n\r\n")
                  .has_value());
  EXPECT_TRUE(check_upgrade_answer("HTTP/1.1 101 OK\r\nUpgrade: websocket\r\n\r\n").has_error());
  EXPECT_TRUE(check_upgrade_answer("HTTP/1.1 101 OK\r\n\r\n").has_error());
  EXPECT_TRUE(check_upgrade_answer("HTTP/1.1 200 OK\r\nUpgrade: sluice\r\n\r\n").has_error());
  EXPECT_TRUE(check_upgrade_answer("\r\n\r\n").has_error());
  const auto refused = check_upgrade_answer("HTTP/1.1 503 \x1b[31mnot primary\r\n\r\n");
  ASSERT_TRUE(refused.has_error());
  EXPECT_EQ(refused.error().message.find('\x1b'), std::string::npos) << "no control characters in messages";
}

}  // namespace
}  // namespace sluice::replication
