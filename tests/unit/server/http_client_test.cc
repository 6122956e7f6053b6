#include "server/cli/http_client.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>

#include "server/http_server.h"

namespace sluice::server {
namespace {

using ::testing::HasSubstr;

class Echo final : public HttpHandler {
 public:
  Route route(const HttpRequest& request) override {
    if (request.path[0] == "refuse")
      return {RouteKind::reply, error_response(409, "exists", "it is there already")};
    return {request.path[0] == "upload" ? RouteKind::upload : RouteKind::quick, {}};
  }
  HttpResponse handle(const HttpRequest& request) override {
    HttpResponse response;
    response.headers["Sluice-Txid"] = "7";
    response.body = request.method + " " + request.authorization;
    if (!request.upload_path.empty()) {
      response.body += std::to_string(std::filesystem::file_size(request.upload_path));
    }
    return response;
  }
  void upgraded(UniqueFd, Bytes, std::string) override { ADD_FAILURE(); }
};

class HttpClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string dir = std::filesystem::temp_directory_path() / "sluice-client-XXXXXX";
    ASSERT_NE(::mkdtemp(dir.data()), nullptr);
    dir_ = dir;
    HttpServerOptions options;
    options.listen = {"127.0.0.1", 0};
    options.upload_dir = dir_;
    server_ = std::move(*HttpServer::bind(options));
    server_->serve(echo_);
    options_.url = "http://127.0.0.1:" + std::to_string(server_->port());
  }
  void TearDown() override {
    server_.reset();
    std::filesystem::remove_all(dir_);
  }
  std::string dir_;
  Echo echo_;
  std::unique_ptr<HttpServer> server_;
  HttpClientOptions options_;
};

TEST_F(HttpClientTest, GetsAndSendsTheToken) {
  options_.token = "abc";
  const auto reply = HttpClient(options_).get("/x");
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->status, 200u);
  EXPECT_EQ(reply->body, "GET Bearer abc");
  EXPECT_EQ(reply->headers.at("sluice-txid"), "7");
}

TEST_F(HttpClientTest, UploadsAFile) {
  const std::string path = dir_ + "/big";
  {
    UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CREAT, 0600));
    ASSERT_EQ(::ftruncate(fd.get(), 3'000'000), 0);
  }
  const auto reply = HttpClient(options_).post_file("/upload", path);
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->body, "POST 3000000");
}

TEST_F(HttpClientTest, DownloadsIntoAFile) {
  const UniqueFd fd(::open((dir_ + "/out").c_str(), O_RDWR | O_CREAT, 0600));
  const auto reply = HttpClient(options_).download("/x", fd.get());
  ASSERT_TRUE(reply) << reply.error().message;
  EXPECT_EQ(reply->body, "");
  EXPECT_EQ(std::filesystem::file_size(dir_ + "/out"), 4u);
}

TEST_F(HttpClientTest, ExpectOkTakesTheServersMessage) {
  const auto reply = expect_ok(HttpClient(options_).get("/refuse"));
  ASSERT_TRUE(reply.has_error());
  EXPECT_EQ(reply.error().code, Errc::exists);
  EXPECT_EQ(reply.error().message, "it is there already");
}

TEST_F(HttpClientTest, NobodyThere) {
  server_.reset();
  const auto reply = HttpClient(options_).get("/x");
  ASSERT_TRUE(reply.has_error());
  EXPECT_EQ(reply.error().code, Errc::unavailable);
  EXPECT_THAT(reply.error().message, HasSubstr(options_.url));
}

TEST(PercentEncode, Names) {
  EXPECT_EQ(percent_encode("tenants/4 2.db%"), "tenants%2F4%202.db%25");
}

}  // namespace
}  // namespace sluice::server
