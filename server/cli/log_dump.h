// Prints change sets and lists of them for people.
#pragma once

#include <string>

#include "base/bytes.h"
#include "base/errors.h"

namespace sluice::server {

/// The table of `sluice log list` from the API's JSON.
Result<void> print_log_list(const std::string& json);
/// Verifies an LTX image and prints header, pages and trailer. Errc::corrupt: what is wrong.
Result<void> print_change_set(ByteView image);

}  // namespace sluice::server
