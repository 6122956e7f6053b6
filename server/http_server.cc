// The only translation unit with Beast's server side. Note for changes: g++ 12.2 miscompiles braced
// temporaries, capturing lambdas and defaulted `= {}` arguments inside a co_await full-expression; name them
// on the line above.
#include "server/http_server.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <boost/asio.hpp>
#include <boost/beast/core.hpp>
#include <boost/beast/http.hpp>
#include <boost/url.hpp>
#include <thread>

#include "base/log.h"
#include "base/thread_pool.h"
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
constexpr int kLingerMs = 2'000;

// Runs `work` on `pool` and resumes on the caller's executor. Nothing if the pool has stopped.
template <class T>
asio::awaitable<std::optional<T>> on_pool(ThreadPool& pool, std::function<T()> work) {
  const auto executor = co_await asio::this_coro::executor;
  const auto slot = std::make_shared<std::optional<T>>();
  auto initiate = [&pool, executor, slot, work](auto handler) {
    auto shared = std::make_shared<decltype(handler)>(std::move(handler));
    // Without the guard the io_context could run out of work while the pool is busy.
    auto guard = asio::make_work_guard(executor);
    const auto finish = [executor, shared] { asio::post(executor, [shared] { std::move (*shared)(); }); };
    if (!pool.post([slot, work, finish, guard] {
          slot->emplace(work());
          finish();
        })) {
      finish();
    }
  };
  co_await asio::async_initiate<decltype(asio::use_awaitable), void()>(initiate, asio::use_awaitable);
  co_return std::move(*slot);
}

bool iequals(std::string_view a, std::string_view b) {
  return beast::iequals(a, b);
}

bool wants_upgrade(const http::fields& header, std::string_view protocol) {
  http::token_list connection{header[http::field::connection]};
  return connection.exists("upgrade") && iequals(header[http::field::upgrade], protocol);
}

Result<HttpRequest> parse_target(std::string_view method, std::string_view target) {
  const auto url = boost::urls::parse_origin_form(target);
  if (!url) return make_error(Errc::invalid_argument, "the request target is not a valid path");
  HttpRequest request;
  request.method = method;
  for (const auto segment : url->segments()) request.path.push_back(segment);
  for (const auto parameter : url->params()) request.query[parameter.key] = parameter.value;
  return request;
}

}  // namespace

struct HttpServer::Impl : std::enable_shared_from_this<HttpServer::Impl> {
  explicit Impl(HttpServerOptions o) : options(std::move(o)) {}

  Result<void> bind();
  void serve(HttpHandler& h);
  void stop();

  asio::awaitable<void> accept_loop();
  asio::awaitable<void> connection(beast::tcp_stream stream);
  using HeaderParser = http::request_parser<http::empty_body>;
  // True: the connection can take another request.
  asio::awaitable<bool> one_request(beast::tcp_stream& stream, beast::flat_buffer& buffer, bool first);
  asio::awaitable<std::optional<HttpResponse>> upload(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                                                      HeaderParser& parser, HttpRequest& request);
  asio::awaitable<bool> drain_body(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                                   HeaderParser& parser);
  asio::awaitable<bool> send(beast::tcp_stream& stream, HttpResponse response, bool keep_alive, bool head);
  asio::awaitable<bool> send_stream(beast::tcp_stream& stream, const HttpStream& body);
  asio::awaitable<void> upgrade(beast::tcp_stream& stream, beast::flat_buffer& buffer);
  // Sends the last answer on this connection while the peer may still be sending: closing at once would reset
  // the connection and the answer could be lost on the way.
  asio::awaitable<void> send_and_close(beast::tcp_stream& stream, HttpResponse response, bool head);

  void expire(beast::tcp_stream& stream, int ms) { stream.expires_after(std::chrono::milliseconds(ms)); }

  HttpServerOptions options;
  HttpHandler* handler = nullptr;
  std::atomic<bool> stopping{false};
  std::size_t connections = 0;  // network thread
  asio::io_context io{1};
  tcp::acceptor acceptor{io};
  ThreadPool quick{"http", 2};
  ThreadPool slow{"http-slow", 3};
  std::thread thread;
  bool stopped = false;
};

Result<void> HttpServer::Impl::bind() {
  const std::string where = (options.listen.host.empty() ? std::string("*") : options.listen.host) + ":" +
                            std::to_string(options.listen.port);
  error_code ec;
  tcp::endpoint endpoint(tcp::v6(), options.listen.port);
  if (!options.listen.host.empty()) {
    tcp::resolver resolver(io);
    const auto found = resolver.resolve(options.listen.host, std::to_string(options.listen.port), ec);
    if (ec || found.empty()) {
      return make_error(Errc::unavailable, "cannot listen on " + where + ": " + ec.message());
    }
    endpoint = found.begin()->endpoint();
  }
  const auto open = [&] {
    acceptor.close();
    acceptor.open(endpoint.protocol(), ec);
    if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
    if (!ec && options.listen.host.empty() && endpoint.protocol() == tcp::v6()) {
      acceptor.set_option(asio::ip::v6_only(false), ec);
    }
    if (!ec) acceptor.bind(endpoint, ec);
    if (!ec) acceptor.listen(tcp::acceptor::max_listen_connections, ec);
  };
  open();
  if (ec == asio::error::address_family_not_supported && options.listen.host.empty()) {
    endpoint = tcp::endpoint(tcp::v4(), options.listen.port);  // a machine without IPv6
    open();
  }
  if (ec == asio::error::address_in_use) {
    return make_error(Errc::in_use,
                      "cannot listen on " + where +
                          ": the port is in use by another program; choose another with --listen");
  }
  // Not a wrong configuration: at boot the address may come later, and starting again then helps.
  if (ec) return make_error(Errc::unavailable, "cannot listen on " + where + ": " + ec.message());
  ::fcntl(acceptor.native_handle(), F_SETFD, FD_CLOEXEC);
  return {};
}

void HttpServer::Impl::serve(HttpHandler& h) {
  handler = &h;
  const auto report = [](const std::exception_ptr& failure) {
    if (!failure) return;
    try {
      std::rethrow_exception(failure);
    } catch (const std::exception& e) {
      LOG_ERROR("the HTTP server's accept loop failed: {}", e.what());
    }
  };
  asio::co_spawn(io, accept_loop(), report);
  thread = std::thread([this] { io.run(); });
}

void HttpServer::Impl::stop() {
  if (std::exchange(stopped, true)) return;
  stopping = true;
  io.stop();
  if (thread.joinable()) thread.join();
  quick.stop();
  slow.stop();
  error_code ec;
  acceptor.close(ec);
}

asio::awaitable<void> HttpServer::Impl::accept_loop() {
  asio::steady_timer pause(io);
  while (!stopping) {
    auto [ec, socket] = co_await acceptor.async_accept(kUseTuple);
    if (ec == asio::error::operation_aborted) co_return;
    if (ec) {
      // Out of descriptors, most likely: give others time to close some.
      LOG_WARN("accepting a connection failed: {}", ec.message());
      pause.expires_after(std::chrono::milliseconds(100));
      co_await pause.async_wait(kUseTuple);
      continue;
    }
    if (connections >= options.max_connections) {
      LOG_WARN("refused a connection: {} are open", connections);
      continue;  // the socket closes here
    }
    ::fcntl(socket.native_handle(), F_SETFD, FD_CLOEXEC);
    ++connections;
    const auto done = [this](const std::exception_ptr& failure) {
      --connections;
      if (!failure) return;
      try {
        std::rethrow_exception(failure);
      } catch (const std::exception& e) {
        LOG_ERROR("an HTTP connection failed: {}", e.what());
      }
    };
    beast::tcp_stream stream(std::move(socket));
    asio::co_spawn(io, connection(std::move(stream)), done);
  }
}

asio::awaitable<void> HttpServer::Impl::connection(beast::tcp_stream stream) {
  beast::flat_buffer buffer;
  bool first = true;
  for (;;) {
    const bool again = co_await one_request(stream, buffer, first);
    if (!again) break;
    first = false;
  }
  error_code ec;
  if (stream.socket().is_open()) {
    stream.socket().shutdown(tcp::socket::shutdown_send, ec);
    if (ec && ec != asio::error::not_connected) LOG_DEBUG("closing an HTTP connection: {}", ec.message());
  }
}

asio::awaitable<bool> HttpServer::Impl::one_request(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                                                    bool first) {
  HeaderParser parser;
  parser.header_limit(static_cast<std::uint32_t>(options.header_limit));
  parser.body_limit(boost::none);  // depends on the route
  expire(stream, first || buffer.size() > 0 ? options.header_timeout_ms : options.idle_timeout_ms);
  const auto [ec, n] = co_await http::async_read_header(stream, buffer, parser, kUseTuple);
  if (ec == http::error::end_of_stream || ec == beast::error::timeout ||
      ec == asio::error::connection_reset || ec == asio::error::operation_aborted) {
    co_return false;
  }
  if (ec) {
    const unsigned status = ec == http::error::header_limit ? 431 : 400;
    HttpResponse bad = error_response(status, status == 400 ? "bad request" : "too large", ec.message());
    co_await send_and_close(stream, std::move(bad), false);
    co_return false;
  }
  const auto& header = parser.get();
  const bool head = header.method() == http::verb::head;
  auto parsed = parse_target(head ? "GET" : std::string_view(header.method_string()), header.target());
  if (parsed.has_error()) {
    HttpResponse bad = error_response(parsed.error());
    co_await send_and_close(stream, std::move(bad), head);
    co_return false;
  }
  HttpRequest request = std::move(*parsed);
  request.authorization = header[http::field::authorization];
  request.cancelled = [this] { return stopping.load(); };
  const bool keep_alive = header.keep_alive();
  Route route = handler->route(request);
  if (route.kind == RouteKind::upgrade) {
    if (wants_upgrade(header, options.upgrade_protocol)) {
      co_await upgrade(stream, buffer);
      co_return false;
    }
    route.kind = RouteKind::reply;
    route.error = error_response(426, "upgrade required",
                                 "this address needs 'Upgrade: " + options.upgrade_protocol + "'");
    route.error.headers["Upgrade"] = options.upgrade_protocol;
  }
  if (route.kind == RouteKind::reply) {
    if (parser.is_done()) co_return co_await send(stream, std::move(route.error), keep_alive, head);
    co_await send_and_close(stream, std::move(route.error), head);
    co_return false;
  }
  const bool uploads = route.kind == RouteKind::upload;
  if (parser.content_length().value_or(0) > (uploads ? options.upload_limit : options.body_limit)) {
    HttpResponse bad = error_response(413, "too large", "this request takes no body of that size");
    co_await send_and_close(stream, std::move(bad), head);
    co_return false;
  }
  std::optional<HttpResponse> response;
  if (uploads) {
    response = co_await upload(stream, buffer, parser, request);
    if (!response) co_return false;
    if (response->status < 400) co_return co_await send(stream, std::move(*response), keep_alive, head);
    co_await send_and_close(stream, std::move(*response), head);
    co_return false;
  }
  if (!co_await drain_body(stream, buffer, parser)) co_return false;
  stream.expires_never();
  std::function<HttpResponse()> work = [this, &request] { return handler->handle(request); };
  response = co_await on_pool(route.kind == RouteKind::slow ? slow : quick, work);
  if (!response) co_return false;
  co_return co_await send(stream, std::move(*response), keep_alive, head);
}

asio::awaitable<bool> HttpServer::Impl::drain_body(beast::tcp_stream& stream, beast::flat_buffer& buffer,
                                                   HeaderParser& parser) {
  if (parser.is_done()) co_return true;
  http::request_parser<http::string_body> body(std::move(parser));
  body.body_limit(options.body_limit);
  expire(stream, options.io_timeout_ms);
  const auto [ec, n] = co_await http::async_read(stream, buffer, body, kUseTuple);
  if (!ec) co_return true;
  HttpResponse bad = ec == http::error::body_limit
                         ? error_response(413, "too large", "this request takes no body of that size")
                         : error_response(400, "bad request", ec.message());
  co_await send_and_close(stream, std::move(bad), false);
  co_return false;
}

asio::awaitable<std::optional<HttpResponse>> HttpServer::Impl::upload(beast::tcp_stream& stream,
                                                                      beast::flat_buffer& buffer,
                                                                      HeaderParser& parser,
                                                                      HttpRequest& request) {
  if (iequals(parser.get()[http::field::expect], "100-continue")) {
    http::response<http::empty_body> go_on(http::status::continue_, 11);
    expire(stream, options.io_timeout_ms);
    const auto [ec, n] = co_await http::async_write(stream, go_on, kUseTuple);
    if (ec) co_return std::nullopt;
  }
  auto opened = TempFile::create(options.upload_dir, "upload-");
  if (opened.has_error()) co_return error_response(opened.error());
  TempFile& file = *opened;
  http::request_parser<http::buffer_body> body(std::move(parser));
  body.body_limit(options.upload_limit);
  std::vector<char> piece(kPieceBytes);
  std::uint64_t offset = 0;
  while (!body.is_done()) {
    body.get().body().data = piece.data();
    body.get().body().size = piece.size();
    expire(stream, options.io_timeout_ms);
    const auto [ec, n] = co_await http::async_read(stream, buffer, body, kUseTuple);
    if (ec && ec != http::error::need_buffer) {
      if (ec == http::error::body_limit) co_return error_response(413, "too large", "the body is too large");
      LOG_WARN("an upload broke off after {} bytes: {}", offset, ec.message());
      co_return std::nullopt;
    }
    const std::size_t got = piece.size() - body.get().body().size;
    const auto view = std::as_bytes(std::span(piece.data(), got));
    std::function<Result<void>()> write = [&file, view, offset] { return file.write_at(offset, view); };
    const auto written = co_await on_pool(quick, write);
    if (!written) co_return std::nullopt;
    if (written->has_error()) co_return error_response(written->error());
    offset += got;
  }
  request.upload_path = file.path();
  stream.expires_never();
  std::function<HttpResponse()> work = [this, &request] { return handler->handle(request); };
  co_return co_await on_pool(slow, work);
}

asio::awaitable<bool> HttpServer::Impl::send(beast::tcp_stream& stream, HttpResponse response,
                                             bool keep_alive, bool head) {
  http::response<http::empty_body> out(static_cast<http::status>(response.status), 11);
  out.set(http::field::server, "sluice");
  out.set(http::field::content_type, response.content_type);
  for (const auto& [name, value] : response.headers) out.set(name, value);
  out.keep_alive(keep_alive);
  out.content_length(response.stream ? response.stream->size : response.body.size());
  http::response_serializer<http::empty_body> serializer(out);
  expire(stream, options.io_timeout_ms);
  const auto [ec, n] = co_await http::async_write_header(stream, serializer, kUseTuple);
  if (ec) co_return false;
  if (head) co_return keep_alive;
  if (response.stream) {
    const bool sent = co_await send_stream(stream, *response.stream);
    co_return sent&& keep_alive;
  }
  const auto text = asio::buffer(response.body);
  const auto [ec2, n2] = co_await asio::async_write(stream, text, kUseTuple);
  co_return !ec2 && keep_alive;
}

asio::awaitable<void> HttpServer::Impl::send_and_close(beast::tcp_stream& stream, HttpResponse response,
                                                       bool head) {
  co_await send(stream, std::move(response), false, head);
  error_code ec;
  stream.socket().shutdown(tcp::socket::shutdown_send, ec);
  std::vector<char> piece(64 * 1024);
  const auto buffer = asio::buffer(piece);
  expire(stream, kLingerMs);
  while (!ec) {
    const auto [read_ec, n] = co_await stream.async_read_some(buffer, kUseTuple);
    ec = read_ec;
  }
}

asio::awaitable<bool> HttpServer::Impl::send_stream(beast::tcp_stream& stream, const HttpStream& body) {
  Bytes piece(kPieceBytes);
  for (std::uint64_t offset = 0; offset < body.size;) {
    const auto want = static_cast<std::size_t>(std::min<std::uint64_t>(piece.size(), body.size - offset));
    const ByteSpan span(piece.data(), want);
    std::function<Result<void>()> read = [&body, offset, span] { return body.read(offset, span); };
    const auto filled = co_await on_pool(quick, read);
    if (!filled) co_return false;
    if (filled->has_error()) {
      // The header promised more: the client sees the connection break, never a short file as whole.
      LOG_ERROR("sending a file broke off at byte {}: {}", offset, filled->error().to_string());
      co_return false;
    }
    expire(stream, options.io_timeout_ms);
    const auto data = asio::buffer(piece.data(), want);
    const auto [ec, n] = co_await asio::async_write(stream, data, kUseTuple);
    if (ec) co_return false;
    offset += want;
  }
  co_return true;
}

asio::awaitable<void> HttpServer::Impl::upgrade(beast::tcp_stream& stream, beast::flat_buffer& buffer) {
  http::response<http::empty_body> out(http::status::switching_protocols, 11);
  out.set(http::field::connection, "Upgrade");
  out.set(http::field::upgrade, options.upgrade_protocol);
  expire(stream, options.io_timeout_ms);
  const auto [ec, n] = co_await http::async_write(stream, out, kUseTuple);
  if (ec) co_return;
  error_code peer_ec;
  const auto endpoint = stream.socket().remote_endpoint(peer_ec);
  const std::string peer = peer_ec ? std::string("unknown")
                                   : endpoint.address().to_string() + ":" + std::to_string(endpoint.port());
  const auto rest = buffer.data();
  const auto* begin = static_cast<const std::byte*>(rest.data());
  Bytes early(begin, begin + rest.size());
  tcp::socket socket = stream.release_socket();
  error_code release_ec;
  UniqueFd fd(socket.release(release_ec));
  if (release_ec) {
    LOG_ERROR("handing over the stream of {} failed: {}", peer, release_ec.message());
    co_return;
  }
  handler->upgraded(std::move(fd), std::move(early), peer);
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpServer::~HttpServer() {
  impl_->stop();
}
void HttpServer::serve(HttpHandler& handler) {
  impl_->serve(handler);
}
void HttpServer::stop() {
  impl_->stop();
}
std::uint16_t HttpServer::port() const {
  return impl_->acceptor.local_endpoint().port();
}

Result<std::unique_ptr<HttpServer>> HttpServer::bind(HttpServerOptions options) {
  auto impl = std::make_unique<Impl>(std::move(options));
  TRY(impl->bind());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

}  // namespace sluice::server
