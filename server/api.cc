#include "server/api.h"

#include <unistd.h>

#include <boost/json.hpp>

#include "server/database_files.h"
#include "base/utf8.h"

namespace sluice::server {
namespace {

namespace json = boost::json;
constexpr std::uint64_t kDefaultRecords = 1000;
constexpr std::uint64_t kMostRecords = 10'000;

Route reply(unsigned status, std::string_view code, std::string_view message) {
  return {RouteKind::reply, error_response(status, code, message)};
}

Route require(const HttpRequest& request, std::string_view method, RouteKind kind) {
  if (request.method == method) return {kind, {}};
  Route route = reply(405, "method not allowed", "this address takes " + std::string(method));
  route.error.headers["Allow"] = std::string(method);
  return route;
}

bool flag(const HttpRequest& request, const std::string& name) {
  const auto it = request.query.find(name);
  return it != request.query.end() && (it->second == "1" || it->second == "true");
}

// A decimal or 16-hex-digit TXID.
std::optional<std::uint64_t> parse_txid(const std::string& text) {
  if (const auto hex = parse_hex(text)) return hex;
  if (text.empty() || text.size() > 15 || text.find_first_not_of("0123456789") != std::string::npos)
    return std::nullopt;
  return std::stoull(text);
}

json::object record_json(const storage::RecordInfo& r) {
  return json::object{{"min_txid", to_hex(r.min_txid.value())},
                      {"max_txid", to_hex(r.post.txid.value())},
                      {"epoch", r.epoch.value()},
                      {"pre_checksum", to_hex(r.pre.checksum.value())},
                      {"post_checksum", to_hex(r.post.checksum.value())},
                      {"page_size", r.page_size},
                      {"commit", r.commit},
                      {"timestamp_ms", r.timestamp_ms},
                      {"bytes", r.length},
                      {"base", r.base}};
}

}  // namespace

Result<void> check_import_name(const std::string& name) {
  TRY(storage::check_database_name(name));
  for (const std::string_view suffix : {"-journal", "-wal", "-shm", "-pos"}) {
    if (name.ends_with(suffix))
      return make_error(Errc::invalid_argument, "'" + name + "' would be taken for a file beside a database");
  }
  if (name == ".primary" || name == ".lag")
    return make_error(Errc::invalid_argument, "'" + name + "' is one of the mount's own files");
  return {};
}

bool equal_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0U : 1U;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    difference |= static_cast<unsigned>(static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(other));
  }
  return difference == 0;
}

bool Api::authorized(const HttpRequest& request) const {
  if (context_.token.empty()) return true;
  constexpr std::string_view kScheme = "Bearer ";
  const std::string_view given = request.authorization;
  return given.starts_with(kScheme) && equal_constant_time(given.substr(kScheme.size()), context_.token);
}

HttpResponse Api::not_primary() const {
  HttpResponse response;
  response.status = 503;
  response.body = json::serialize(json::object{
                      {"code", "read only"},
                      {"message", "this node is a replica; the primary is " + context_.primary_url},
                      {"primary_url", context_.primary_url}}) +
                  "\n";
  return response;
}

Route Api::route(const HttpRequest& request) {
  const auto& path = request.path;
  // Probes carry no secret and learn none.
  const bool probe = path.size() == 2 && path[0] == "v1" && (path[1] == "health" || path[1] == "ready");
  if (!probe && !authorized(request)) {
    Route route = reply(401, "unauthorized",
                        "wrong or missing token: send 'Authorization: Bearer TOKEN' (--token-file)");
    route.error.headers["WWW-Authenticate"] = "Bearer";
    return route;
  }
  if (path.size() == 1 && path[0] == "metrics") return require(request, "GET", RouteKind::quick);
  if (path.size() >= 2 && path[0] == "v1") {
    if (path[1] == "databases") return database_route(request);
    if (path.size() == 2 && (probe || path[1] == "status")) return require(request, "GET", RouteKind::quick);
    if (path.size() == 2 && path[1] == "upgrade") return require(request, "POST", RouteKind::quick);
    if (path.size() == 2 && path[1] == "stream") {
      if (!context_.accept_stream) return {RouteKind::reply, not_primary()};
      return require(request, "GET", RouteKind::upgrade);
    }
  }
  return reply(404, "not found", "there is nothing at this address");
}

Route Api::database_route(const HttpRequest& request) const {
  const auto& path = request.path;
  if (path.size() == 4) {
    const std::string& action = path[3];
    if (action == "export") return require(request, "GET", RouteKind::slow);
    if (action == "verify") return require(request, "POST", RouteKind::slow);
    if (action == "log") return require(request, "GET", RouteKind::quick);
    if (action == "import") {
      if (context_.role != storage::Role::primary) return {RouteKind::reply, not_primary()};
      const auto good = check_import_name(path[2]);
      if (good.has_error()) return {RouteKind::reply, error_response(good.error())};
      return require(request, "POST", RouteKind::upload);
    }
  }
  if (path.size() == 5 && path[3] == "log") return require(request, "GET", RouteKind::slow);
  return reply(404, "not found", "there is nothing at this address");
}

HttpResponse Api::upgrade() const {
  if (!context_.upgrade)
    return error_response(409, "unsupported", "this node runs without a guardian (sluice mount --guardian): stop it and start the "
                                              "new program");
  const Result<void> asked = context_.upgrade();
  if (asked.has_error()) return error_response(asked.error());
  HttpResponse response;
  response.body = json::serialize(json::object{{"process", ::getpid()}}) + "\n";
  return response;
}

HttpResponse Api::handle(const HttpRequest& request) {
  HttpResponse response;
  if (request.path[0] == "metrics") {
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = metrics_text(context_.status());
  } else if (request.path[1] == "health") {
    response.body = "{\"status\":\"ok\"}\n";
  } else if (request.path[1] == "upgrade") {
    response = upgrade();
  } else if (request.path[1] == "ready") {
    return ready();
  } else if (request.path[1] == "status") {
    response.body = status_json(context_.status());
  } else {
    return database_request(request);
  }
  return response;
}

HttpResponse Api::ready() const {
  const NodeStatus status = context_.summary ? context_.summary() : context_.status();
  if (!status.ready()) return error_response(503, "not ready", status.not_ready_reason());
  HttpResponse response;
  response.body = "{\"status\":\"ready\"}\n";
  return response;
}

void Api::upgraded(UniqueFd socket, Bytes early, std::string peer) {
  context_.accept_stream(std::move(socket), std::move(early), std::move(peer));
}

Result<std::shared_ptr<storage::Database>> Api::find(const std::string& name) const {
  auto database = context_.store->find(name);
  if (database == nullptr) return make_error(Errc::not_found, "there is no database '" + name + "'");
  return database;
}

HttpResponse Api::database_request(const HttpRequest& request) {
  const std::string& name = request.path[2];
  const std::string& action = request.path[3];
  const auto run = [&]() -> Result<HttpResponse> {
    TRY(storage::check_database_name(name));
    if (action == "import") return import_upload(request, name);
    if (context_.capture_now && context_.store->find(name) != nullptr) TRY(context_.capture_now(name));
    TRY_ASSIGN(const auto database, find(name));
    if (action == "export") return export_copy(request, *database);
    if (action == "verify") return verify(request, *database);
    return request.path.size() == 5 ? log_image(request, *database) : log_list(request, *database);
  };
  Result<HttpResponse> result = run();
  if (result.has_error()) return error_response(result.error());
  return std::move(*result);
}

Result<HttpResponse> Api::export_copy(const HttpRequest& request, storage::Database& database) const {
  TRY_ASSIGN(DatabaseCopy copied, copy_to_temp(database, context_.store->tmp_dir(), request.cancelled));
  const auto copy = std::make_shared<DatabaseCopy>(std::move(copied));
  HttpResponse response;
  response.content_type = "application/vnd.sqlite3";
  response.headers["Sluice-Txid"] = to_hex(copy->end.pos.txid.value());
  response.headers["Sluice-Checksum"] = to_hex(copy->end.pos.checksum.value());
  TRY_ASSIGN(const std::uint64_t size, copy->file.size());
  response.stream = HttpStream{
      size, [copy](std::uint64_t offset, ByteSpan out) { return copy->file.read_at(offset, out); }};
  return response;
}

Result<HttpResponse> Api::import_upload(const HttpRequest& request, const std::string& name) {
  if (!import_mutex_.try_lock()) return make_error(Errc::busy, "another import is running");
  const std::unique_ptr<Mutex, void (*)(Mutex*)> unlock(
      &import_mutex_, [](Mutex* m) NO_THREAD_SAFETY_ANALYSIS { m->unlock(); });
  TRY(check_importable(request.upload_path, "the uploaded file"));
  const auto existing = context_.store->find(name);
  const bool has_content = existing != nullptr && !existing->deleted();
  TRY_ASSIGN(const bool has_file, context_.store->fs().exists(context_.store->backing_path(name)));
  if (has_file && !has_content) {
    return make_error(Errc::exists,
                      "'" + name + "' is a file that is not a replicated database; choose another name");
  }
  if (has_content && !flag(request, "replace")) {
    return make_error(Errc::exists,
                      "the database '" + name + "' exists already; replace it with --replace (?replace=1)");
  }
  TRY(restore_in_child(request.upload_path, context_.mountpoint + "/" + name, request.cancelled));
  TRY(context_.capture_now(name));
  TRY_ASSIGN(const auto database, find(name));
  const Pos pos = database->pos();
  HttpResponse response;
  response.body = json::serialize(json::object{{"name", clean_utf8(name)},
                                               {"txid", to_hex(pos.txid.value())},
                                               {"checksum", to_hex(pos.checksum.value())},
                                               {"page_size", database->page_size()},
                                               {"pages", database->page_count()}}) +
                  "\n";
  return response;
}

Result<VerifyReport> Api::verify_and_repair(const HttpRequest& request, storage::Database& database) const {
  VerifyOptions options;
  options.cancelled = request.cancelled;
  const bool repair = flag(request, "repair");
  if (repair && !context_.repair) {
    return make_error(Errc::unsupported,
                      "this node is the primary, whose pages are what the others are repaired from. Verify a replica; if it is "
                      "sound, export there and import the copy here with --replace (docs/OPERATING.md)");
  }
  TRY_ASSIGN(VerifyReport before, verify_database(database, options));
  if (!repair || before.ok()) return before;
  TRY(context_.repair(database.name(), before.bad_pages, request.cancelled));
  TRY_ASSIGN(VerifyReport after, verify_database(database, options));
  after.repaired = before.bad_count > after.bad_count ? before.bad_count - after.bad_count : 0;
  return after;
}

Result<HttpResponse> Api::verify(const HttpRequest& request, storage::Database& database) const {
  if (database.deleted())
    return make_error(Errc::not_found, "the database '" + database.name() + "' has no content");
  TRY_ASSIGN(VerifyReport report, verify_and_repair(request, database));
  if (flag(request, "integrity")) {
    const auto copy = copy_to_temp(database, context_.store->tmp_dir(), request.cancelled);
    if (copy.has_error() && copy.error().code != Errc::corrupt) return copy.error();
    const auto findings = copy ? integrity_check(copy->file.path()) : Result<std::string>(copy.error());
    report.integrity = findings ? *findings : findings.error().message;
  }
  HttpResponse response;
  response.body = verify_json(database.name(), report);
  return response;
}

Result<HttpResponse> Api::log_list(const HttpRequest& request, storage::Database& database) const {
  std::uint64_t from = database.log().first_readable().value();
  std::uint64_t limit = kDefaultRecords;
  for (const auto& [key, value] : request.query) {
    const auto number = parse_txid(value);
    if ((key != "from" && key != "limit") || !number) {
      return make_error(Errc::invalid_argument, "the parameters are from=TXID and limit=NUMBER");
    }
    (key == "from" ? from : limit) = *number;
  }
  limit = std::min(limit, kMostRecords);
  json::array records;
  bool more = false;
  TRY(database.log().for_each(Txid(from), [&](const storage::ChangeLog::Handle& handle) {
    more = records.size() >= limit;
    if (!more) records.push_back(record_json(handle.info));
    return !more;
  }));
  HttpResponse response;
  response.body = json::serialize(json::object{{"name", clean_utf8(database.name())},
                                               {"first", to_hex(database.log().first_readable().value())},
                                               {"durable", to_hex(database.log().durable().value())},
                                               {"records", std::move(records)},
                                               {"more", more}}) +
                  "\n";
  return response;
}

Result<HttpResponse> Api::log_image(const HttpRequest& request, storage::Database& database) const {
  std::string text = request.path[4];
  if (!text.ends_with(".ltx")) return make_error(Errc::not_found, "change sets are named TXID.ltx");
  text.resize(text.size() - 4);
  const auto txid = parse_txid(text);
  if (!txid) return make_error(Errc::invalid_argument, "'" + text + "' is not a TXID");
  TRY_ASSIGN(const storage::ChangeLog::Handle handle, database.log().find(Txid(*txid)));
  HttpResponse response;
  response.content_type = "application/octet-stream";
  response.headers["Sluice-Min-Txid"] = to_hex(handle.info.min_txid.value());
  response.headers["Sluice-Max-Txid"] = to_hex(handle.info.post.txid.value());
  response.stream =
      HttpStream{handle.info.length, [handle](std::uint64_t offset, ByteSpan out) -> Result<void> {
                   TRY_ASSIGN(const std::size_t n, handle.file->read_at(handle.offset + offset, out));
                   if (n != out.size())
                     return make_error(Errc::corrupt, "the change log ends inside a record");
                   return {};
                 }};
  return response;
}

}  // namespace sluice::server
