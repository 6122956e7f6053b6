// The table of `sluice status`.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

#include "server/status.h"

namespace sluice::server {
namespace {

namespace json = boost::json;

std::string text(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  if (v == nullptr || v->is_null()) return "-";
  if (v->is_string()) return std::string(v->get_string());
  return json::serialize(*v);
}

std::string short_txid(std::string hex) {
  const std::size_t digit = hex.find_first_not_of('0');
  return digit == std::string::npos ? "0" : hex.substr(digit);
}

std::string human_bytes(double bytes) {
  constexpr std::array<const char*, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  std::size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < kUnits.size()) {
    bytes /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.1f} {}", bytes, kUnits[unit]);
}

class Table {
 public:
  explicit Table(std::vector<std::string> head) { rows_.push_back(std::move(head)); }
  void row(std::vector<std::string> cells) { rows_.push_back(std::move(cells)); }
  std::string render() const {
    std::vector<std::size_t> widths(rows_[0].size());
    for (const auto& row : rows_)
      for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
    std::string out;
    for (const auto& row : rows_) {
      std::string line;
      for (std::size_t i = 0; i < row.size(); ++i) {
        line += i + 1 == row.size() ? row[i] : fmt::format("{:<{}}  ", row[i], widths[i]);
      }
      out += line + "\n";
    }
    return out;
  }

 private:
  std::vector<std::vector<std::string>> rows_;
};

double number(const json::object& o, std::string_view key) {
  const json::value* v = o.if_contains(key);
  return v == nullptr ? 0 : v->to_number<double>();
}

/// "NAME is being resynchronised: …"; empty if it is not.
std::string resync_line(const json::object& database, const std::string& where) {
  const json::value* v = database.if_contains("resync");
  if (v == nullptr) return {};
  const json::object& r = v->as_object();
  std::string line = fmt::format("\n{}{} is being resynchronised: {}", text(database, "name"), where, text(r, "phase"));
  if (text(r, "phase") == "copying") {
    line += fmt::format(", {} of about {} pages, {} at {}/s", text(r, "pages"), text(r, "expected_pages"),
                        human_bytes(number(r, "bytes")), human_bytes(number(r, "bytes_per_second")));
    if (r.contains("eta_ms")) line += fmt::format(", {:.0f} s to go", number(r, "eta_ms") / 1000);
  }
  return line + "\n";
}

std::string scrub_line(const json::object& database) {
  const json::value* v = database.if_contains("scrub");
  if (v == nullptr || number(v->as_object(), "bad_pages") == 0) return {};
  return fmt::format("\n{}: the last scrub found {} damaged pages; see `sluice verify {}`\n", text(database, "name"),
                     text(v->as_object(), "bad_pages"), text(database, "name"));
}

std::string primary_line(const json::object& primary) {
  std::string line = fmt::format("primary   {} ({})", text(primary, "hostname"), text(primary, "url"));
  if (text(primary, "connected") == "true") {
    line += text(primary, "synced") == "true" ? ", connected, in sync" : ", connected, catching up";
  } else {
    line += ", NOT connected";
    if (const std::string error = text(primary, "last_error"); !error.empty() && error != "-")
      line += ": " + error;
  }
  return line + fmt::format("\nlag       {}\n",
                            text(primary, "lag_ms") == "-" ? "unknown" : text(primary, "lag_ms") + " ms");
}

std::string render(const json::object& status) {
  std::string out = fmt::format("role      {}\nnode      {} ({})\nmount     {} ({} I/O)\nversion   {}, up {} s\n",
                                text(status, "role"), text(status, "hostname"), text(status, "node_id"),
                                text(status, "mount"), text(status, "io"), text(status, "version"),
                                status.at("uptime_ms").to_number<std::int64_t>() / 1000);
  if (const json::value* primary = status.if_contains("primary")) out += primary_line(primary->as_object());
  Table databases({"DATABASE", "TXID", "CHECKSUM", "SIZE", "PAGE", "JOURNAL", "LOG"});
  for (const json::value& v : status.at("databases").as_array()) {
    const json::object& d = v.as_object();
    const json::object& log = d.at("log").as_object();
    databases.row({text(d, "name"), short_txid(text(d, "txid")), text(d, "checksum"),
                   human_bytes(d.at("bytes").to_number<double>()), text(d, "page_size"),
                   text(d, "journal_mode"),
                   fmt::format("from {}, {}", short_txid(text(log, "first")),
                               human_bytes(log.at("bytes").to_number<double>()))});
  }
  out += "\n" + databases.render();
  for (const json::value& v : status.at("databases").as_array()) {
    const json::object& d = v.as_object();
    if (d.contains("fault"))
      out += fmt::format("\n{} is STOPPED: {}; restart the node after the cause is gone\n", text(d, "name"), text(d, "fault"));
    if (d.contains("waiting"))
      out += fmt::format("\n{} is WAITING for space on the disk: {}; it goes on by itself when there is some\n", text(d, "name"),
                         text(d, "waiting"));
    if (d.contains("warning")) out += fmt::format("\n{}: warning: {}\n", text(d, "name"), text(d, "warning"));
    if (const json::value* orphans = d.if_contains("orphans")) {
      std::string processes;
      for (const json::value& o : orphans->as_array())
        processes += fmt::format("{}{} ({})", processes.empty() ? "" : ", ", text(o.as_object(), "pid"), text(o.as_object(), "command"));
      out += fmt::format("\n{}: cut off since the last start, must connect again: {}\n", text(d, "name"),
                         processes.empty() ? "a process that cannot be seen from here" : processes);
    }
    out += resync_line(d, "") + scrub_line(d);
  }
  const json::value* replicas = status.if_contains("replicas");
  if (replicas == nullptr) return out;
  Table table({"REPLICA", "ADDRESS", "DATABASE", "DURABLE", "APPLIED", "BEHIND"});
  for (const json::value& v : replicas->as_array()) {
    const json::object& r = v.as_object();
    const json::array& list = r.at("databases").as_array();
    if (list.empty()) table.row({text(r, "hostname"), text(r, "address"), "-", "-", "-", "-"});
    for (const json::value& dv : list) {
      const json::object& d = dv.as_object();
      table.row({text(r, "hostname"), text(r, "address"), text(d, "name"), short_txid(text(d, "durable")),
                 short_txid(text(d, "applied")), text(d, "lag_txids")});
    }
  }
  for (const json::value& v : replicas->as_array()) {
    const json::object& r = v.as_object();
    for (const json::value& dv : r.at("databases").as_array()) out += resync_line(dv.as_object(), " on " + text(r, "hostname"));
  }
  return out + "\n" + (replicas->as_array().empty() ? "no replica is connected\n" : table.render());
}

}  // namespace

Result<std::string> status_table(const std::string& text) {
  try {
    return render(json::parse(text).as_object());
  } catch (const std::exception& e) {
    return make_error(Errc::protocol, std::string("the node's status is not understood: ") + e.what());
  }
}

}  // namespace sluice::server
