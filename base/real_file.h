// Files of the machine's file system, with descriptors from a pool (base/os.h says what that means to their users).
#pragma once

#include <memory>
#include <string>

#include "base/os.h"

namespace sluice {

/// `fd` was just opened at `path`.
std::unique_ptr<File> make_real_file(UniqueFd fd, std::string path, bool writable);

}  // namespace sluice
