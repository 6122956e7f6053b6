// The node's HTTP API (README, "API"): which request means what. Gets what it works on handed over by the
// node.
#pragma once

#include <functional>
#include <string>

#include "base/mutex.h"
#include "server/http_server.h"
#include "server/status.h"
#include "server/verify.h"

namespace sluice::server {

struct ApiContext {
  storage::Store* store = nullptr;
  storage::Role role = storage::Role::primary;
  std::string token;        ///< empty: none needed
  std::string primary_url;  ///< replica: where to send writers and other replicas
  std::string mountpoint;
  std::function<NodeStatus()> status;
  /// The same without databases, however many there are; empty: status() does.
  std::function<NodeStatus()> summary;
  /// Primary: captures what is committed before it is read. Replica: empty.
  std::function<Result<void>(const std::string&)> capture_now;
  /// Replica: has the pages (none named: whichever differ) replaced by the primary's; returns when that is done. Primary:
  /// empty.
  std::function<Result<void>(const std::string&, const std::vector<Pgno>&, const std::function<bool()>&)> repair;
  /// Takes a replica's connection.
  std::function<void(UniqueFd, Bytes, std::string)> accept_stream;
  /// Has the node replaced by the program that has its path now; empty: nobody would start it.
  std::function<Result<void>()> upgrade;
};

/// Thread-safe.
class Api final : public HttpHandler {
 public:
  explicit Api(ApiContext context) : context_(std::move(context)) {}

  Route route(const HttpRequest& request) override;
  HttpResponse handle(const HttpRequest& request) override;
  void upgraded(UniqueFd socket, Bytes early, std::string peer) override;

 private:
  Route database_route(const HttpRequest& request) const;
  bool authorized(const HttpRequest& request) const;
  HttpResponse not_primary() const;

  HttpResponse ready() const;
  HttpResponse upgrade() const;
  HttpResponse database_request(const HttpRequest& request);
  Result<HttpResponse> export_copy(const HttpRequest& request, storage::Database& database) const;
  Result<HttpResponse> import_upload(const HttpRequest& request, const std::string& name);
  Result<VerifyReport> verify_and_repair(const HttpRequest& request, storage::Database& database) const;
  Result<HttpResponse> verify(const HttpRequest& request, storage::Database& database) const;
  Result<HttpResponse> log_list(const HttpRequest& request, storage::Database& database) const;
  Result<HttpResponse> log_image(const HttpRequest& request, storage::Database& database) const;
  Result<std::shared_ptr<storage::Database>> find(const std::string& name) const;

  const ApiContext context_;
  Mutex import_mutex_;  ///< one import at a time
};

/// Errc::invalid_argument unless a database of that name can be made by an import: no name that the mount or SQLite gives
/// to a file beside a database.
Result<void> check_import_name(const std::string& name);

/// Compares without telling by its time where the first difference is.
bool equal_constant_time(std::string_view a, std::string_view b);

}  // namespace sluice::server
