#include "server/virtual_files.h"

#include <algorithm>
#include <limits>

namespace sluice::server {

std::string NodeFiles::primary() {
  const std::string host = sources_.primary_host();
  return host.empty() ? std::string() : host + "\n";
}

std::string NodeFiles::lag() {
  const auto ms = sources_.lag_ms();
  constexpr std::int64_t kNever = std::numeric_limits<std::int32_t>::max();
  return fmt::format("{:+010d}\n", ms ? std::clamp<std::int64_t>(*ms, 0, kNever) : kNever);
}

std::string NodeFiles::position(std::string_view database) {
  const auto pos = sources_.position(std::string(database));
  return pos ? fmt::format("{}\n", *pos) : std::string();
}

}  // namespace sluice::server
