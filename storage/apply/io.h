// Whole reads and writes on plain descriptors: the files of a live database are opened by MountAccess, not by FileSystem.
#pragma once

#include <cstdint>
#include <string>

#include "base/bytes.h"
#include "base/errors.h"

namespace sluice::storage::apply {

/// Fills `out` or fails; Errc::corrupt when the file ends before. `what` names the file.
Result<void> read_full(int fd, std::uint64_t offset, ByteSpan out, const std::string& what);
Result<void> write_full(int fd, std::uint64_t offset, ByteView data, const std::string& what);
Result<std::uint64_t> file_size(int fd, const std::string& what);
Result<void> sync_data(int fd, const std::string& what);

/// Gives the file at `fd` the permissions and (when we may) the owner of the file or directory `model`, so that the users who
/// can open a database can open what belongs to it (SQLite's findCreateFileMode). `mode_mask` limits the permissions.
void inherit_owner(int fd, const std::string& model, unsigned mode_mask);

}  // namespace sluice::storage::apply
