// `sluice mount`: configuration, the node, the application beside it, signals.
#include <malloc.h>
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>

#include "base/log.h"
#include "base/os.h"
#include "server/cli/commands.h"
#include "server/descriptor_link.h"
#include "server/guardian.h"
#include "server/node.h"
#include "server/supervise.h"

namespace sluice::server {
namespace {

constexpr std::uint64_t kConfigLimit = 1u << 20;
constexpr std::uint64_t kTokenLimit = 4096;
constexpr int kSyncCheckMs = 20;  // the subscriber has no wakeup for "synced"

struct MountArguments {
  std::string config_file;
  bool no_expand = false;
  std::string mountpoint;
  std::map<std::string, std::string> flags;  // flag -> text
  std::vector<std::string> application;
};

std::optional<std::string> lookup_environment(const std::string& name) {
  const char* value = std::getenv(name.c_str());
  return value != nullptr ? std::optional<std::string>(value) : std::nullopt;
}

// Defaults, file, flags, rules; every mistake of all of them in one message.
Result<Config> make_config(const MountArguments& arguments) {
  Config config;
  std::vector<ConfigError> errors;
  if (!arguments.config_file.empty()) {
    auto text = read_file(real_file_system(), arguments.config_file, kConfigLimit);
    if (text.has_error()) return make_error(Errc::invalid_argument, text.error().message);
    std::string yaml(as_text(*text));
    if (!arguments.no_expand) yaml = expand_environment(yaml, lookup_environment);
    errors = load_yaml(yaml, config);
  }
  for (const ConfigKey& key : config_keys()) {
    const auto given = arguments.flags.find(std::string(key.flag));
    if (key.flag.empty() || given == arguments.flags.end() || given->second.empty()) continue;
    if (const auto message = key.set(config, given->second))
      errors.push_back({0, std::string(key.flag), *message});
  }
  if (!arguments.mountpoint.empty()) config.mountpoint = arguments.mountpoint;
  if (!arguments.application.empty()) config.exec = {{arguments.application, false}};
  // Paths hold whatever the working directory becomes, and are shown as what they are.
  for (std::string* path : {&config.mountpoint, &config.data_dir, &config.token_file}) {
    if (!path->empty()) *path = std::filesystem::absolute(*path).lexically_normal().string();
    if (path->size() > 1 && path->ends_with("/")) path->pop_back();
  }
  for (ConfigError& e : finish_config(config)) errors.push_back(std::move(e));
  if (!errors.empty())
    return make_error(Errc::invalid_argument, format_errors(arguments.config_file, errors));
  return config;
}

Result<std::string> read_token(const std::string& path) {
  if (path.empty()) return std::string();
  TRY_ASSIGN(const Bytes content, read_file(real_file_system(), path, kTokenLimit));
  std::string token(as_text(content));
  while (!token.empty() && (token.back() == '\n' || token.back() == '\r' || token.back() == ' '))
    token.pop_back();
  if (token.empty()) return make_error(Errc::invalid_argument, "the token file " + path + " is empty");
  return token;
}

constexpr int kBeat_ms = 1000;

// The node as a worker: a guardian starts it again with the descriptors that it keeps there.
class WorkerRun {
 public:
  WorkerRun(Signals& signals, Node& node, DescriptorLink& link) : signals_(signals), node_(node), link_(link) {}

  // Until the node is to stop; the exit code.
  int run() {
    tell("READY=1");
    const int guardian = ::getppid();
    bool synced = false;
    const auto watch_at = std::chrono::steady_clock::now() + std::chrono::milliseconds(kBeat_ms);  // after a takeover
    for (auto next_beat = std::chrono::steady_clock::now();;) {
      const auto received = signals_.wait(synced ? kBeat_ms : kSyncCheckMs, node_.ended_fd());
      if (received.has_error()) {
        LOG_ERROR("{}", received.error().to_string());
        return kExitFailure;
      }
      std::uint64_t count = 0;
      if (::read(node_.ended_fd(), &count, sizeof count) == static_cast<ssize_t>(sizeof count)) {
        LOG_ERROR("the mount was taken away from outside; stopping");
        return kExitFailure;
      }
      if (*received && is_stop((*received)->number)) return kExitOk;
      if (*received && (*received)->number == SIGUSR2) tell("UPGRADE=1");
      if (!synced && node_.summary().ready()) {
        synced = true;
        tell("SYNCED=1");
      }
      const auto now = std::chrono::steady_clock::now();
      if (now < next_beat) continue;
      if (now >= watch_at) node_.watch_connection(guardian);
      next_beat = now + std::chrono::milliseconds(kBeat_ms);
      node_.beat();
      look_at_guardian();
    }
  }

 private:
  static bool is_stop(int number) { return number == SIGTERM || number == SIGINT || number == SIGHUP; }

  void tell(const std::string& text) {
    const auto told = link_.tell(text);
    if (told.has_error()) LOG_WARN("{}", told.error().message);
  }

  void look_at_guardian() {
    pollfd guardian{link_.guardian_fd(), 0, 0};
    if (alone_ || ::poll(&guardian, 1, 0) <= 0 || (guardian.revents & (POLLHUP | POLLERR)) == 0) return;
    alone_ = true;
    LOG_ERROR("the guardian has died: this process serves on, but its own end will be the mount's; restart the node when you can");
  }

  Signals& signals_;
  Node& node_;
  DescriptorLink& link_;
  bool alone_ = false;
};

class MountRun {
 public:
  MountRun(const Config& config, Signals& signals, Node& node)
      : config_(config), signals_(signals), node_(node) {}

  // Until the node is to stop; the exit code.
  int run() {
    if (!config_.exec.empty() && !config_.skip_sync && !wait_ready()) return stop_code_;
    const bool candidate = !config_.is_replica();
    std::vector<const ExecCommand*> commands;
    for (const ExecCommand& command : config_.exec)
      if (!command.if_candidate || candidate) commands.push_back(&command);
    if (commands.empty()) return wait_for_stop();
    for (std::size_t i = 0; i < commands.size(); ++i) {
      const int code = run_application(*commands[i]);
      // All but the last prepare: they must succeed.
      if (code != 0 || i + 1 == commands.size() || interrupted_) return code;
    }
    return kExitOk;
  }

 private:
  bool wait_ready() {
    for (;;) {
      const NodeStatus status = node_.summary();
      if (status.ready()) return true;
      if (!told_) {
        LOG_INFO("the application waits until this node is ready: {}", status.not_ready_reason());
        told_ = true;
      }
      const auto received = signals_.wait(kSyncCheckMs, node_.ended_fd());
      if (received.has_error()) {
        LOG_ERROR("{}", received.error().to_string());
        stop_code_ = kExitFailure;
      }
      if (received.has_error() || node_ended()) return false;
      if (*received && is_stop((*received)->number)) return false;
    }
  }

  int wait_for_stop() {
    for (;;) {
      const auto received = signals_.wait(-1, node_.ended_fd());
      if (received.has_error()) {
        LOG_ERROR("{}", received.error().to_string());
        return kExitFailure;
      }
      if (node_ended()) return kExitFailure;
      if (*received && is_stop((*received)->number)) return kExitOk;
    }
  }

  int run_application(const ExecCommand& command) {
    auto child = Child::start(command.argv);
    if (child.has_error()) {
      LOG_ERROR("{}", child.error().message);
      return child.error().code == Errc::not_found ? kExitNotFound : kExitNotExecutable;
    }
    LOG_INFO("started {} as process {}", command.argv[0], child->pid());
    bool told_end = false;
    for (;;) {
      if (const auto code = child->try_wait()) {
        LOG_INFO("{} ended with status {}", command.argv[0], *code);
        return told_end && *code == 0 ? kExitFailure : *code;
      }
      const auto received = signals_.wait(-1, told_end ? -1 : node_.ended_fd());
      if (received.has_error()) {
        LOG_ERROR("{}", received.error().to_string());
        child->signal(SIGTERM);
        return kExitFailure;
      }
      if (!told_end && node_ended()) {
        told_end = true;
        child->signal(SIGTERM);
      }
      if (!*received || (*received)->number == SIGCHLD) continue;
      interrupted_ = interrupted_ || is_stop((*received)->number);
      if (!(*received)->from_terminal) child->signal((*received)->number);
    }
  }

  static bool is_stop(int number) { return number == SIGTERM || number == SIGINT || number == SIGHUP; }

  bool node_ended() {
    std::uint64_t count = 0;
    if (::read(node_.ended_fd(), &count, sizeof count) != static_cast<ssize_t>(sizeof count)) return false;
    LOG_ERROR("the mount {} was taken away from outside; stopping", config_.mountpoint);
    stop_code_ = kExitFailure;
    return true;
  }

  const Config& config_;
  Signals& signals_;
  Node& node_;
  bool told_ = false;
  bool interrupted_ = false;
  int stop_code_ = kExitOk;
};

int exit_code(const Error& error) {
  return error.code == Errc::invalid_argument ? kExitUsage : kExitFailure;
}

// A node has some thirty threads and buffers that one allocates and another frees: with glibc's default of
// eight arenas a CPU each arena keeps its peak.
void bound_heap() {
  ::mallopt(M_ARENA_MAX, 2);
  ::mallopt(M_MMAP_THRESHOLD, 1 << 20);  // large buffers go back to the system when they are freed
}

// Open databases take a handful of descriptors each, and the usual soft limit is for programs that use select(2).
void raise_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

// The exit code: `code`, if nothing fails.
int stop_node(Node& node, int code) {
  const auto stopped = node.stop();
  if (stopped.has_error()) {
    LOG_ERROR("stopping: {}", stopped.error().message);
    return code == kExitOk ? kExitFailure : code;
  }
  LOG_INFO("stopped");
  return code;
}

int run_worker(const Config& config, std::string token, Signals& signals, DescriptorLink& link) {
  auto node = Node::start(config, std::move(token), &link);
  if (node.has_error()) {
    LOG_ERROR("cannot start: {}", node.error().message);
    return exit_code(node.error());
  }
  const int code = WorkerRun(signals, **node, link).run();
  const auto told = link.tell("STOPPING=1");
  if (told.has_error()) LOG_WARN("{}", told.error().message);
  return stop_node(**node, code);
}

int run_mount(const MountArguments& arguments) {
  raise_file_limit();
  auto config = make_config(arguments);
  if (config.has_error()) {
    print_error(config.error().message);
    return kExitUsage;
  }
  auto token = read_token(config->token_file);
  if (token.has_error()) {
    print_error(token.error().message);
    return kExitUsage;
  }
  const std::unique_ptr<DescriptorLink> link = DescriptorLink::from_environment();
  if (config->guardian && !link) {
    init_logging({.json = config->log_json, .debug = config->debug});
    return run_guardian(*config);
  }
  bound_heap();
  const ServiceManager service_manager;
  auto signals = Signals::create();
  if (signals.has_error()) {
    print_error(signals.error().message);
    return kExitFailure;
  }
  init_logging({.json = config->log_json, .debug = config->debug});
  if (link) return run_worker(*config, std::move(*token), *signals, *link);
  auto node = Node::start(*config, std::move(*token));
  if (node.has_error()) {
    LOG_ERROR("cannot start: {}", node.error().message);
    return exit_code(node.error());
  }
  service_manager.tell("READY=1");
  const int code = MountRun(*config, *signals, **node).run();
  service_manager.tell("STOPPING=1");
  return stop_node(**node, code);
}

}  // namespace

void add_mount_command(CLI::App& app, std::vector<std::string> application, Command& selected) {
  auto* mount = app.add_subcommand("mount", "Run a node: mount, replicate, serve the API");
  auto arguments = std::make_shared<MountArguments>();
  arguments->application = std::move(application);
  mount->add_option("MOUNTPOINT", arguments->mountpoint,
                    "directory to mount on; must exist and be empty (key fuse.dir)");
  mount
      ->add_option("--config", arguments->config_file,
                   "YAML file with the same settings (a litefs.yml will do)")
      ->type_name("FILE");
  mount->add_flag("--no-expand-env", arguments->no_expand, "take $NAME in the file as it stands");
  for (const ConfigKey& key : config_keys()) {
    if (key.flag.empty()) continue;
    const std::string flag(key.flag);
    const std::string help = std::string(key.help) + " (key " + std::string(key.key) + ")";
    std::string& target = arguments->flags[flag];
    if (key.metavar.empty()) {
      mount->add_flag(flag, target, help);
    } else {
      mount->add_option(flag, target, help)->type_name(std::string(key.metavar));
    }
  }
  mount->footer(
      "Behind '--' stands the application to run once the node is ready: sluice mount … -- APP ARG…\n"
      "Signals are passed on to it, its exit status becomes sluice's.");
  mount->callback([arguments, &selected] { selected = [arguments] { return run_mount(*arguments); }; });
}

}  // namespace sluice::server
