#include "server/http_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "base/mutex.h"
#include "server/api.h"

namespace sluice::server {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class FakeHandler final : public HttpHandler {
 public:
  Route route(const HttpRequest& request) override {
    if (request.path.size() != 1) return {RouteKind::reply, error_response(404, "not found", "nothing here")};
    if (request.path[0] == "upload") return {RouteKind::upload, {}};
    if (request.path[0] == "up") return {RouteKind::upgrade, {}};
    return {RouteKind::quick, {}};
  }
  HttpResponse handle(const HttpRequest& request) override {
    HttpResponse response;
    response.body = request.method + " " + request.path[0];
    for (const auto& [key, value] : request.query) response.body += " " + key + "=" + value;
    if (!request.upload_path.empty()) {
      std::ifstream in(request.upload_path);
      std::string content((std::istreambuf_iterator<char>(in)), {});
      response.body += " " + std::to_string(content.size()) + ":" + content.substr(0, 5);
      uploaded = request.upload_path;
    }
    if (request.path[0] == "stream") {
      response.stream = HttpStream{1 << 20, [](std::uint64_t offset, ByteSpan out) -> Result<void> {
                                     for (std::size_t i = 0; i < out.size(); ++i)
                                       out[i] = static_cast<std::byte>((offset + i) % 251);
                                     return {};
                                   }};
    }
    return response;
  }
  void upgraded(UniqueFd socket, Bytes early, std::string) override {
    handed_over.set_value({std::move(socket), std::string(as_text(early))});
  }
  std::string uploaded;
  std::promise<std::pair<UniqueFd, std::string>> handed_over;
};

class HttpServerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string dir = std::filesystem::temp_directory_path() / "sluice-http-XXXXXX";
    ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
    start({});
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(dir_);
  }
  void start(HttpServerOptions options) {
    options.listen = {"127.0.0.1", 0};
    options.upload_dir = dir_;
    auto server = HttpServer::bind(std::move(options));
    ASSERT_TRUE(server) << server.error().message;
    server_ = std::move(*server);
    server_->serve(handler_);
  }

  UniqueFd connect() {
    UniqueFd fd(::socket(AF_INET, SOCK_STREAM, 0));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(server_->port());
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
    return fd;
  }
  static void send_text(int fd, std::string_view text) {
    ASSERT_EQ(::send(fd, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }
  // Reads until `stop` is in it, the peer closes, or 10 s pass.
  static std::string receive(int fd, const std::string& stop = "") {
    std::string text;
    for (;;) {
      pollfd wait{fd, POLLIN, 0};
      if (::poll(&wait, 1, 10'000) <= 0) return text + "<timeout>";
      char buffer[4096];
      const ssize_t n = ::recv(fd, buffer, sizeof buffer, 0);
      if (n <= 0) return text;
      text.append(buffer, static_cast<std::size_t>(n));
      if (!stop.empty() && text.find(stop) != std::string::npos) return text;
    }
  }
  std::string ask(std::string_view request) {
    const UniqueFd fd = connect();
    send_text(fd.get(), request);
    return receive(fd.get());
  }

  std::string dir_;
  FakeHandler handler_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersAndDecodesPathAndQuery) {
  const std::string reply = ask("GET /a%2Fb?x=1%202&y HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(reply, HasSubstr("GET a/b x=1 2 y="));
}

TEST_F(HttpServerTest, KeepsTheConnectionAlive) {
  const UniqueFd fd = connect();
  send_text(fd.get(), "GET /one HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(receive(fd.get(), "GET one"), HasSubstr("200 OK"));
  send_text(fd.get(), "GET /two HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(receive(fd.get(), "GET two"), HasSubstr("200 OK"));
}

TEST_F(HttpServerTest, HeadHasNoBody) {
  const std::string reply = ask("HEAD /abc HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(reply, HasSubstr("Content-Length: 7"));
  EXPECT_TRUE(reply.ends_with("\r\n\r\n"));
}

TEST_F(HttpServerTest, GarbageGets400AndClose) {
  EXPECT_THAT(ask("\x16\x03\x01 this is not HTTP\r\n\r\n"), StartsWith("HTTP/1.1 400"));
  EXPECT_THAT(ask(std::string(100, '\0') + "\r\n\r\n"), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpServerTest, OversizedHeaderGets431) {
  EXPECT_THAT(ask("GET /a HTTP/1.1\r\nX: " + std::string(17'000, 'x')), StartsWith("HTTP/1.1 431"));
}

TEST_F(HttpServerTest, OversizedBodyGets413) {
  EXPECT_THAT(ask("POST /a HTTP/1.1\r\nHost: h\r\nContent-Length: 70000\r\n\r\n"),
              StartsWith("HTTP/1.1 413"));
}

TEST_F(HttpServerTest, BadTargetGets400) {
  EXPECT_THAT(ask("GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n"), StartsWith("HTTP/1.1 400"));
}

TEST_F(HttpServerTest, UnknownAddressGetsJson404) {
  const std::string reply = ask("GET /a/b HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 404"));
  EXPECT_THAT(reply, HasSubstr(R"({"code":"not found","message":"nothing here"})"));
}

TEST_F(HttpServerTest, SlowHeaderIsCutOff) {
  server_.reset();
  HttpServerOptions options;
  options.header_timeout_ms = 50;
  start(options);
  const UniqueFd fd = connect();
  send_text(fd.get(), "GET /a HT");
  EXPECT_EQ(receive(fd.get()), "");
}

TEST_F(HttpServerTest, UploadGoesToAFileThatDisappears) {
  std::string body(1'000'000, 'b');
  body.replace(0, 5, "begin");
  const std::string reply =
      ask("POST /upload HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\n" + body);
  EXPECT_THAT(reply, HasSubstr("POST upload 1000000:begin"));
  EXPECT_THAT(handler_.uploaded, StartsWith(dir_));
  EXPECT_TRUE(std::filesystem::is_empty(dir_));
}

TEST_F(HttpServerTest, ChunkedUploadWithExpect) {
  const UniqueFd fd = connect();
  send_text(fd.get(),
            "POST /upload HTTP/1.1\r\nHost: h\r\nConnection: close\r\nExpect: "
            "100-continue\r\nTransfer-Encoding: chunked\r\n\r\n");
  EXPECT_THAT(receive(fd.get(), "\r\n\r\n"), StartsWith("HTTP/1.1 100 Continue"));
  send_text(fd.get(), "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n");
  EXPECT_THAT(receive(fd.get()), HasSubstr("POST upload 11:hello"));
}

TEST_F(HttpServerTest, BrokenUploadLeavesNothing) {
  {
    const UniqueFd fd = connect();
    send_text(fd.get(), "POST /upload HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\nabc");
    ::shutdown(fd.get(), SHUT_WR);
    EXPECT_EQ(receive(fd.get()), "");
  }
  server_->stop();
  EXPECT_TRUE(std::filesystem::is_empty(dir_));
}

TEST_F(HttpServerTest, StreamsLargeBodies) {
  const std::string reply = ask("GET /stream HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
  const std::size_t body = reply.find("\r\n\r\n") + 4;
  ASSERT_EQ(reply.size() - body, 1u << 20);
  for (std::size_t i = 0; i < (1u << 20); i += 4099) {
    ASSERT_EQ(static_cast<unsigned char>(reply[body + i]), i % 251);
  }
}

TEST_F(HttpServerTest, HandsUpgradedConnectionsOverWithEarlyBytes) {
  const UniqueFd fd = connect();
  send_text(fd.get(), "GET /up HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n\r\nearly");
  auto handed = handler_.handed_over.get_future().get();
  EXPECT_THAT(receive(fd.get(), "\r\n\r\n"), StartsWith("HTTP/1.1 101"));
  // "early" may come with the header or after it.
  if (handed.second.empty()) handed.second = receive(handed.first.get(), "early");
  EXPECT_EQ(handed.second, "early");
  send_text(handed.first.get(), "from the new owner");
  EXPECT_THAT(receive(fd.get(), "owner"), HasSubstr("from the new owner"));
}

TEST_F(HttpServerTest, UpgradeAddressWithoutUpgradeGets426) {
  EXPECT_THAT(ask("GET /up HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"), StartsWith("HTTP/1.1 426"));
}

TEST_F(HttpServerTest, TooManyConnectionsAreRefused) {
  server_.reset();
  HttpServerOptions options;
  options.max_connections = 1;
  start(options);
  const UniqueFd first = connect();
  send_text(first.get(), "GET /one HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(receive(first.get(), "GET one"), HasSubstr("200 OK"));
  const UniqueFd second = connect();
  EXPECT_EQ(receive(second.get()), "");
}

TEST_F(HttpServerTest, SecondServerOnThePortNamesIt) {
  HttpServerOptions options;
  options.listen = {"127.0.0.1", server_->port()};
  const auto second = HttpServer::bind(options);
  ASSERT_TRUE(second.has_error());
  EXPECT_EQ(second.error().code, Errc::in_use);
  EXPECT_THAT(second.error().message, HasSubstr("127.0.0.1:" + std::to_string(server_->port())));
}

// At boot it may come later: not a mistake in the configuration, which a service manager would not try again.
TEST_F(HttpServerTest, AnAddressThatIsNotThereIsUnavailable) {
  HttpServerOptions options;
  options.listen = {"192.0.2.1", 1};  // reserved for documentation
  const auto bound = HttpServer::bind(options);
  ASSERT_TRUE(bound.has_error());
  EXPECT_EQ(bound.error().code, Errc::unavailable);
  EXPECT_THAT(bound.error().message, HasSubstr("192.0.2.1:1"));
}

TEST_F(HttpServerTest, StopsWithConnectionsOpen) {
  const UniqueFd fd = connect();
  send_text(fd.get(), "GET /one HTTP/1.1\r\nHost: h\r\n\r\n");
  EXPECT_THAT(receive(fd.get(), "GET one"), HasSubstr("200 OK"));
  server_.reset();
  EXPECT_EQ(receive(fd.get()), "");
}

TEST(ConstantTimeCompare, ComparesWhole) {
  EXPECT_TRUE(equal_constant_time("secret", "secret"));
  EXPECT_FALSE(equal_constant_time("secret", "secreT"));
  EXPECT_FALSE(equal_constant_time("secret", "secretsecret"));
  EXPECT_FALSE(equal_constant_time("secretsecret", "secret"));
  EXPECT_FALSE(equal_constant_time("", "secret"));
  EXPECT_FALSE(equal_constant_time("secret", ""));
}

}  // namespace
}  // namespace sluice::server
