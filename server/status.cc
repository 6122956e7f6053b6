#include "server/status.h"

#include <algorithm>
#include <array>
#include <boost/json.hpp>

#include "server/cli/http_client.h"
#include "base/utf8.h"
#include "storage/sqlite/database_header.h"

namespace sluice::server {
namespace {

namespace json = boost::json;

std::string journal_mode(FileSystem& fs, const std::string& path) {
  const auto file = fs.open(path, {});
  if (file.has_error()) return "unknown";
  std::array<std::byte, sqlite::kDatabaseHeaderSize> header{};
  const auto n = (*file)->read_at(0, header);
  if (n.has_error() || *n != header.size()) return "unknown";
  const auto parsed = sqlite::parse_database_header(header);
  if (parsed.has_error()) return "unknown";
  return parsed->is_wal() ? "wal" : "rollback";
}

// A name that cannot stand in JSON is shown as well as can be, and again as it stands in an address.
void put_name(json::object& o, const std::string& name) {
  o["name"] = clean_utf8(name);
  if (!is_utf8(name)) o["name_encoded"] = percent_encode(name);
}

void put_resync(json::object& o, const replication::ResyncProgress& p) {
  if (p.phase == replication::ResyncProgress::Phase::none) return;
  json::object resync{{"phase", replication::phase_name(p.phase)},
                      {"pages", p.pages},
                      {"bytes", p.bytes},
                      {"elapsed_ms", p.elapsed_ms},
                      {"bytes_per_second", static_cast<std::uint64_t>(p.rate())}};
  if (p.expected != 0) resync["expected_pages"] = p.expected;
  if (const auto eta = p.eta_ms()) resync["eta_ms"] = *eta;
  o["resync"] = std::move(resync);
}

json::object database_json(const DatabaseStatus& d) {
  json::object o{{"name", ""},
                 {"txid", to_hex(d.pos.txid.value())},
                 {"checksum", to_hex(d.pos.checksum.value())},
                 {"page_size", d.page_size},
                 {"pages", d.pages},
                 {"bytes", d.bytes()},
                 {"journal_mode", d.journal_mode},
                 {"timestamp_ms", d.timestamp_ms},
                 {"log",
                  {{"first", to_hex(d.log_first.value())},
                   {"durable", to_hex(d.durable.value())},
                   {"bytes", d.log_bytes}}}};
  put_name(o, d.name);
  if (!d.fault.empty()) o["fault"] = clean_utf8(d.fault);
  if (!d.waiting.empty()) o["waiting"] = clean_utf8(d.waiting);
  if (!d.warning.empty()) o["warning"] = clean_utf8(d.warning);
  if (!d.orphans.empty()) {
    json::array list;
    for (const fuse::Holder& h : d.orphans) list.push_back(json::object{{"pid", h.pid}, {"command", clean_utf8(h.command)}});
    o["orphans"] = std::move(list);
  }
  put_resync(o, d.resync);
  if (d.scrub) {
    o["scrub"] = json::object{{"ended_ms", d.scrub->ended_ms},
                              {"pages", d.scrub->pages},
                              {"bad_pages", d.scrub->bad_pages},
                              {"bad_total", d.scrub->bad_total}};
  }
  if (d.applied) {
    o["applied_txid"] = to_hex(d.applied->txid.value());
    o["applied_checksum"] = to_hex(d.applied->checksum.value());
  }
  return o;
}

json::object replica_json(const replication::ReplicaStatus& r, const NodeStatus& status) {
  json::array list;
  for (const auto& d : r.databases) {
    json::object o{
        {"name", ""}, {"durable", to_hex(d.durable.value())}, {"applied", to_hex(d.applied.value())}};
    put_name(o, d.name);
    if (const DatabaseStatus* own = status.find(d.name)) {
      const std::uint64_t mine = own->pos.txid.value();
      o["lag_txids"] = mine > d.applied.value() ? mine - d.applied.value() : 0;
    }
    put_resync(o, d.resync);
    list.push_back(std::move(o));
  }
  return json::object{
      {"node_id", to_hex(r.node_id.value())}, {"hostname", clean_utf8(r.hostname)}, {"address", r.address},
      {"connected_ms", r.connected_ms},       {"bytes_sent", r.bytes_sent}, {"databases", std::move(list)}};
}

}  // namespace

DatabaseStatus* NodeStatus::find(std::string_view name) {
  const auto it = std::lower_bound(databases.begin(), databases.end(), name,
                                   [](const DatabaseStatus& d, std::string_view n) { return d.name < n; });
  return it != databases.end() && it->name == name ? &*it : nullptr;
}
const DatabaseStatus* NodeStatus::find(std::string_view name) const {
  return const_cast<NodeStatus*>(this)->find(name);
}

std::string NodeStatus::not_ready_reason() const {
  if (ready()) return {};
  if (!subscriber || !subscriber->connected) {
    const std::string why =
        subscriber && !subscriber->last_error.empty() ? ": " + subscriber->last_error : "";
    return "not connected to the primary " + primary_url + why;
  }
  return "still catching up with the primary " + primary_url;
}

DatabaseStatus database_status(storage::Database& database, const std::string& backing_path) {
  DatabaseStatus s;
  s.name = database.name();
  s.pos = database.pos();
  s.page_size = database.page_size();
  s.pages = database.page_count();
  s.timestamp_ms = database.timestamp_ms();
  s.log_first = database.log().first_readable();
  s.durable = database.log().durable();
  s.log_bytes = database.log().size_bytes();
  s.fault = database.fault();
  s.waiting = database.waiting();
  s.warning = database.warning();
  s.journal_mode = s.pages == 0 ? "deleted" : journal_mode(real_file_system(), backing_path);
  return s;
}

std::string status_json(const NodeStatus& s) {
  json::array databases;
  for (const DatabaseStatus& d : s.databases) databases.push_back(database_json(d));
  json::object out{{"role", s.role == storage::Role::primary ? "primary" : "replica"},
                   {"node_id", to_hex(s.node_id.value())},
                   {"hostname", clean_utf8(s.hostname)},
                   {"version", SLUICE_VERSION},
                   {"epoch", s.epoch.value()},
                   {"process", s.process},
                   {"uptime_ms", s.uptime_ms},
                   {"mount", clean_utf8(s.mountpoint)},
                   {"data_dir", clean_utf8(s.data_dir)},
                   {"io", s.io},
                   {"ready", s.ready()},
                   {"databases", std::move(databases)}};
  if (!s.advertise_url.empty()) out["advertise_url"] = s.advertise_url;
  json::array replicas;
  for (const auto& r : s.replicas) replicas.push_back(replica_json(r, s));
  out["replicas"] = std::move(replicas);  // a replica can have some, too
  if (s.role == storage::Role::replica) {
    json::object primary{{"url", s.primary_url}, {"hostname", clean_utf8(s.primary_hostname)}};
    if (s.subscriber) {
      primary["connected"] = s.subscriber->connected;
      if (s.subscriber->path.size() > 1) primary["via"] = clean_utf8(s.subscriber->upstream_hostname);
      primary["synced"] = s.subscriber->synced;
      primary["last_error"] = clean_utf8(s.subscriber->last_error);
      primary["bytes_received"] = s.subscriber->bytes_received;
      primary["resyncs"] = s.subscriber->resyncs;
      if (s.subscriber->lag_ms)
        primary["lag_ms"] = *s.subscriber->lag_ms;
      else
        primary["lag_ms"] = nullptr;
    }
    out["primary"] = std::move(primary);
  }
  return json::serialize(out) + "\n";
}

}  // namespace sluice::server
