#include "server/api.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace sluice::server {
namespace {

using ::testing::HasSubstr;

HttpRequest request(const std::string& method, std::vector<std::string> path, const std::string& token = "") {
  HttpRequest r;
  r.method = method;
  r.path = std::move(path);
  if (!token.empty()) r.authorization = "Bearer " + token;
  return r;
}

ApiContext primary() {
  ApiContext c;
  c.role = storage::Role::primary;
  c.status = [] {
    NodeStatus s;
    s.role = storage::Role::primary;
    return s;
  };
  c.accept_stream = [](UniqueFd, Bytes, std::string) {};
  return c;
}

ApiContext replica(bool connected, bool synced) {
  ApiContext c;
  c.role = storage::Role::replica;
  c.primary_url = "http://p:20202";
  c.status = [connected, synced] {
    NodeStatus s;
    s.role = storage::Role::replica;
    s.primary_url = "http://p:20202";
    s.subscriber.emplace();
    s.subscriber->connected = connected;
    s.subscriber->synced = synced;
    s.subscriber->last_error = connected ? "" : "connection refused";
    return s;
  };
  return c;
}

unsigned status_of(Api& api, const HttpRequest& r) {
  const Route route = api.route(r);
  return route.kind == RouteKind::reply ? route.error.status : 200;
}

TEST(ApiRoutes, Kinds) {
  Api api(primary());
  EXPECT_EQ(api.route(request("GET", {"v1", "status"})).kind, RouteKind::quick);
  EXPECT_EQ(api.route(request("GET", {"metrics"})).kind, RouteKind::quick);
  EXPECT_EQ(api.route(request("GET", {"v1", "stream"})).kind, RouteKind::upgrade);
  EXPECT_EQ(api.route(request("GET", {"v1", "databases", "a/b.db", "export"})).kind, RouteKind::slow);
  EXPECT_EQ(api.route(request("POST", {"v1", "databases", "a.db", "import"})).kind, RouteKind::upload);
  EXPECT_EQ(api.route(request("POST", {"v1", "databases", "a.db", "verify"})).kind, RouteKind::slow);
  EXPECT_EQ(api.route(request("GET", {"v1", "databases", "a.db", "log"})).kind, RouteKind::quick);
  EXPECT_EQ(api.route(request("GET", {"v1", "databases", "a.db", "log", "1.ltx"})).kind, RouteKind::slow);
}

TEST(ApiRoutes, UnknownAddressesAndMethods) {
  Api api(primary());
  EXPECT_EQ(status_of(api, request("GET", {})), 404u);
  EXPECT_EQ(status_of(api, request("GET", {"v1"})), 404u);
  EXPECT_EQ(status_of(api, request("GET", {"v2", "status"})), 404u);
  EXPECT_EQ(status_of(api, request("GET", {"v1", "databases"})), 404u);
  EXPECT_EQ(status_of(api, request("GET", {"v1", "databases", "a.db", "explode"})), 404u);
  EXPECT_EQ(status_of(api, request("GET", {"v1", "databases", "a.db", "export", "x"})), 404u);
  EXPECT_EQ(status_of(api, request("POST", {"v1", "status"})), 405u);
  EXPECT_EQ(status_of(api, request("GET", {"v1", "databases", "a.db", "import"})), 405u);
  EXPECT_EQ(api.route(request("PUT", {"metrics"})).error.headers.at("Allow"), "GET");
}

TEST(ApiRoutes, ReplicaSendsWritersAndReplicasToThePrimary) {
  Api api(replica(true, true));
  for (const auto& r :
       {request("POST", {"v1", "databases", "a.db", "import"}), request("GET", {"v1", "stream"})}) {
    const Route route = api.route(r);
    ASSERT_EQ(route.kind, RouteKind::reply);
    EXPECT_EQ(route.error.status, 503u);
    EXPECT_THAT(route.error.body, HasSubstr(R"("primary_url":"http://p:20202")"));
  }
}

TEST(ApiRoutes, TokenIsNeededEverywhereButForProbes) {
  ApiContext c = primary();
  c.token = "secret";
  Api api(std::move(c));
  for (const auto& path : std::vector<std::vector<std::string>>{{"v1", "status"},
                                                                {"metrics"},
                                                                {"v1", "stream"},
                                                                {"v1", "databases", "a.db", "export"},
                                                                {"nothing"}}) {
    EXPECT_EQ(status_of(api, request("GET", path)), 401u);
    EXPECT_EQ(status_of(api, request("GET", path, "wrong")), 401u);
  }
  EXPECT_EQ(status_of(api, request("GET", {"v1", "status"}, "secret")), 200u);
  EXPECT_EQ(status_of(api, request("GET", {"nothing"}, "secret")), 404u);
  EXPECT_EQ(status_of(api, request("GET", {"v1", "health"})), 200u);
  EXPECT_EQ(status_of(api, request("GET", {"v1", "ready"})), 200u);
}

TEST(ApiRoutes, ImportsTakeNoNameThatBelongsToAnother) {
  Api api(primary());
  for (const std::string name : {"a.db-wal", "a.db-shm", "a.db-journal", "a.db-pos", ".primary", ".lag", "../a.db",
                                 "/etc/passwd", "a//b", "", "."}) {
    EXPECT_EQ(status_of(api, request("POST", {"v1", "databases", name, "import"})), 400u) << name;
  }
  EXPECT_EQ(status_of(api, request("POST", {"v1", "databases", std::string("a\0b", 3), "import"})), 400u);
  EXPECT_EQ(status_of(api, request("POST", {"v1", "databases", "tenants/wal", "import"})), 200u);
}

TEST(ApiReady, MeansSynced) {
  Api p(primary());
  EXPECT_EQ(p.handle(request("GET", {"v1", "ready"})).status, 200u);
  Api synced(replica(true, true));
  EXPECT_EQ(synced.handle(request("GET", {"v1", "ready"})).status, 200u);
  Api behind(replica(true, false));
  EXPECT_EQ(behind.handle(request("GET", {"v1", "ready"})).status, 503u);
  Api away(replica(false, true));
  const HttpResponse response = away.handle(request("GET", {"v1", "ready"}));
  EXPECT_EQ(response.status, 503u);
  EXPECT_THAT(response.body, HasSubstr("connection refused"));
  EXPECT_EQ(away.handle(request("GET", {"v1", "health"})).status, 200u);
}

TEST(ApiErrors, EveryCodeHasAStatus) {
  EXPECT_EQ(http_status(Errc::not_found), 404u);
  EXPECT_EQ(http_status(Errc::invalid_argument), 400u);
  EXPECT_EQ(http_status(Errc::busy), 409u);
  EXPECT_EQ(http_status(Errc::internal), 500u);
  EXPECT_THAT(error_response(make_error(Errc::not_found, "no \"x\"")).body,
              HasSubstr(R"("message":"no \"x\"")"));
  EXPECT_THAT(error_response(make_error(Errc::not_found, "no \xff")).body, HasSubstr("no \xef\xbf\xbd"));
}

}  // namespace
}  // namespace sluice::server
