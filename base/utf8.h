// Names of databases and files are bytes; JSON and metrics are UTF-8.
#pragma once

#include <string>
#include <string_view>

namespace sluice {

bool is_utf8(std::string_view text);
/// `text` with every byte that is not part of valid UTF-8 replaced by U+FFFD.
std::string clean_utf8(std::string_view text);

}  // namespace sluice
