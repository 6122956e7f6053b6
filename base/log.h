// Logging: spdlog behind one function. LOG_INFO("applied {} on {}", txid, name). Formatting is fmt's; give types a
// fmt::formatter. Thread-safe. Never log page contents or SQL.
//
// spdlog stays in log.cc: its header costs every file that logs seconds of compilation.
#pragma once

#include <fmt/core.h>

#include <string>

#define LOG_DEBUG(...) ::sluice::log(::sluice::LogLevel::debug, __VA_ARGS__)
#define LOG_INFO(...) ::sluice::log(::sluice::LogLevel::info, __VA_ARGS__)
#define LOG_WARN(...) ::sluice::log(::sluice::LogLevel::warning, __VA_ARGS__)
#define LOG_ERROR(...) ::sluice::log(::sluice::LogLevel::error, __VA_ARGS__)

namespace sluice {

enum class LogLevel { debug, info, warning, error };

/// What is below the level that was set is not formatted. Does not throw: a message that cannot be formatted says so.
void log_formatted(LogLevel level, fmt::string_view format, fmt::format_args arguments) noexcept;

template <class... Arguments>
void log(LogLevel level, fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  log_formatted(level, format, fmt::make_format_args(arguments...));
}

struct LogOptions {
  bool json = false;   ///< one JSON object a line instead of text
  bool debug = false;  ///< also debug messages
};

/// Sets up the process-wide logger on standard error. Call once, before other threads start.
void init_logging(const LogOptions& options);
/// Nothing is logged any more (fuzzers).
void silence_logging();

}  // namespace sluice
