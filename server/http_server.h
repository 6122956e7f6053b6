// The node's one TCP port: HTTP/1.1 for the API, and the way in for replicas' streams (GET /v1/stream,
// Upgrade: sluice). Knows HTTP and nothing of Sluice: what a request means is the HttpHandler's.
//
// Threads: one thread with one io_context for the sockets; handlers and files on pools. Limits: header 16
// KiB, body 64 KiB unless the route is an upload, 256 connections, 10 s for a header, 30 s for every other
// read or write, 60 s idle between requests. What is not HTTP is answered with 400 and closed.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/errors.h"
#include "base/fd.h"
#include "server/config.h"

namespace sluice::server {

struct HttpRequest {
  std::string method;
  std::vector<std::string> path;  ///< percent-decoded segments: /v1/databases/a%2Fb -> v1, databases, a/b
  std::map<std::string, std::string> query;  ///< percent-decoded
  std::string authorization;                 ///< the header, as sent
  std::string upload_path;  ///< upload routes: the file with the body; the server removes it afterwards
  /// Becomes true when the server stops: long work should end.
  std::function<bool()> cancelled;
};

/// A body that is read in pieces on a pool thread, e.g. from a file.
struct HttpStream {
  std::uint64_t size = 0;
  /// Fills `out` (all of it: never asked beyond size) from `offset`.
  std::function<Result<void>(std::uint64_t offset, ByteSpan out)> read;
};

struct HttpResponse {
  unsigned status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::optional<HttpStream> stream;  ///< instead of body
  std::map<std::string, std::string> headers;
};

/// {"code":…,"message":…}, with the status that belongs to the code.
HttpResponse error_response(const Error& error);
HttpResponse error_response(unsigned status, std::string_view code, std::string_view message);
/// The table Errc -> HTTP status.
unsigned http_status(Errc code);

enum class RouteKind {
  reply,    ///< answer with `error` at once
  quick,    ///< handle() on the pool for short work
  slow,     ///< handle() on the pool for long work
  upload,   ///< body to a temporary file first, then handle() on the pool for long work
  upgrade,  ///< 101, then upgraded()
};
struct Route {
  RouteKind kind = RouteKind::reply;
  HttpResponse error;
};

class HttpHandler {
 public:
  virtual ~HttpHandler() = default;
  /// Decides by the header alone; on the network thread: must not block.
  virtual Route route(const HttpRequest& request) = 0;
  /// On a pool thread; may block.
  virtual HttpResponse handle(const HttpRequest& request) = 0;
  /// Takes over a connection that was answered 101. `early`: bytes read behind the request. Network thread.
  virtual void upgraded(UniqueFd socket, Bytes early, std::string peer) = 0;
};

struct HttpServerOptions {
  HostPort listen;
  std::string upload_dir;
  std::string upgrade_protocol = "sluice";
  int header_timeout_ms = 10'000;
  int io_timeout_ms = 30'000;
  int idle_timeout_ms = 60'000;
  std::size_t header_limit = 16 * 1024;
  std::size_t body_limit = 64 * 1024;
  std::uint64_t upload_limit = std::uint64_t{1} << 40;
  std::size_t max_connections = 256;
};

/// Thread-safe.
class HttpServer {
 public:
  /// Binds and listens; connections wait until serve(). Errc::in_use: names the address;
  /// Errc::unavailable: the host does not resolve to an address of this machine, or not yet.
  static Result<std::unique_ptr<HttpServer>> bind(HttpServerOptions options);
  ~HttpServer();

  /// `handler` outlives stop().
  void serve(HttpHandler& handler);
  /// What it listens on (the real port, if 0 was asked for).
  std::uint16_t port() const;
  /// Closes the port and all connections, cancels and waits for handlers. Idempotent.
  void stop();

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::server
