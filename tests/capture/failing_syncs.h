// This process's fsync and fdatasync, so that a test can see and fail those of chosen files. SQLite's own are in other processes.
#pragma once

#include <functional>
#include <string_view>

namespace sluice::test {

/// Called before each sync with the file's path; an errno fails it, 0 lets it happen. nullptr: none. From any thread.
void before_sync(std::function<int(std::string_view path)> hook);

}  // namespace sluice::test
