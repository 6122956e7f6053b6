#include "server/config.h"

#include <yaml-cpp/yaml.h>

#include <algorithm>
#include <map>
#include <set>

namespace sluice::server {
namespace {

using Message = std::optional<std::string>;

Message set_bool(bool& target, const std::string& value) {
  const auto parsed = parse_bool(value);
  if (!parsed) return "'" + value + "' is neither true nor false";
  target = *parsed;
  return std::nullopt;
}

Message set_duration(std::int64_t& target, const std::string& value) {
  const auto parsed = parse_duration_ms(value);
  if (!parsed) return "'" + value + "' is not a duration such as 500ms, 30s, 10m or 1h30m";
  target = *parsed;
  return std::nullopt;
}

Message set_address(std::string& target, const std::string& value) {
  const auto parsed = parse_host_port(value);
  if (parsed.has_error()) return parsed.error().message;
  target = value;
  return std::nullopt;
}

Message set_url(std::string& target, const std::string& value) {
  const auto parsed = parse_http_url(value);
  if (parsed.has_error()) return parsed.error().message;
  target = value.ends_with("/") ? value.substr(0, value.size() - 1) : value;
  return std::nullopt;
}

Message set_io(Config& c, const std::string& v) {
  if (v == "native")
    c.io = IoChoice::native;
  else if (v == "auto")
    c.io = IoChoice::automatic;
  else if (v == "plain")
    c.io = IoChoice::plain;
  else
    return "'" + v + "' is not native, plain or auto";
  return std::nullopt;
}

Message set_lease_type(Config& c, const std::string& v) {
  if (v != "static") {
    return "lease type '" + v +
           "' is not supported yet: use static, and name the primary with lease.primary-url on replicas";
  }
  c.lease_type = v;
  return std::nullopt;
}

Message set_replica_writes(Config& c, const std::string& v) {
  if (v == "reject")
    c.replica_writes = ReplicaWrites::reject;
  else if (v == "wait")
    c.replica_writes = ReplicaWrites::wait;
  else
    return "'" + v + "' is neither reject nor wait";
  return std::nullopt;
}

Message set_size(std::uint64_t& target, const std::string& v) {
  const auto parsed = parse_size(v);
  if (!parsed) return "'" + v + "' is not a size such as 1073741824, 512MiB or 1GB";
  target = *parsed;
  return std::nullopt;
}

Message set_log_format(Config& c, const std::string& v) {
  if (v != "text" && v != "json") return "'" + v + "' is neither text nor json";
  c.log_json = v == "json";
  return std::nullopt;
}

// A key of LiteFS that Sluice knows and does not need, or does not support yet.
struct ForeignKey {
  std::string_view key;
  std::set<std::string> harmless;  // values that ask for nothing we do not do; empty: any value
  std::string_view advice;
};

const std::vector<ForeignKey>& foreign_keys() {
  static const std::vector<ForeignKey> keys = {
      {"exit-on-error", {"true"}, "Sluice always exits when it cannot start; remove the key"},
      {"strict-verify", {"false"}, "use 'sluice verify' from a timer instead"},
      {"data.compress", {"true"}, "change sets are always compressed; remove the key"},
      {"fuse.debug", {"false"}, "use log.debug"},
      {"http.snapshot-timeout", {"0", "0s"}, "snapshots have no time limit; remove the key"},
      {"log.timestamp", {}, ""},
      {"lease.promote", {"false"}, "promotion needs a lease store, which is not supported yet"},
      {"lease.reconnect-delay", {"1s"}, "replicas reconnect after 50 ms to 2 s; remove the key"},
      {"lease.demote-delay", {"10s"}, "demotion needs a lease store, which is not supported yet"},
      {"lease.consul.url", {}, ""},
      {"lease.consul.key", {}, ""},
      {"lease.consul.ttl", {}, ""},
      {"lease.consul.lock-delay", {}, ""},
      {"backup.type", {""}, "backups are not supported yet; remove the backup section"},
      {"backup.path", {}, ""},
      {"backup.url", {}, ""},
      {"backup.cluster", {}, ""},
      {"backup.auth-token", {}, ""},
      {"tracing.enabled", {}, ""},
      {"tracing.path", {""}, "tracing is not supported; remove the tracing section"},
      {"tracing.max-size", {}, ""},
      {"tracing.max-count", {}, ""},
      {"tracing.compress", {}, ""},
      {"proxy.target",
       {""},
       "the HTTP proxy is not supported yet: let the application listen itself and remove the proxy section"},
      {"proxy.addr", {}, ""},
      {"proxy.db", {}, ""},
      {"proxy.max-lag", {}, ""},
      {"proxy.debug", {}, ""},
      {"proxy.primary-redirect-timeout", {}, ""},
      {"proxy.read-timeout", {}, ""},
      {"proxy.read-header-timeout", {}, ""},
      {"proxy.write-timeout", {}, ""},
      {"proxy.idle-timeout", {}, ""},
  };
  return keys;
}

class Loader {
 public:
  Loader(Config& config, std::vector<ConfigError>& errors) : config_(config), errors_(errors) {}

  void walk(const YAML::Node& node, const std::string& prefix) {
    std::set<std::string> seen;
    for (const auto& entry : node) {
      const int line = entry.first.Mark().line + 1;
      if (!entry.first.IsScalar()) {
        errors_.push_back({line, prefix, "a key must be a plain word"});
        continue;
      }
      const std::string key = prefix.empty() ? entry.first.Scalar() : prefix + "." + entry.first.Scalar();
      if (!seen.insert(key).second) {
        errors_.push_back({line, key, "is there twice"});
        continue;
      }
      value(entry.second, key, line);
    }
  }

 private:
  void value(const YAML::Node& node, const std::string& key, int line) {
    if (key == "exec") return exec(node, line);
    if (is_section(key)) {
      if (node.IsMap()) return walk(node, key);
      if (!node.IsNull()) errors_.push_back({line, key, "must have settings below it"});
      return;
    }
    if (key == "proxy.passthrough" || key == "proxy.always-forward") return;
    if (key == "lease.databases") {
      if (node.size() != 0)
        errors_.push_back(
            {line, key, "replicating only some databases is not supported yet; remove the key"});
      return;
    }
    const bool known = find(key) != nullptr || find_foreign(key) != nullptr;
    if (!known) {
      errors_.push_back({line, key, "is not a setting of Sluice"});
    } else if (!node.IsScalar() && !node.IsNull()) {
      errors_.push_back({line, key, "must be a single value"});
    } else {
      scalar(key, node.IsNull() ? std::string() : node.Scalar(), line);
    }
  }

  void scalar(const std::string& key, const std::string& text, int line) {
    if (const ConfigKey* own = find(key)) {
      if (const Message message = own->set(config_, text)) errors_.push_back({line, key, *message});
      return;
    }
    const ForeignKey* foreign = find_foreign(key);
    if (!foreign->harmless.empty() && !foreign->harmless.contains(text)) {
      errors_.push_back({line, key, "'" + text + "' is not supported: " + std::string(foreign->advice)});
    }
  }

  void exec(const YAML::Node& node, int line) {
    if (node.IsNull()) return;
    if (node.IsScalar()) return command(node, line, false);
    if (!node.IsSequence()) {
      errors_.push_back({line, "exec", "must be a command or a list of {cmd, if-candidate}"});
      return;
    }
    for (const auto& item : node) {
      const int item_line = item.Mark().line + 1;
      if (!item.IsMap() || !item["cmd"] || !item["cmd"].IsScalar()) {
        errors_.push_back({item_line, "exec", "each item needs a cmd"});
        continue;
      }
      bool if_candidate = false;
      for (const auto& field : item) {
        const std::string name = field.first.Scalar();
        if (name == "cmd") continue;
        if (name != "if-candidate") {
          errors_.push_back({field.first.Mark().line + 1, "exec." + name, "is not a setting of Sluice"});
        } else if (const Message message =
                       set_bool(if_candidate, field.second.IsScalar() ? field.second.Scalar() : "")) {
          errors_.push_back({field.first.Mark().line + 1, "exec.if-candidate", *message});
        }
      }
      command(item["cmd"], item_line, if_candidate);
    }
  }

  void command(const YAML::Node& node, int line, bool if_candidate) {
    auto argv = split_command(node.Scalar());
    if (!argv) {
      errors_.push_back({line, "exec", "the command has a quote without an end"});
    } else if (!argv->empty()) {
      config_.exec.push_back({std::move(*argv), if_candidate});
    }
  }

  static bool is_section(const std::string& key) {
    static const std::set<std::string> sections = {"fuse", "data",    "http",   "lease", "lease.consul",
                                                   "log",  "replica", "backup", "proxy", "tracing"};
    return sections.contains(key);
  }
  static const ConfigKey* find(const std::string& key) {
    for (const ConfigKey& k : config_keys())
      if (k.key == key) return &k;
    return nullptr;
  }
  static const ForeignKey* find_foreign(const std::string& key) {
    for (const ForeignKey& k : foreign_keys())
      if (k.key == key) return &k;
    return nullptr;
  }

  Config& config_;
  std::vector<ConfigError>& errors_;
};

}  // namespace

const std::vector<ConfigKey>& config_keys() {
  static const std::vector<ConfigKey> keys = {
      {"fuse.dir", "", "MOUNTPOINT", "directory to mount on; must exist and be empty",
       [](Config& c, const std::string& v) -> Message {
         c.mountpoint = v;
         return std::nullopt;
       }},
      {"fuse.allow-other", "--allow-other", "", "let other users use the mount",
       [](Config& c, const std::string& v) { return set_bool(c.allow_other, v); }},
      {"fuse.io", "--io", "native|plain|auto",
       "native: WAL commits cost no request (Linux 6.9, CAP_SYS_ADMIN); plain: everywhere; auto (default): native if it can be",
       set_io},
      {"data.dir", "--data", "DIR", "data directory (required)",
       [](Config& c, const std::string& v) -> Message {
         c.data_dir = v;
         return std::nullopt;
       }},
      {"data.retention", "--retention", "DURATION",
       "keep change sets this long (default 10m; 0: no limit by age)",
       [](Config& c, const std::string& v) { return set_duration(c.retention_ms, v); }},
      {"data.retention-bytes", "--retention-bytes", "SIZE",
       "keep at most so much log for each database (default 1GiB; 0: no limit by size)",
       [](Config& c, const std::string& v) { return set_size(c.retention_bytes, v); }},
      {"data.retention-monitor-interval", "--retention-interval", "DURATION",
       "how often to look (default 1m; 0: never)",
       [](Config& c, const std::string& v) { return set_duration(c.retention_interval_ms, v); }},
      {"data.log-segment", "--log-segment", "SIZE",
       "log in one file, the least that is kept (default 64MiB; at least 64KiB)",
       [](Config& c, const std::string& v) { return set_size(c.log_segment_bytes, v); }},
      {"data.scrub-interval", "--scrub-interval", "DURATION",
       "how often every page is compared with its checksum (default 24h; 0: never)",
       [](Config& c, const std::string& v) { return set_duration(c.scrub_interval_ms, v); }},
      {"data.scrub-rate", "--scrub-rate", "SIZE", "how much of that is read in a second (default 16MiB; 0: no limit)",
       [](Config& c, const std::string& v) { return set_size(c.scrub_rate, v); }},
      {"http.addr", "--listen", "HOST:PORT", "address of API and stream (default 127.0.0.1:20202)",
       [](Config& c, const std::string& v) { return set_address(c.listen, v); }},
      {"http.token-file", "--token-file", "FILE",
       "file with the secret that API clients and nodes must share; needed beyond loopback",
       [](Config& c, const std::string& v) -> Message {
         c.token_file = v;
         return std::nullopt;
       }},
      {"http.insecure", "--insecure", "", "listen beyond loopback without a token",
       [](Config& c, const std::string& v) { return set_bool(c.insecure, v); }},
      {"lease.type", "--lease", "static", "how the primary is chosen", set_lease_type},
      {"lease.hostname", "--hostname", "NAME", "this node's name (default: the machine's)",
       [](Config& c, const std::string& v) -> Message {
         c.hostname = v;
         return std::nullopt;
       }},
      {"lease.advertise-url", "--advertise-url", "URL", "where other nodes reach this one",
       [](Config& c, const std::string& v) { return set_url(c.advertise_url, v); }},
      {"lease.primary-url", "--primary-url", "URL", "the primary's URL; makes this node a replica",
       [](Config& c, const std::string& v) { return set_url(c.primary_url, v); }},
      {"lease.candidate", "--candidate", "true|false",
       "true: this node is the primary; false: a replica of lease.primary-url (or, as in LiteFS, "
       "advertise-url)",
       [](Config& c, const std::string& v) {
         bool value = false;
         const Message message = set_bool(value, v);
         if (!message) c.candidate = value;
         return message;
       }},
      {"replica.writes", "--replica-writes", "reject|wait",
       "what writers meet on a replica: an error at once (default), or BUSY", set_replica_writes},
      {"guardian", "--guardian", "", "keep the mount, with what applications have open, over crashes and upgrades of the node",
       [](Config& c, const std::string& v) { return set_bool(c.guardian, v); }},
      {"skip-sync", "--no-wait-sync", "", "start APP before the replica has caught up",
       [](Config& c, const std::string& v) { return set_bool(c.skip_sync, v); }},
      {"unmount-wait", "--unmount-wait", "DURATION", "at the end wait so long for open files (default 5s)",
       [](Config& c, const std::string& v) { return set_duration(c.unmount_wait_ms, v); }},
      {"log.format", "--log-format", "text|json", "format of log lines (default text)", set_log_format},
      {"log.debug", "--debug", "", "log more",
       [](Config& c, const std::string& v) { return set_bool(c.debug, v); }},
  };
  return keys;
}

std::vector<ConfigError> load_yaml(std::string_view text, Config& config) {
  std::vector<ConfigError> errors;
  try {
    const YAML::Node root = YAML::Load(std::string(text));
    if (root.IsMap()) {
      Loader(config, errors).walk(root, "");
    } else if (!root.IsNull()) {
      errors.push_back({root.Mark().line + 1, "", "the file must consist of keys and values"});
    }
  } catch (const YAML::Exception& e) {
    errors.push_back({e.mark.line + 1, "", "not YAML: " + e.msg});
  }
  std::stable_sort(errors.begin(), errors.end(),
                   [](const ConfigError& a, const ConfigError& b) { return a.line < b.line; });
  return errors;
}

std::vector<ConfigError> finish_config(Config& config) {
  std::vector<ConfigError> errors;
  if (config.candidate == false && config.primary_url.empty()) {
    // LiteFS's static lease: a replica's advertise-url is the primary's.
    config.primary_url = std::exchange(config.advertise_url, {});
    if (config.primary_url.empty()) {
      errors.push_back({0, "lease.candidate", "false needs lease.primary-url (--primary-url)"});
    }
  } else if (config.candidate == true && !config.primary_url.empty()) {
    errors.push_back(
        {0, "lease.candidate", "true contradicts lease.primary-url: a node with a primary is a replica"});
  }
  if (config.mountpoint.empty())
    errors.push_back({0, "fuse.dir", "no mount point: name it as MOUNTPOINT or in the file"});
  if (config.data_dir.empty())
    errors.push_back({0, "data.dir", "no data directory: use --data DIR or set it in the file"});
  if (!config.data_dir.empty() && config.data_dir == config.mountpoint) {
    errors.push_back({0, "fuse.dir", "must not be the data directory"});
  }
  const auto inside = [](const std::string& path, const std::string& directory) {
    return !directory.empty() && path.starts_with(directory + "/");
  };
  if (inside(config.data_dir, config.mountpoint)) {
    errors.push_back({0, "data.dir", "must not be below the mount point: the mount would hide it"});
  }
  if (inside(config.mountpoint, config.data_dir)) {
    errors.push_back({0, "fuse.dir", "must not be inside the data directory"});
  }
  const auto address = parse_host_port(config.listen);
  if (address && !address->loopback() && config.token_file.empty() && !config.insecure) {
    errors.push_back(
        {0, "http.addr",
         "'" + config.listen +
             "' can be reached from other machines: set http.token-file (--token-file), or http.insecure "
             "(--insecure) on a network you trust"});
  }
  if (config.unmount_wait_ms < 0) errors.push_back({0, "unmount-wait", "must not be negative"});
  return errors;
}

std::string format_errors(const std::string& file, const std::vector<ConfigError>& errors) {
  std::string out;
  for (const ConfigError& e : errors) {
    if (!out.empty()) out += '\n';
    if (e.line > 0) out += file + ":" + std::to_string(e.line) + ": ";
    if (!e.key.empty()) out += e.key + ": ";
    out += e.message;
  }
  return out;
}

}  // namespace sluice::server
