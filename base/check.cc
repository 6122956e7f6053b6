#include "base/check.h"

#include <cstdio>
#include <cstdlib>

namespace sluice {

void check_failed(const char* expression, const char* file, int line) {
  std::fprintf(stderr, "sluice: CHECK failed: %s at %s:%d (this is a bug; please report it)\n", expression, file, line);
  std::fflush(stderr);
  std::abort();
}

}  // namespace sluice
