#include "server/status.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include "server/virtual_files.h"

namespace sluice::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

NodeStatus primary_status() {
  NodeStatus s;
  s.role = storage::Role::primary;
  s.node_id = NodeId(0xabc);
  s.hostname = "alpha";
  s.epoch = Epoch(1);
  s.uptime_ms = 61'000;
  s.mountpoint = "/mnt/a";
  DatabaseStatus d;
  d.name = "tenants/42.db";
  d.pos = {Txid(16), Checksum(0x8000000000000001)};
  d.page_size = 4096;
  d.pages = 512;
  d.journal_mode = "wal";
  d.log_first = Txid(3);
  d.durable = Txid(15);
  d.log_bytes = 1000;
  s.databases.push_back(d);
  replication::ReplicaStatus r;
  r.node_id = NodeId(0xdef);
  r.hostname = "beta";
  r.address = "10.0.0.2:4000";
  r.databases.push_back({"tenants/42.db", Txid(15), Txid(14)});
  s.replicas.push_back(r);
  s.fuse_requests["WRITE"] = 7;
  return s;
}

NodeStatus replica_status() {
  NodeStatus s = primary_status();
  s.role = storage::Role::replica;
  s.replicas.clear();
  s.primary_url = "http://alpha:20202";
  s.primary_hostname = "alpha";
  s.databases[0].applied = Pos{Txid(14), Checksum(0x8000000000000002)};
  s.subscriber.emplace();
  s.subscriber->last_error = "connection refused";
  return s;
}

TEST(Status, AResynchronisationIsShownOnBothSides) {
  using Progress = replication::ResyncProgress;
  NodeStatus replica = replica_status();
  replica.databases[0].resync = {Progress::Phase::copying, 250, 1000, 1 << 20, 500};
  const std::string json = status_json(replica);
  const auto resync = boost::json::parse(json).at("databases").as_array().at(0).at("resync");
  EXPECT_EQ(resync.at("phase").as_string(), "copying");
  EXPECT_EQ(resync.at("expected_pages").as_int64(), 1000);
  EXPECT_EQ(resync.at("bytes_per_second").as_int64(), 2 << 20);
  EXPECT_EQ(resync.at("eta_ms").as_int64(), 1500);
  EXPECT_THAT(*status_table(json), HasSubstr("tenants/42.db is being resynchronised: copying, 250 of about 1000 pages, "
                                            "1.0 MiB at 2.0 MiB/s, 2 s to go"));
  EXPECT_THAT(metrics_text(replica), HasSubstr("sluice_resync_expected_pages{db=\"tenants/42.db\"} 1000"));
  NodeStatus primary = primary_status();
  primary.replicas[0].databases[0].resync.phase = Progress::Phase::comparing;
  EXPECT_THAT(*status_table(status_json(primary)),
              HasSubstr("tenants/42.db on beta is being resynchronised: comparing"));
  EXPECT_THAT(metrics_text(primary), HasSubstr("sluice_resync_pages{"));
  EXPECT_THAT(metrics_text(primary_status()), Not(HasSubstr("sluice_resync")));
}

TEST(Status, TheLastScrubIsShown) {
  NodeStatus status = replica_status();
  status.databases[0].scrub = ScrubStatus{5000, 512, 2, 3};
  const std::string json = status_json(status);
  EXPECT_THAT(*status_table(json), HasSubstr("tenants/42.db: the last scrub found 2 damaged pages"));
  EXPECT_EQ(boost::json::parse(json).at("databases").as_array().at(0).at("scrub").at("bad_total").as_int64(), 3);
  EXPECT_THAT(metrics_text(status), HasSubstr("sluice_scrub_bad_pages_total{db=\"tenants/42.db\"} 3"));
}

TEST(StatusJson, PrimaryShowsReplicasAndTheirLag) {
  const auto json = boost::json::parse(status_json(primary_status()));
  EXPECT_EQ(json.at("role").as_string(), "primary");
  const auto& d = json.at("databases").as_array().at(0);
  EXPECT_EQ(d.at("txid").as_string(), "0000000000000010");
  EXPECT_EQ(d.at("bytes").to_number<int>(), 512 * 4096);
  EXPECT_EQ(d.at("log").at("durable").as_string(), "000000000000000f");
  const auto& r = json.at("replicas").as_array().at(0).at("databases").as_array().at(0);
  EXPECT_EQ(r.at("lag_txids").to_number<int>(), 2);
}

TEST(StatusJson, ReplicaShowsThePrimaryAndWhyNot) {
  const auto json = boost::json::parse(status_json(replica_status()));
  EXPECT_FALSE(json.at("ready").as_bool());
  EXPECT_EQ(json.at("primary").at("last_error").as_string(), "connection refused");
  EXPECT_TRUE(json.at("primary").at("lag_ms").is_null());
  EXPECT_EQ(json.at("databases").as_array().at(0).at("applied_txid").as_string(), "000000000000000e");
}

// File names are bytes; what is said of them is JSON and text all the same.
TEST(StatusJson, ANameThatIsNotUtf8) {
  NodeStatus s = primary_status();
  s.databases[0].name = "caf\xe9/1.db";
  s.replicas[0].databases[0].name = s.databases[0].name;
  boost::system::error_code broken;
  const auto json = boost::json::parse(status_json(s), broken);
  ASSERT_FALSE(broken) << broken.message();
  const auto& d = json.at("databases").as_array().at(0);
  EXPECT_EQ(d.at("name").as_string(), "caf\xef\xbf\xbd/1.db");
  EXPECT_EQ(d.at("name_encoded").as_string(), "caf%E9%2F1.db");
  EXPECT_EQ(json.at("replicas").as_array().at(0).at("databases").as_array().at(0).at("lag_txids"), 2);
  EXPECT_TRUE(status_table(status_json(s)));
  EXPECT_THAT(metrics_text(s), HasSubstr("sluice_db_pages{db=\"caf\xef\xbf\xbd/1.db\"} 512\n"));
}

TEST(StatusTable, BothRoles) {
  const auto primary = status_table(status_json(primary_status()));
  ASSERT_TRUE(primary) << primary.error().message;
  EXPECT_THAT(*primary, HasSubstr("role      primary"));
  EXPECT_THAT(*primary, Not(HasSubstr("STOPPED")));
  EXPECT_THAT(*primary, HasSubstr("tenants/42.db  10    8000000000000001  2.0 MiB"));
  EXPECT_THAT(*primary, HasSubstr("beta     10.0.0.2:4000  tenants/42.db  f        e        2"));
  const auto replica = status_table(status_json(replica_status()));
  ASSERT_TRUE(replica) << replica.error().message;
  EXPECT_THAT(*replica, HasSubstr("primary   alpha (http://alpha:20202), NOT connected: connection refused"));
  EXPECT_THAT(*replica, HasSubstr("lag       unknown"));
  NodeStatus stopped = primary_status();
  stopped.databases[0].fault = "fsync of its WAL failed";
  EXPECT_THAT(*status_table(status_json(stopped)), HasSubstr("tenants/42.db is STOPPED: fsync of its WAL failed"));
  EXPECT_THAT(metrics_text(stopped), HasSubstr("sluice_db_stopped{db=\"tenants/42.db\"} 1\n"));
  EXPECT_TRUE(status_table("[]").has_error());
  EXPECT_TRUE(status_table("{}").has_error());
}

TEST(Metrics, PrometheusText) {
  const std::string primary = metrics_text(primary_status());
  EXPECT_THAT(primary, HasSubstr("sluice_db_txid{db=\"tenants/42.db\"} 16\n"));
  EXPECT_THAT(primary, HasSubstr("sluice_fuse_requests_total{opcode=\"WRITE\"} 7\n"));
  EXPECT_THAT(primary, HasSubstr("sluice_is_primary 1\n"));
  EXPECT_THAT(primary, HasSubstr("sluice_replica_lag_txids{replica=\"0000000000000def\",hostname=\"beta\",db="
                                 "\"tenants/42.db\"} 2\n"));
  EXPECT_THAT(primary, HasSubstr("process_open_fds "));
  EXPECT_THAT(primary, Not(HasSubstr("process_resident_memory_bytes 0\n")));
  const std::string replica = metrics_text(replica_status());
  EXPECT_THAT(replica, HasSubstr("sluice_connected 0\n"));
  EXPECT_THAT(replica, HasSubstr("sluice_db_applied_txid{db=\"tenants/42.db\"} 14\n"));
  EXPECT_THAT(replica, Not(HasSubstr("sluice_lag_seconds ")));
}

TEST(NodeFiles, AsLiteFsDefinesThem) {
  std::optional<std::int64_t> lag;
  std::string host;
  std::optional<Pos> pos;
  NodeFiles::Sources sources;
  sources.primary_host = [&] { return host; };
  sources.lag_ms = [&] { return lag; };
  sources.position = [&](const std::string& name) { return name == "a.db" ? pos : std::nullopt; };
  NodeFiles files(std::move(sources));
  EXPECT_EQ(files.primary(), "");
  host = "alpha";
  EXPECT_EQ(files.primary(), "alpha\n");
  EXPECT_EQ(files.lag(), "+2147483647\n");
  lag = 0;
  EXPECT_EQ(files.lag(), "+000000000\n");
  lag = 1234;
  EXPECT_EQ(files.lag(), "+000001234\n");
  EXPECT_EQ(files.position("a.db"), "");
  pos = Pos{Txid(0x1f), Checksum(0x8000000000000001)};
  EXPECT_EQ(files.position("a.db"), "000000000000001f/8000000000000001\n");
  EXPECT_EQ(files.position("b.db"), "");
}

}  // namespace
}  // namespace sluice::server
