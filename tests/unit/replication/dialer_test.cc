#include "replication/dialer.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cstring>
#include <future>

#include "tests/unit/replication/stream_fixture.h"

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

sockaddr_in loopback(std::uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(port);
  return address;
}

Dialer::Address address_of(std::uint16_t port) {
  const sockaddr_in from = loopback(port);
  Dialer::Address address{};
  std::memcpy(&address.bytes, &from, sizeof from);
  address.size = sizeof from;
  return address;
}

/// A listener whose queue is full: the kernel drops what else comes, as a dead host does.
class DeadEnd {
 public:
  DeadEnd() {
    sockaddr_in address = loopback(0);
    EXPECT_EQ(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    EXPECT_EQ(::listen(listener_.get(), 0), 0);
    socklen_t length = sizeof address;
    EXPECT_EQ(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
    port_ = ntohs(address.sin_port);
    for (int i = 0; i < 8; ++i) {
      UniqueFd client(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
      (void)::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof address);
      clients_.push_back(std::move(client));
    }
  }
  std::uint16_t port() const { return port_; }

 private:
  UniqueFd listener_{::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
  std::vector<UniqueFd> clients_;
  std::uint16_t port_ = 0;
};

// A name with an address that swallows everything (IPv6 without a route) and one that works.
TEST(Dialer, AnAddressThatDoesNotAnswerLeavesTimeForTheNext) {
  testing::TestPrimary primary;
  const DeadEnd dead;
  const auto resolve = [&](const Endpoint&) -> Result<Dialer::Addresses> {
    Dialer::Addresses all;
    for (const std::uint16_t port : {dead.port(), dead.port(), primary.port()}) all.push_back(address_of(port));
    return all;
  };
  EventLoop loop("dial");
  std::promise<Result<Dialer::Upgraded>> answer;
  std::shared_ptr<Dialer> dialer;
  loop.run([&] {
    dialer = std::make_shared<Dialer>(loop, Endpoint{"primary", "1"}, std::string(), resolve);
    dialer->start(std::chrono::seconds(3), [&](Result<Dialer::Upgraded> result) { answer.set_value(std::move(result)); });
  });
  auto future = answer.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  const auto result = future.get();
  EXPECT_TRUE(result.has_value()) << result.error().to_string();
  loop.run([&] { dialer.reset(); });
}

TEST(Dialer, OnlyDeadAddressesEndWithTheDeadline) {
  const DeadEnd dead;
  const auto resolve = [&](const Endpoint&) -> Result<Dialer::Addresses> {
    return Dialer::Addresses(2, address_of(dead.port()));
  };
  EventLoop loop("dial");
  std::promise<Result<Dialer::Upgraded>> answer;
  std::shared_ptr<Dialer> dialer;
  loop.run([&] {
    dialer = std::make_shared<Dialer>(loop, Endpoint{"primary", "1"}, std::string(), resolve);
    dialer->start(std::chrono::milliseconds(300), [&](Result<Dialer::Upgraded> result) { answer.set_value(std::move(result)); });
  });
  auto future = answer.get_future();
  ASSERT_EQ(future.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  const auto result = future.get();
  ASSERT_TRUE(result.has_error());
  EXPECT_EQ(result.error().code, Errc::deadline);
  loop.run([&] { dialer.reset(); });
}

}  // namespace
}  // namespace sluice::replication
