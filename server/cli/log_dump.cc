#include "server/cli/log_dump.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdio>
#include <ctime>

#include "storage/ltx/checksum.h"
#include "storage/ltx/decoder.h"

namespace sluice::server {
namespace {

std::string utc(std::int64_t ms) {
  const std::time_t seconds = static_cast<std::time_t>(ms / 1000);
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z", parts.tm_year + 1900, parts.tm_mon + 1,
                     parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec, ms % 1000);
}

void print(const std::string& line) {
  std::fputs((line + "\n").c_str(), stdout);
}

}  // namespace

Result<void> print_log_list(const std::string& text) {
  const boost::json::value list = boost::json::parse(text);
  print(fmt::format("{:<16}  {:<16}  {:<24}  {:>9}  {:>10}  {}", "FIRST TXID", "LAST TXID", "TIME", "PAGES",
                    "BYTES", "CHECKSUM"));
  for (const auto& r : list.at("records").as_array()) {
    const std::string kind = r.at("base").as_bool() ? " (base)" : "";
    print(fmt::format("{:<16}  {:<16}  {:<24}  {:>9}  {:>10}  {}{}", r.at("min_txid").as_string().c_str(),
                      r.at("max_txid").as_string().c_str(),
                      utc(r.at("timestamp_ms").to_number<std::int64_t>()),
                      r.at("commit").to_number<std::int64_t>(), r.at("bytes").to_number<std::int64_t>(),
                      r.at("post_checksum").as_string().c_str(), kind));
  }
  if (list.at("more").as_bool()) print("… more: use --from and --limit");
  return {};
}

Result<void> print_change_set(ByteView image) {
  std::vector<std::string> pages;
  const auto visit = [&pages](Pgno pgno, ByteView page) -> Result<void> {
    pages.push_back(
        fmt::format("page {:>10}  {}", pgno.value(), to_hex(ltx::page_checksum(pgno, page).value())));
    return {};
  };
  TRY_ASSIGN(const ltx::Decoded decoded, ltx::decode(ltx::memory_source(image), image.size(), visit));
  const ltx::Header& h = decoded.header;
  print(fmt::format("TXID           {} - {}", h.min_txid, h.max_txid));
  print(fmt::format("time           {}", utc(h.timestamp_ms)));
  print(fmt::format("node           {}", to_hex(h.node_id)));
  print(fmt::format("page size      {}", h.page_size));
  print(fmt::format("pages after    {}", h.commit));
  print(fmt::format("pre checksum   {}", to_hex(h.pre_apply_checksum)));
  print(fmt::format("post checksum  {}", to_hex(decoded.trailer.post_apply_checksum)));
  print(fmt::format("file checksum  {} (verified)", to_hex(decoded.trailer.file_checksum)));
  for (const std::string& line : pages) print(line);
  return {};
}

}  // namespace sluice::server
