// The subcommands that talk to a running node: status, import, export, verify, log, upgrade.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <boost/json.hpp>
#include <cstdio>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <thread>

#include "base/fd.h"
#include "base/os.h"
#include "server/cli/commands.h"
#include "server/cli/http_client.h"
#include "server/cli/log_dump.h"
#include "server/status.h"

namespace sluice::server {
namespace {

namespace json = boost::json;

struct ClientArguments {
  std::string url;
  std::string token_file;
  std::string name;
  std::string path;
  std::string txid;
  bool as_json = false;
  bool replace = false;
  bool force = false;
  bool integrity = false;
  bool repair = false;
  std::uint64_t limit = 1000;
};
using Arguments = std::shared_ptr<ClientArguments>;

int fail(const Error& error) {
  print_error(error.message);
  return error.code == Errc::unavailable ? kExitUnreachable : kExitFailure;
}

Result<HttpClient> make_client(const ClientArguments& a) {
  HttpClientOptions options;
  options.url = a.url;
  if (!a.token_file.empty()) {
    TRY_ASSIGN(const Bytes content, read_file(real_file_system(), a.token_file, 4096));
    options.token = as_text(content);
    while (!options.token.empty() && std::isspace(static_cast<unsigned char>(options.token.back())) != 0)
      options.token.pop_back();
  }
  return HttpClient(std::move(options));
}

std::string database_target(const ClientArguments& a, const std::string& rest) {
  return "/v1/databases/" + percent_encode(a.name) + "/" + rest;
}

Result<void> print_status(const ClientArguments& a) {
  TRY_ASSIGN(HttpClient client, make_client(a));
  TRY_ASSIGN(const HttpReply reply, expect_ok(client.get("/v1/status")));
  if (a.as_json) {
    std::fputs(reply.body.c_str(), stdout);
    return {};
  }
  TRY_ASSIGN(const std::string table, status_table(reply.body));
  std::fputs(table.c_str(), stdout);
  return {};
}

Result<void> import_file(const ClientArguments& a) {
  ClientArguments named = a;
  if (named.name.empty()) named.name = a.path.substr(a.path.rfind('/') + 1);
  TRY_ASSIGN(HttpClient client, make_client(a));
  const std::string target = database_target(named, a.replace ? "import?replace=1" : "import");
  TRY_ASSIGN(const HttpReply reply, expect_ok(client.post_file(target, a.path)));
  const json::value body = json::parse(reply.body);
  std::printf("imported %s: TXID %s, %lld pages of %lld bytes\n", named.name.c_str(),
              body.at("txid").as_string().c_str(),
              static_cast<long long>(body.at("pages").to_number<std::int64_t>()),
              static_cast<long long>(body.at("page_size").to_number<std::int64_t>()));
  return {};
}

// OUT appears whole or not at all: temporary file beside it, fsync, rename, fsync of the directory.
Result<HttpReply> download_file(const ClientArguments& a, const std::string& target) {
  const bool there = ::access(a.path.c_str(), F_OK) == 0;
  if (there && !a.force) return make_error(Errc::exists, a.path + " exists; overwrite it with --force");
  TRY_ASSIGN(HttpClient client, make_client(a));
  std::string temporary = a.path + ".XXXXXX";
  UniqueFd file(::mkostemp(temporary.data(), O_CLOEXEC));
  if (!file) return errno_error("create " + temporary, errno);
  const auto finish = [&]() -> Result<HttpReply> {
    TRY_ASSIGN(HttpReply reply, expect_ok(client.download(target, file.get())));
    if (::fchmod(file.get(), 0644) != 0 || ::fsync(file.get()) != 0)
      return errno_error("write " + temporary, errno);
    TRY(real_file_system().rename(temporary, a.path));
    TRY(real_file_system().sync_directory(parent_directory(a.path)));
    return reply;
  };
  Result<HttpReply> result = finish();
  if (result.has_error()) ::unlink(temporary.c_str());
  return result;
}

Result<void> export_file(const ClientArguments& a) {
  // A WAL or journal of another file with this name would be taken for this one's.
  for (const char* suffix : {"-wal", "-journal"}) {
    if (::access((a.path + suffix).c_str(), F_OK) == 0) {
      return make_error(
          Errc::exists,
          a.path + suffix + " exists and would be applied to the exported database; remove it first");
    }
  }
  TRY_ASSIGN(const HttpReply reply, download_file(a, database_target(a, "export")));
  std::printf("exported %s at TXID %s to %s\n", a.name.c_str(), reply.headers.at("sluice-txid").c_str(),
              a.path.c_str());
  return {};
}

// As they stand in an address.
Result<std::vector<std::string>> names_to_verify(HttpClient& client, const ClientArguments& a) {
  if (!a.name.empty()) return std::vector<std::string>{percent_encode(a.name)};
  TRY_ASSIGN(const HttpReply reply, expect_ok(client.get("/v1/status")));
  std::vector<std::string> names;
  const json::value status = json::parse(reply.body);
  for (const json::value& d : status.at("databases").as_array()) {
    if (d.at("pages").to_number<std::int64_t>() == 0) continue;
    const json::value* encoded = d.as_object().if_contains("name_encoded");
    names.push_back(encoded != nullptr ? std::string(encoded->as_string())
                                       : percent_encode(d.at("name").as_string()));
  }
  return names;
}

void print_verified(const json::value& report) {
  const bool ok = report.at("ok").as_bool();
  std::printf("%s: %s, %lld pages at TXID %s", report.at("name").as_string().c_str(), ok ? "ok" : "MISMATCH",
              static_cast<long long>(report.at("pages").to_number<std::int64_t>()),
              report.at("txid").as_string().c_str());
  if (const auto* integrity = report.as_object().if_contains("integrity_check")) {
    std::printf(", integrity_check: %s", integrity->as_string().c_str());
  }
  if (const auto* repaired = report.as_object().if_contains("repaired")) {
    std::printf(", %lld pages repaired", static_cast<long long>(repaired->to_number<std::int64_t>()));
  }
  std::printf("\n");
  if (ok) return;
  std::printf("  pages that differ: %lld",
              static_cast<long long>(report.at("bad_count").to_number<std::int64_t>()));
  for (const json::value& page : report.at("bad_pages").as_array()) {
    std::printf(" %lld", static_cast<long long>(page.to_number<std::int64_t>()));
  }
  std::printf("\n  sum of the page checksums: %s\n",
              report.at("checksum_matches").as_bool() ? "as recorded" : "differs from the position's");
}

Result<bool> verify(const ClientArguments& a) {
  TRY_ASSIGN(HttpClient client, make_client(a));
  TRY_ASSIGN(const auto names, names_to_verify(client, a));
  bool ok = true;
  for (const std::string& name : names) {
    const std::string target = "/v1/databases/" + name + "/verify?integrity=" + (a.integrity ? "1" : "0") +
                               (a.repair ? "&repair=1" : "");
    TRY_ASSIGN(const HttpReply reply, expect_ok(client.post(target)));
    const json::value report = json::parse(reply.body);
    ok = ok && report.at("ok").as_bool();
    if (a.as_json)
      std::fputs(reply.body.c_str(), stdout);
    else
      print_verified(report);
  }
  return ok;
}

Result<void> log_list(const ClientArguments& a) {
  TRY_ASSIGN(HttpClient client, make_client(a));
  const std::string from = a.txid.empty() ? "" : "&from=" + a.txid;
  TRY_ASSIGN(const HttpReply reply,
             expect_ok(client.get(database_target(a, "log?limit=" + std::to_string(a.limit) + from))));
  if (a.as_json) {
    std::fputs(reply.body.c_str(), stdout);
    return {};
  }
  return print_log_list(reply.body);
}

Result<void> log_dump(const ClientArguments& a) {
  TRY_ASSIGN(HttpClient client, make_client(a));
  TRY_ASSIGN(const HttpReply reply, expect_ok(client.get(database_target(a, "log/" + a.txid + ".ltx"))));
  return print_change_set(as_bytes(reply.body));
}

Result<void> log_extract(const ClientArguments& a) {
  TRY_ASSIGN(const HttpReply reply, download_file(a, database_target(a, "log/" + a.txid + ".ltx")));
  std::printf("wrote change set %s to %s\n", reply.headers.at("sluice-max-txid").c_str(), a.path.c_str());
  return {};
}

template <class F>
void on_selected(CLI::App* command, Arguments arguments, Command& selected, F run) {
  command->callback([arguments, &selected, run] {
    selected = [arguments, run]() -> int {
      try {
        const auto result = run(*arguments);
        if (result.has_error()) return fail(result.error());
        if constexpr (std::is_same_v<decltype(result), const Result<bool>>)
          return *result ? kExitOk : kExitFailure;
        return kExitOk;
      } catch (const std::exception& e) {  // JSON that is not what a node sends
        return fail(
            make_error(Errc::protocol, std::string("the node's answer is not understood: ") + e.what()));
      }
    };
  });
}

Arguments add_common(CLI::App* command) {
  auto arguments = std::make_shared<ClientArguments>();
  command->add_option("--url", arguments->url, "the node's URL")
      ->envname("SLUICE_URL")
      ->default_str("http://127.0.0.1:20202")
      ->default_val("http://127.0.0.1:20202");
  command->add_option("--token-file", arguments->token_file, "file with the node's token")
      ->envname("SLUICE_TOKEN_FILE");
  return arguments;
}

void add_log_commands(CLI::App& app, Command& selected) {
  auto* log = app.add_subcommand("log", "Look into a database's change log");
  log->require_subcommand(1);
  auto* list = log->add_subcommand("list", "List the change sets that the log has");
  auto arguments = add_common(list);
  list->add_option("NAME", arguments->name, "database")->required();
  list->add_option("--from", arguments->txid, "first TXID");
  list->add_option("--limit", arguments->limit, "most records (default 1000, at most 10000)");
  list->add_flag("--json", arguments->as_json, "print the API's JSON");
  on_selected(list, arguments, selected, log_list);
  auto* dump = log->add_subcommand("dump", "Verify one change set and print its header and pages");
  arguments = add_common(dump);
  dump->add_option("NAME", arguments->name, "database")->required();
  dump->add_option("TXID", arguments->txid, "TXID, decimal or 16 hex digits")->required();
  on_selected(dump, arguments, selected, log_dump);
  auto* extract = log->add_subcommand("extract", "Write one change set to an .ltx file");
  arguments = add_common(extract);
  extract->add_option("NAME", arguments->name, "database")->required();
  extract->add_option("TXID", arguments->txid, "TXID, decimal or 16 hex digits")->required();
  extract->add_option("OUT", arguments->path, "file to write")->required();
  extract->add_flag("--force", arguments->force, "overwrite OUT");
  on_selected(extract, arguments, selected, log_extract);
}

constexpr auto kUpgradeLimit = std::chrono::seconds(30);

Result<std::pair<std::int64_t, std::string>> running_program(HttpClient& client) {
  TRY_ASSIGN(const HttpReply reply, expect_ok(client.get("/v1/status")));
  boost::system::error_code ec;
  const json::value status = json::parse(reply.body, ec);
  const json::object* const fields = ec ? nullptr : status.if_object();
  const json::value* const process = fields != nullptr ? fields->if_contains("process") : nullptr;
  const json::value* const version = fields != nullptr ? fields->if_contains("version") : nullptr;
  if (process == nullptr || !process->is_int64() || version == nullptr || !version->is_string())
    return make_error(Errc::protocol, "the node's status does not name its process and version; is it older than this program?");
  return std::pair(process->get_int64(), std::string(version->get_string()));
}

Result<void> upgrade(const ClientArguments& a) {
  TRY_ASSIGN(HttpClient client, make_client(a));
  TRY_ASSIGN(const auto before, running_program(client));
  TRY(expect_ok(client.post("/v1/upgrade")));
  const auto deadline = std::chrono::steady_clock::now() + kUpgradeLimit;
  while (std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // nothing announces the new process
    const auto now = running_program(client);
    if (now.has_error() || now->first == before.first) continue;
    std::printf("process %lld (sluice %s) took over from %lld (sluice %s)\n", static_cast<long long>(now->first), now->second.c_str(),
                static_cast<long long>(before.first), before.second.c_str());
    return {};
  }
  return make_error(Errc::deadline, "the node goes on with the program it has; its log says why");
}

}  // namespace

void add_client_commands(CLI::App& app, Command& selected) {
  auto* status = app.add_subcommand("status", "Show role, databases, positions, replicas and lag");
  auto arguments = add_common(status);
  status->add_flag("--json", arguments->as_json, "print the API's JSON");
  on_selected(status, arguments, selected, print_status);

  auto* import = app.add_subcommand("import", "Make a SQLite file a database of the primary");
  arguments = add_common(import);
  import->add_option("PATH", arguments->path, "SQLite database file; nobody may write it meanwhile")
      ->required();
  import->add_option("--name", arguments->name, "path in the mount (default: the file's name)");
  import->add_flag("--replace", arguments->replace, "replace an existing database, in one transaction");
  on_selected(import, arguments, selected, import_file);

  auto* out = app.add_subcommand("export", "Write a consistent copy of a database to a file");
  arguments = add_common(out);
  out->add_option("--name", arguments->name, "database")->required();
  out->add_option("OUT", arguments->path, "file to write")->required();
  out->add_flag("--force", arguments->force, "overwrite OUT");
  on_selected(out, arguments, selected, export_file);

  auto* check = app.add_subcommand("verify", "Compare every page with its recorded checksum");
  arguments = add_common(check);
  check->add_option("NAME", arguments->name, "database (default: all)");
  check->add_flag("--integrity", arguments->integrity, "also run PRAGMA integrity_check on a copy");
  check->add_flag("--repair", arguments->repair, "on a replica: have damaged pages replaced by the primary's");
  check->add_flag("--json", arguments->as_json, "print the API's JSON");
  on_selected(check, arguments, selected, verify);

  auto* renew = app.add_subcommand("upgrade", "Replace a node with a guardian by the program that has its path now; applications go on");
  on_selected(renew, add_common(renew), selected, upgrade);

  add_log_commands(app, selected);
}

}  // namespace sluice::server
