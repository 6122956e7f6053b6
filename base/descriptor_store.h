// Descriptors that outlive the process: kept by who starts it again (`sluice mount --guardian`).
#pragma once

#include <string>

#include "base/errors.h"
#include "base/fd.h"

namespace sluice {

/// Thread-safe. Names: up to 200 letters, digits, '-', '.' and '_'.
class DescriptorStore {
 public:
  virtual ~DescriptorStore() = default;
  /// Did the process before this one leave a descriptor under `name`, not taken yet?
  virtual bool has(const std::string& name) const = 0;
  /// It, once; close-on-exec. It stays kept for the next process.
  virtual UniqueFd take(const std::string& name) = 0;
  /// Keeps a duplicate for the process after this one, in place of what was kept under the name.
  virtual Result<void> keep(const std::string& name, int fd) = 0;
  /// Closes the kept duplicate.
  virtual void drop(const std::string& name) = 0;
};

}  // namespace sluice
