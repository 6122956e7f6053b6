// What a node is told: defaults, then the YAML file, then command-line flags. One table (config_keys)
// describes every setting, so that each flag has a key and each key a flag. Key names are LiteFS's where the
// meaning is the same.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/errors.h"

namespace sluice::server {

enum class ReplicaWrites { reject, wait };
enum class IoChoice { native, plain, automatic };

/// One program to run once the node is ready.
struct ExecCommand {
  std::vector<std::string> argv;
  bool if_candidate = false;  ///< only where this node is (static lease) the primary
};

struct Config {
  std::string mountpoint;
  std::string data_dir;
  std::string listen = "127.0.0.1:20202";  ///< host:port; an empty host means every address
  std::string token_file;
  bool insecure = false;  ///< listen beyond loopback without a token
  std::string lease_type = "static";
  std::string hostname;  ///< empty: the machine's
  std::string advertise_url;
  std::string primary_url;
  std::optional<bool> candidate;  ///< LiteFS's static lease: true is the primary
  ReplicaWrites replica_writes = ReplicaWrites::reject;
  bool allow_other = false;
  IoChoice io = IoChoice::automatic;
  std::int64_t retention_ms = 10 * 60 * 1000;              ///< <= 0: no limit by age
  std::uint64_t retention_bytes = std::uint64_t{1} << 30;  ///< 0: no limit by size
  std::int64_t retention_interval_ms = 60 * 1000;
  std::uint64_t log_segment_bytes = std::uint64_t{64} << 20;  ///< of log in a file; retention removes whole files
  std::int64_t scrub_interval_ms = std::int64_t{24} * 60 * 60 * 1000;  ///< <= 0: never
  std::uint64_t scrub_rate = std::uint64_t{16} << 20;                  ///< bytes a second; 0: as fast as it goes
  std::int64_t unmount_wait_ms = 5000;
  bool skip_sync = false;  ///< start the application before a replica has caught up
  bool guardian = false;   ///< a guardian process keeps the mount while the node is started again
  bool log_json = false;
  bool debug = false;
  std::vector<ExecCommand> exec;

  bool is_replica() const { return !primary_url.empty(); }
};

/// A mistake in the configuration. `line` counts from 1; 0: not from a file.
struct ConfigError {
  int line = 0;
  std::string key;
  std::string message;
};

/// One setting. Exactly one of flag and positional reaches it from the command line.
struct ConfigKey {
  std::string_view key;      ///< dotted YAML path
  std::string_view flag;     ///< "--listen"; empty: a positional argument or APP ARG…
  std::string_view metavar;  ///< shown in the help; empty: a switch
  std::string_view help;
  /// Takes the text of the value over; the message if it is not understood.
  std::optional<std::string> (*set)(Config&, const std::string& value);
};
const std::vector<ConfigKey>& config_keys();

/// Merges YAML text into `config`. All mistakes are reported, in the order of lines: unknown keys, wrong
/// values, keys of LiteFS that Sluice does not support yet with another value than a harmless one.
std::vector<ConfigError> load_yaml(std::string_view text, Config& config);

/// Rules between settings, after all were merged: what is missing, what contradicts. Also resolves LiteFS's
/// way to name the primary (lease.candidate: false with lease.advertise-url).
std::vector<ConfigError> finish_config(Config& config);

/// "FILE:LINE: KEY: MESSAGE", one a line.
std::string format_errors(const std::string& file, const std::vector<ConfigError>& errors);

/// LiteFS's expansion of environment variables: $V, ${V}, ${V == 'x'}, ${V != "x"}, ${V == OTHER} (true or
/// false). A variable that is not set is empty. Text that does not match is kept.
std::string expand_environment(std::string_view text,
                               const std::function<std::optional<std::string>(const std::string&)>& lookup);

/// Go's duration: "10m", "1h30m", "1.5s", "500ms", "0"; milliseconds.
std::optional<std::int64_t> parse_duration_ms(std::string_view text);
/// "1073741824", "512MiB", "1GB" (KB, MB, GB, TB are powers of 1000; KiB… of 1024).
std::optional<std::uint64_t> parse_size(std::string_view text);
std::optional<bool> parse_bool(std::string_view text);
/// Splits as a POSIX shell does words and quotes (no expansion); nullopt: an open quote.
std::optional<std::vector<std::string>> split_command(std::string_view text);

struct HostPort {
  std::string host;  ///< without brackets; empty: every address
  std::uint16_t port = 0;
  bool loopback() const;
};
/// "host:port", ":port", "[v6]:port".
Result<HostPort> parse_host_port(std::string_view text);
/// "http://host:port[/]" -> host and port (80 when missing).
Result<HostPort> parse_http_url(std::string_view url);

}  // namespace sluice::server
