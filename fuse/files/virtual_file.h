// .primary, .lag and X-pos: files that exist only in the mount (DESIGN §2).
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>
#include <string_view>

#include "fuse/observer.h"

namespace sluice::fuse {

enum class VirtualKind { primary, lag, position };

inline constexpr std::string_view kPrimaryName = ".primary";
inline constexpr std::string_view kLagName = ".lag";
inline constexpr std::size_t kLagSize = 11;
inline constexpr std::size_t kPositionSize = 34;

/// By path alone; X-pos only names a virtual file if X is a database, which the caller finds out.
std::optional<VirtualKind> virtual_kind(std::string_view path);

/// Attributes of a virtual file; ENOENT if it does not exist now. Does not block.
int virtual_attr(VirtualFiles& files, VirtualKind kind, std::string_view path, struct stat& st);
/// Content. For VirtualKind::position this captures first and may block: on the disk pool.
std::string virtual_content(VirtualFiles& files, VirtualKind kind, std::string_view path);

}  // namespace sluice::fuse
