// The client side of the API for the command line: one request at a time, blocking, with deadlines.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>

#include "base/errors.h"

namespace sluice::server {

struct HttpClientOptions {
  std::string url = "http://127.0.0.1:20202";
  std::string token;
  int connect_timeout_ms = 5'000;
  int transfer_timeout_ms = 60'000;  ///< for each piece sent or received
  int answer_timeout_ms =
      6 * 3'600'000;  ///< until the answer begins: exports and checks take as long as they take
};

struct HttpReply {
  unsigned status = 0;
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string body;                            ///< empty if it went into a file
};

/// `path` with a component percent-encoded: "tenants/42.db" -> "tenants%2F42.db".
std::string percent_encode(std::string_view text);

class HttpClient {
 public:
  explicit HttpClient(HttpClientOptions options) : options_(std::move(options)) {}

  /// Errc::unavailable: not reachable, or it broke off. Any HTTP status is a success here.
  Result<HttpReply> get(const std::string& target);
  Result<HttpReply> post(const std::string& target);
  /// Sends the file as body.
  Result<HttpReply> post_file(const std::string& target, const std::string& path);
  /// Status 200: the body goes into the descriptor; else into the reply.
  Result<HttpReply> download(const std::string& target, int fd);

  const std::string& url() const { return options_.url; }

 private:
  struct Call;
  Result<HttpReply> run(Call& call);
  const HttpClientOptions options_;
};

/// The reply if its status is 200, else an Error with the server's message (Errc::internal unless the code is
/// known).
Result<HttpReply> expect_ok(Result<HttpReply> reply);

}  // namespace sluice::server
