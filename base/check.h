// CHECK: for what only a bug can break. On in every build. Bad input, corrupt files and hostile peers are never a
// CHECK: they get a typed Error.
#pragma once

namespace sluice {
/// Prints the message with file and line to standard error and aborts.
[[noreturn]] void check_failed(const char* expression, const char* file, int line);
}  // namespace sluice

#define CHECK(condition)                                                    \
  do {                                                                      \
    if (!(condition)) [[unlikely]]                                          \
      ::sluice::check_failed(#condition, __FILE__, __LINE__);               \
  } while (false)
