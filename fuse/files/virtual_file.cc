#include "fuse/files/virtual_file.h"

#include <unistd.h>

#include <cerrno>
#include <ctime>

#include "fuse/files/kind.h"

namespace sluice::fuse {

std::optional<VirtualKind> virtual_kind(std::string_view path) {
  if (path == kPrimaryName) return VirtualKind::primary;
  if (path == kLagName) return VirtualKind::lag;
  const auto base = position_base(path);
  if (base && !base->ends_with('/')) return VirtualKind::position;
  return std::nullopt;
}

int virtual_attr(VirtualFiles& files, VirtualKind kind, std::string_view path, struct stat& st) {
  std::size_t size = 0;
  switch (kind) {
    case VirtualKind::primary:
      size = files.primary().size();
      if (size == 0) return ENOENT;
      break;
    case VirtualKind::lag:
      size = kLagSize;
      break;
    case VirtualKind::position:
      size = kPositionSize;
      break;
  }
  st = {};
  // Its own number, away from those that file systems give out.
  st.st_ino = (std::hash<std::string_view>{}(path) & 0x0fffffffffffffffULL) | 0x7000000000000000ULL;
  st.st_mode = S_IFREG | 0444;
  st.st_nlink = 1;
  st.st_uid = ::getuid();
  st.st_gid = ::getgid();
  st.st_size = static_cast<off_t>(size);
  st.st_blksize = 4096;
  ::clock_gettime(CLOCK_REALTIME, &st.st_mtim);
  st.st_atim = st.st_ctim = st.st_mtim;
  return 0;
}

std::string virtual_content(VirtualFiles& files, VirtualKind kind, std::string_view path) {
  switch (kind) {
    case VirtualKind::primary:
      return files.primary();
    case VirtualKind::lag:
      return files.lag();
    case VirtualKind::position:
      return files.position(position_base(path).value_or(std::string_view{}));
  }
  return {};
}

}  // namespace sluice::fuse
