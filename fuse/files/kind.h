// What a file is, as far as its name and first bytes tell (DESIGN §2). Pure functions; whether a base file exists is the
// caller's business.
#pragma once

#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "fuse/observer.h"

namespace sluice::fuse {

/// A name that SQLite could have derived from a database's name.
struct SideFile {
  FileKind kind{};
  std::string_view base;  ///< the database's name; never empty
};

/// By name alone: X-journal, X-wal, X-shm, X-mjHHHHHHHHH (nine upper-case hexadecimal digits).
std::optional<SideFile> side_file(std::string_view name);
/// The X of X-pos, or nothing.
std::optional<std::string_view> position_base(std::string_view name);
/// True if a file with these first bytes is a database.
bool begins_with_magic(ByteView bytes);
/// Length of what begins_with_magic() wants to see.
inline constexpr std::size_t kMagicSize = 16;

/// Path of the database that the file at `path` belongs to; empty for kinds that belong to none (observer.h).
std::string_view database_of(FileKind kind, std::string_view path);
/// Kinds whose writes, truncations and removals go through the observer.
bool is_observed(FileKind kind);
/// -wal and -shm: on the native path these are read and written without us (DESIGN §2).
bool is_side_file(FileKind kind);
std::string_view kind_name(FileKind kind);

}  // namespace sluice::fuse
