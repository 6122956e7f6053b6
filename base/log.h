// Logging: spdlog with one logger. LOG_INFO("applied {} on {}", txid, name). Formatting is fmt's; give types a
// fmt::formatter. Thread-safe. Never log page contents or SQL.
#pragma once

#include <spdlog/spdlog.h>

#include <string>

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)

namespace sluice {

struct LogOptions {
  bool json = false;   ///< one JSON object a line instead of text
  bool debug = false;  ///< also debug messages
};

/// Sets up the process-wide logger on standard error. Call once, before other threads start.
void init_logging(const LogOptions& options);

}  // namespace sluice
