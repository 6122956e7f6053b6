#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/os.h"

namespace sluice::server {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

std::vector<std::string> lines(const std::vector<ConfigError>& errors) {
  std::vector<std::string> out;
  for (const ConfigError& e : errors) out.push_back(std::to_string(e.line) + " " + e.key);
  return out;
}

Config load_ok(std::string_view yaml) {
  Config config;
  const auto errors = load_yaml(yaml, config);
  EXPECT_THAT(format_errors("f", errors), IsEmpty());
  return config;
}

TEST(ConfigKeys, EachHasAFlagOrIsPositional) {
  std::set<std::string_view> keys;
  std::set<std::string_view> flags;
  for (const ConfigKey& key : config_keys()) {
    EXPECT_TRUE(keys.insert(key.key).second) << key.key;
    if (key.flag.empty()) {
      EXPECT_EQ(key.metavar, "MOUNTPOINT");
    } else {
      EXPECT_TRUE(flags.insert(key.flag).second) << key.flag;
    }
    EXPECT_FALSE(key.help.empty()) << key.key;
  }
}

TEST(LoadYaml, TakesEverySetting) {
  const Config c = load_ok(R"(
fuse:
  dir: /mnt/a
  allow-other: true
  io: native
data:
  dir: /var/lib/a
  retention: 1h30m
  retention-bytes: 512MiB
  retention-monitor-interval: 30s
http:
  addr: ":20300"
  token-file: /etc/token
  insecure: true
lease:
  type: static
  hostname: a
  advertise-url: http://a:20300/
  primary-url: http://b:20202
replica:
  writes: wait
skip-sync: true
unmount-wait: 9s
log:
  format: json
  debug: true
exec: "app --flag 'two words'"
)");
  EXPECT_EQ(c.mountpoint, "/mnt/a");
  EXPECT_TRUE(c.allow_other);
  EXPECT_EQ(c.io, IoChoice::native);
  EXPECT_EQ(c.data_dir, "/var/lib/a");
  EXPECT_EQ(c.retention_ms, 5'400'000);
  EXPECT_EQ(c.retention_bytes, 512u << 20);
  EXPECT_EQ(c.retention_interval_ms, 30'000);
  EXPECT_EQ(c.listen, ":20300");
  EXPECT_EQ(c.token_file, "/etc/token");
  EXPECT_TRUE(c.insecure);
  EXPECT_EQ(c.hostname, "a");
  EXPECT_EQ(c.advertise_url, "http://a:20300");
  EXPECT_EQ(c.primary_url, "http://b:20202");
  EXPECT_EQ(c.replica_writes, ReplicaWrites::wait);
  EXPECT_TRUE(c.skip_sync);
  EXPECT_EQ(c.unmount_wait_ms, 9000);
  EXPECT_TRUE(c.log_json);
  EXPECT_TRUE(c.debug);
  ASSERT_EQ(c.exec.size(), 1u);
  EXPECT_THAT(c.exec[0].argv, ElementsAre("app", "--flag", "two words"));
}

// Every key of the table can be set from YAML under exactly its name.
TEST(LoadYaml, KnowsEveryKeyOfTheTable) {
  for (const ConfigKey& key : config_keys()) {
    const std::string name(key.key);
    const std::size_t dot = name.find('.');
    const std::string yaml = dot == std::string::npos
                                 ? name + ": nonsense\n"
                                 : name.substr(0, dot) + ":\n  " + name.substr(dot + 1) + ": nonsense\n";
    Config config;
    for (const ConfigError& e : load_yaml(yaml, config)) {
      EXPECT_EQ(e.message.find("is not a setting"), std::string::npos) << key.key << ": " << e.message;
    }
  }
}

TEST(LoadYaml, ReportsAllMistakesWithLineAndKey) {
  Config config;
  const auto errors = load_yaml(R"(fuse:
  dirr: /mnt/a
data:
  retention: soon
lease:
  type: consul
http:
  addr: nowhere
colour: blue
log:
  format: xml
  format: text
)",
                                config);
  EXPECT_THAT(lines(errors), ElementsAre("2 fuse.dirr", "4 data.retention", "6 lease.type", "8 http.addr",
                                         "9 colour", "11 log.format", "12 log.format"));
  EXPECT_EQ(format_errors("sluice.yml", {errors[0]}), "sluice.yml:2: fuse.dirr: is not a setting of Sluice");
}

TEST(LoadYaml, BrokenYamlNamesTheLine) {
  Config config;
  const auto errors = load_yaml("fuse:\n  dir: [\n", config);
  ASSERT_EQ(errors.size(), 1u);
  EXPECT_GT(errors[0].line, 0);
  EXPECT_THAT(errors[0].message, HasSubstr("not YAML"));
}

TEST(LoadYaml, WrongShapes) {
  Config config;
  EXPECT_THAT(lines(load_yaml("fuse: 3\n", config)), ElementsAre("1 fuse"));
  EXPECT_THAT(lines(load_yaml("data:\n  dir: [a, b]\n", config)), ElementsAre("2 data.dir"));
  EXPECT_THAT(lines(load_yaml("- a\n- b\n", config)), ElementsAre("1 "));
  EXPECT_THAT(lines(load_yaml("", config)), IsEmpty());
  EXPECT_THAT(lines(load_yaml("exec:\n  - command: x\n", config)), ElementsAre("2 exec"));
  EXPECT_THAT(lines(load_yaml("exec: \"a 'b\"\n", config)), ElementsAre("1 exec"));
}

TEST(LoadYaml, LiteFsFileOfAStaticPrimary) {
  const Config c = load_ok(R"(
exit-on-error: true
skip-sync: false
strict-verify: false
fuse:
  dir: "/litefs"
  allow-other: false
  debug: false
data:
  dir: "/var/lib/litefs"
  compress: true
  retention: "10m"
  retention-monitor-interval: "1m"
http:
  addr: "127.0.0.1:20202"
lease:
  type: "static"
  hostname: "primary"
  advertise-url: "http://primary:20202"
  candidate: true
  promote: false
proxy:
  addr: ":8080"
  db: "db"
log:
  format: "text"
  timestamp: false
exec:
  - cmd: "migrate --all"
    if-candidate: true
  - cmd: "server"
)");
  EXPECT_FALSE(c.is_replica());
  ASSERT_EQ(c.exec.size(), 2u);
  EXPECT_TRUE(c.exec[0].if_candidate);
  EXPECT_FALSE(c.exec[1].if_candidate);
}

TEST(FinishConfig, LiteFsStaticReplicaNamesThePrimaryAsAdvertiseUrl) {
  Config c = load_ok(
      "fuse: {dir: /m}\ndata: {dir: /d}\nlease: {type: static, candidate: false, advertise-url: "
      "'http://p:20202'}\n");
  EXPECT_THAT(finish_config(c), IsEmpty());
  EXPECT_TRUE(c.is_replica());
  EXPECT_EQ(c.primary_url, "http://p:20202");
}

TEST(LoadYaml, LiteFsKeysThatAskForMoreThanWeDo) {
  Config config;
  const auto errors =
      load_yaml("backup:\n  type: file\nproxy:\n  target: localhost:80\nstrict-verify: true\n", config);
  EXPECT_THAT(lines(errors), ElementsAre("2 backup.type", "4 proxy.target", "5 strict-verify"));
  for (const ConfigError& e : errors) EXPECT_THAT(e.message, HasSubstr("not supported"));
}

TEST(FinishConfig, Rules) {
  Config empty;
  EXPECT_THAT(lines(finish_config(empty)), ElementsAre("0 fuse.dir", "0 data.dir"));
  Config open;
  open.mountpoint = "/m";
  open.data_dir = "/d";
  open.listen = "0.0.0.0:20202";
  EXPECT_THAT(lines(finish_config(open)), ElementsAre("0 http.addr"));
  open.insecure = true;
  EXPECT_THAT(finish_config(open), IsEmpty());
  open.insecure = false;
  open.token_file = "/t";
  EXPECT_THAT(finish_config(open), IsEmpty());
  Config both = open;
  both.candidate = true;
  both.primary_url = "http://p:1";
  EXPECT_THAT(lines(finish_config(both)), ElementsAre("0 lease.candidate"));
  Config neither = open;
  neither.candidate = false;
  EXPECT_THAT(lines(finish_config(neither)), ElementsAre("0 lease.candidate"));
  Config same = open;
  same.data_dir = "/m";
  EXPECT_THAT(lines(finish_config(same)), ElementsAre("0 fuse.dir"));
  Config hidden = open;
  hidden.data_dir = "/m/data";
  EXPECT_THAT(lines(finish_config(hidden)), ElementsAre("0 data.dir"));
  Config within = open;
  within.mountpoint = "/d/fs";
  EXPECT_THAT(lines(finish_config(within)), ElementsAre("0 fuse.dir"));
  Config beside = open;
  beside.mountpoint = "/d-mount";
  EXPECT_THAT(finish_config(beside), IsEmpty());
}

// deploy/sluice.yml is taken as it is, says what the defaults are, and names every setting.
TEST(ExampleConfig, IsAcceptedAndComplete) {
  const auto bytes = read_file(real_file_system(), SLUICE_EXAMPLE_CONFIG, 1 << 20);
  ASSERT_TRUE(bytes) << bytes.error().message;
  const std::string text(as_text(*bytes));
  Config config = load_ok(text);
  EXPECT_THAT(format_errors("", finish_config(config)), IsEmpty());
  const Config defaults;
  EXPECT_EQ(config.listen, defaults.listen);
  EXPECT_EQ(config.retention_ms, defaults.retention_ms);
  EXPECT_EQ(config.retention_bytes, defaults.retention_bytes);
  EXPECT_EQ(config.retention_interval_ms, defaults.retention_interval_ms);
  EXPECT_EQ(config.unmount_wait_ms, defaults.unmount_wait_ms);
  EXPECT_EQ(config.skip_sync, defaults.skip_sync);
  EXPECT_TRUE(config.exec.empty());
  for (const ConfigKey& key : config_keys()) {
    const std::string leaf(key.key.substr(key.key.rfind('.') + 1));
    if (leaf == "candidate") continue;  // LiteFS's way to say what primary-url says
    EXPECT_THAT(text, HasSubstr(leaf + ":"));
  }
  // What is commented out is right, too.
  std::string all;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("  # ")) line.erase(2, 2);
    all += line + "\n";
  }
  Config full = load_ok(all);
  EXPECT_EQ(full.token_file, "/etc/sluice/token");
  EXPECT_EQ(full.primary_url, "http://node-1:20202");
}

}  // namespace
}  // namespace sluice::server
