#include "server/cli/http_client.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/json.hpp>
#include <optional>
#include <vector>

#include "base/fd.h"
#include "server/config.h"
#include "server/temp_file.h"

namespace sluice::server {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr auto kUseTuple = asio::as_tuple(asio::use_awaitable);
constexpr std::size_t kPieceBytes = 256 * 1024;
constexpr std::size_t kReplyLimit = 256u << 20;

Result<void> write_all(int fd, const char* data, std::size_t size) {
  while (size > 0) {
    const ssize_t n = ::write(fd, data, size);
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("write the received file", errno);
    }
    data += n;
    size -= static_cast<std::size_t>(n);
  }
  return {};
}

}  // namespace

struct HttpClient::Call {
  http::verb method = http::verb::get;
  std::string target;
  int upload_fd = -1;
  std::uint64_t upload_size = 0;
  int download_fd = -1;
  HttpReply reply;
  Result<void> outcome;

  asio::awaitable<void> perform(const HttpClientOptions& options);
  asio::awaitable<bool> connect(beast::tcp_stream& stream, const HttpClientOptions& options,
                                std::string& host);
  asio::awaitable<bool> send(beast::tcp_stream& stream, const HttpClientOptions& options,
                             const std::string& host);
  asio::awaitable<bool> send_body(beast::tcp_stream& stream, const HttpClientOptions& options);
  asio::awaitable<bool> receive(beast::tcp_stream& stream, const HttpClientOptions& options);
  bool failed(const error_code& ec, const std::string& what) {
    if (ec) outcome = make_error(Errc::unavailable, what + ": " + ec.message());
    return static_cast<bool>(ec);
  }
};

asio::awaitable<bool> HttpClient::Call::connect(beast::tcp_stream& stream, const HttpClientOptions& options,
                                                std::string& host) {
  auto address = parse_http_url(options.url);
  if (address.has_error()) {
    outcome = std::move(address).error();
    co_return false;
  }
  host = address->host + ":" + std::to_string(address->port);
  const std::string what = "cannot reach the node at " + options.url;
  tcp::resolver resolver(stream.get_executor());
  const std::string port = std::to_string(address->port);
  const auto [ec, found] = co_await resolver.async_resolve(address->host, port, kUseTuple);
  if (failed(ec, what)) co_return false;
  stream.expires_after(std::chrono::milliseconds(options.connect_timeout_ms));
  const auto [ec2, endpoint] = co_await stream.async_connect(found, kUseTuple);
  co_return !failed(ec2, what);
}

asio::awaitable<bool> HttpClient::Call::send(beast::tcp_stream& stream, const HttpClientOptions& options,
                                             const std::string& host) {
  http::request<http::empty_body> request(method, target, 11);
  request.set(http::field::host, host);
  request.set(http::field::user_agent, "sluice/" SLUICE_VERSION);
  request.set(http::field::connection, "close");
  if (!options.token.empty()) request.set(http::field::authorization, "Bearer " + options.token);
  if (method == http::verb::post) request.content_length(upload_size);
  // The server says whether it wants the body before it is sent.
  if (upload_size > 0) request.set(http::field::expect, "100-continue");
  http::request_serializer<http::empty_body> serializer(request);
  stream.expires_after(std::chrono::milliseconds(options.transfer_timeout_ms));
  const auto [ec, n] = co_await http::async_write_header(stream, serializer, kUseTuple);
  co_return !failed(ec, "sending to " + options.url);
}

asio::awaitable<bool> HttpClient::Call::send_body(beast::tcp_stream& stream,
                                                  const HttpClientOptions& options) {
  std::vector<std::byte> piece(kPieceBytes);
  for (std::uint64_t offset = 0; offset < upload_size;) {
    const auto want = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), upload_size - offset));
    const auto got = read_exactly(upload_fd, offset, ByteSpan(piece).first(want), "the file to import");
    if (got.has_error()) {
      outcome = got.error();
      co_return false;
    }
    stream.expires_after(std::chrono::milliseconds(options.transfer_timeout_ms));
    const auto buffer = asio::buffer(piece.data(), want);
    const auto [ec2, n2] = co_await asio::async_write(stream, buffer, kUseTuple);
    // The server may give up before it has read everything: its answer says why.
    if (ec2 == asio::error::broken_pipe || ec2 == asio::error::connection_reset) break;
    if (failed(ec2, "sending to " + options.url)) co_return false;
    offset += want;
  }
  co_return true;
}

asio::awaitable<bool> HttpClient::Call::receive(beast::tcp_stream& stream, const HttpClientOptions& options) {
  beast::flat_buffer buffer;
  std::optional<http::response_parser<http::buffer_body>> reader;
  bool body_sent = upload_size == 0;
  for (;;) {
    reader.emplace();
    reader->body_limit(boost::none);
    stream.expires_after(std::chrono::milliseconds(options.answer_timeout_ms));
    const auto [ec, n] = co_await http::async_read_header(stream, buffer, *reader, kUseTuple);
    if (failed(ec, "waiting for the answer of " + options.url)) co_return false;
    if (reader->get().result() != http::status::continue_ || body_sent) break;
    body_sent = true;
    const bool sent = co_await send_body(stream, options);
    if (!sent) co_return false;
  }
  auto& parser = *reader;
  reply.status = parser.get().result_int();
  for (const auto& field : parser.get()) {
    std::string name(field.name_string());
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    reply.headers[name] = field.value();
  }
  const bool to_file = download_fd >= 0 && reply.status == 200;
  std::vector<char> piece(kPieceBytes);
  while (!parser.is_done()) {
    parser.get().body().data = piece.data();
    parser.get().body().size = piece.size();
    stream.expires_after(std::chrono::milliseconds(options.transfer_timeout_ms));
    const auto [ec2, n2] = co_await http::async_read(stream, buffer, parser, kUseTuple);
    if (ec2 != http::error::need_buffer && failed(ec2, "receiving from " + options.url)) co_return false;
    const std::size_t got = piece.size() - parser.get().body().size;
    if (to_file) {
      outcome = write_all(download_fd, piece.data(), got);
      if (outcome.has_error()) co_return false;
    } else if (reply.body.size() + got > kReplyLimit) {
      outcome = make_error(Errc::too_large, "the answer of " + options.url + " is too large");
      co_return false;
    } else {
      reply.body.append(piece.data(), got);
    }
  }
  co_return true;
}

asio::awaitable<void> HttpClient::Call::perform(const HttpClientOptions& options) {
  const auto executor = co_await asio::this_coro::executor;
  beast::tcp_stream stream(executor);
  std::string host;
  if (!co_await connect(stream, options, host)) co_return;
  if (!co_await send(stream, options, host)) co_return;
  co_await receive(stream, options);
}

Result<HttpReply> HttpClient::run(Call& call) {
  asio::io_context io(1);
  std::string failure;
  const auto done = [&failure](const std::exception_ptr& exception) {
    if (!exception) return;
    try {
      std::rethrow_exception(exception);
    } catch (const std::exception& e) {
      failure = e.what();
    }
  };
  asio::co_spawn(io, call.perform(options_), done);
  io.run();
  if (!failure.empty()) return make_error(Errc::internal, failure);
  if (call.outcome.has_error()) return call.outcome.error();
  return std::move(call.reply);
}

Result<HttpReply> HttpClient::get(const std::string& target) {
  Call call;
  call.target = target;
  return run(call);
}

Result<HttpReply> HttpClient::post(const std::string& target) {
  Call call;
  call.method = http::verb::post;
  call.target = target;
  return run(call);
}

Result<HttpReply> HttpClient::post_file(const std::string& target, const std::string& path) {
  const UniqueFd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return errno_error("open " + path, errno);
  struct stat st {};
  if (::fstat(file.get(), &st) != 0) return errno_error("stat " + path, errno);
  if (!S_ISREG(st.st_mode)) return make_error(Errc::invalid_argument, path + " is not a file");
  Call call;
  call.method = http::verb::post;
  call.target = target;
  call.upload_fd = file.get();
  call.upload_size = static_cast<std::uint64_t>(st.st_size);
  return run(call);
}

Result<HttpReply> HttpClient::download(const std::string& target, int fd) {
  Call call;
  call.target = target;
  call.download_fd = fd;
  return run(call);
}

std::string percent_encode(std::string_view text) {
  std::string out;
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (std::isalnum(byte) != 0 || c == '-' || c == '.' || c == '_' || c == '~') {
      out += c;
    } else {
      out += '%';
      out += kDigits[byte >> 4];
      out += kDigits[byte & 15];
    }
  }
  return out;
}

Result<HttpReply> expect_ok(Result<HttpReply> reply) {
  if (reply.has_error() || reply->status == 200) return reply;
  std::string message = "the node answered with status " + std::to_string(reply->status);
  error_code ec;
  const auto value = boost::json::parse(reply->body, ec);
  if (!ec && value.is_object()) {
    if (const auto* text = value.as_object().if_contains("message"); text != nullptr && text->is_string()) {
      message = text->as_string();
    }
  }
  Errc code = Errc::internal;
  switch (reply->status) {
    case 400:
      code = Errc::invalid_argument;
      break;
    case 404:
      code = Errc::not_found;
      break;
    case 409:
      code = Errc::exists;
      break;
    case 422:
      code = Errc::corrupt;
      break;
    case 503:
      code = Errc::unavailable;
      break;
    default:
      break;
  }
  return make_error(code, message);
}

}  // namespace sluice::server
