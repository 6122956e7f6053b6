#include "fuse/mount_point.h"

#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <sstream>
#include <string_view>

#include "base/log.h"
#include "fuse/fusermount.h"

namespace sluice::fuse {
namespace {

constexpr const char* kType = "fuse.sluice";

struct CloseDir {
  void operator()(DIR* d) const { ::closedir(d); }
};
using DirPtr = std::unique_ptr<DIR, CloseDir>;

Error bad_mount_point(const std::string& path, std::string_view why) {
  return make_error(Errc::invalid_argument, fmt::format("mount point {}: {}", path, why));
}

bool is_inside(const std::string& path, const std::string& directory) {
  return path == directory || path.starts_with(directory == "/" ? directory : directory + "/");
}

/// mountinfo writes spaces, tabs, line ends and backslashes as three octal digits.
std::string unescape(const std::string& text) {
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    unsigned code = 0;
    if (text[i] == '\\' && i + 3 < text.size() &&
        std::from_chars(text.data() + i + 1, text.data() + i + 4, code, 8).ptr == text.data() + i + 4) {
      out += static_cast<char>(code);
      i += 3;
    } else {
      out += text[i];
    }
  }
  return out;
}

struct MountedHere {
  std::string type;
  dev_t device = 0;
};

/// The topmost mount at exactly `path`, from mountinfo (asking the mount itself could hang); no type if there is none.
MountedHere mounted_at(const std::string& path) {
  std::ifstream in("/proc/self/mountinfo");
  std::string line;
  MountedHere top;
  while (std::getline(in, line)) {
    // "36 35 98:0 /root /mount/point opts - type source superopts"; spaces in paths are \040.
    std::istringstream fields(line);
    std::string id, parent, device, root, point;
    if (!(fields >> id >> parent >> device >> root >> point)) continue;
    const std::size_t dash = line.find(" - ");
    const std::size_t colon = device.find(':');
    if (dash == std::string::npos || colon == std::string::npos || unescape(point) != path) continue;
    top.type = line.substr(dash + 3, line.find(' ', dash + 3) - dash - 3);
    unsigned major_number = 0;
    unsigned minor_number = 0;
    std::from_chars(device.data(), device.data() + colon, major_number);
    std::from_chars(device.data() + colon + 1, device.data() + device.size(), minor_number);
    top.device = makedev(major_number, minor_number);
  }
  return top;
}

Result<void> check_empty(const std::string& path) {
  const DirPtr dir(::opendir(path.c_str()));
  if (!dir) return errno_error("open mount point " + path, errno);
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..")
      return bad_mount_point(path, fmt::format("the directory is not empty (it has \"{}\")", name));
  }
  return boost::system::in_place_value;
}

bool link_leads_into(const std::string& link, const std::string& directory) {
  std::array<char, PATH_MAX> target{};
  const ssize_t n = ::readlink(link.c_str(), target.data(), target.size());
  return n > 0 && is_inside(std::string(target.data(), static_cast<std::size_t>(n)), directory);
}

bool process_uses(const std::string& proc, const std::string& path, dev_t device) {
  if (link_leads_into(proc + "/cwd", path) || link_leads_into(proc + "/root", path)) return true;
  if (const DirPtr fds{::opendir((proc + "/fd").c_str())})
    while (const dirent* entry = ::readdir(fds.get()))
      if (entry->d_name[0] != '.' && link_leads_into(proc + "/fd/" + entry->d_name, path)) return true;
  const std::string number = fmt::format(" {:02x}:{:02x} ", major(device), minor(device));
  std::ifstream maps(proc + "/maps");
  std::string line;
  while (std::getline(maps, line))
    if (line.find(number) != std::string::npos) return true;
  return false;
}

}  // namespace

// A node that was killed leaves its mount behind; nobody can do anything in it any more.
Result<void> detach_if_dead(const std::string& path) {
  // stat(2) is answered from attributes that the kernel remembers; statfs(2) always asks.
  struct statfs answer {};
  if (::statfs(path.c_str(), &answer) == 0 || (errno != ENOTCONN && errno != ECONNABORTED)) return boost::system::in_place_value;
  if (mounted_at(path).type != kType) return bad_mount_point(path, fmt::format("a dead mount is there; remove it with: umount -l {}", path));
  LOG_INFO("detaching the mount that a dead node left at {}", path);
  if (::umount2(path.c_str(), UMOUNT_NOFOLLOW | MNT_DETACH) == 0) return boost::system::in_place_value;
  return errno == EPERM ? fuserunmount(path, true) : Result<void>(errno_error("umount " + path, errno));
}

Result<std::string> resolve_mount_point(const std::string& path) {
  std::array<char, PATH_MAX> resolved{};
  if (::realpath(path.c_str(), resolved.data()) == nullptr) return errno_error("mount point " + path, errno);
  return std::string(resolved.data());
}

Result<std::string> check_mount_point(const std::string& path, const std::string& backing_dir) {
  TRY(detach_if_dead(path));
  struct stat st {};
  if (::stat(path.c_str(), &st) != 0) {
    if (errno == ENOENT) return bad_mount_point(path, "no such directory; create it first");
    return errno_error("mount point " + path, errno);
  }
  if (!S_ISDIR(st.st_mode)) return bad_mount_point(path, "not a directory");
  TRY_ASSIGN(std::string absolute, resolve_mount_point(path));
  if (is_inside(absolute, backing_dir) || is_inside(backing_dir, absolute))
    return bad_mount_point(path, fmt::format("it and the data directory's {} contain one another", backing_dir));
  if (mounted_at(absolute).type == kType)
    return bad_mount_point(path, "already a Sluice mount; stop that node first (or umount it)");
  TRY(check_empty(absolute));
  return absolute;
}

Result<UniqueFd> mount_fuse(const std::string& path, bool allow_other) {
  UniqueFd device(::open("/dev/fuse", O_RDWR | O_CLOEXEC));
  if (!device) {
    const int err = errno;
    if (err == EACCES && ::geteuid() != 0) return fusermount(path, allow_other);
    if (err == ENOENT || err == ENODEV || err == ENXIO)
      return Error{Errc::unsupported, "no /dev/fuse: load the fuse module, or give the container --device /dev/fuse",
                   err};
    return errno_error("open /dev/fuse", err);
  }
  const std::string options =
      fmt::format("fd={},rootmode=40000,user_id={},group_id={},default_permissions{}", device.get(), ::geteuid(),
                  ::getegid(), allow_other ? ",allow_other" : "");
  if (::mount("sluice", path.c_str(), kType, MS_NOSUID | MS_NODEV | MS_NOATIME, options.c_str()) != 0) {
    const int err = errno;
    if (err == EPERM && ::geteuid() != 0) {
      device.reset();
      return fusermount(path, allow_other);
    }
    if (err == EPERM)
      return Error{Errc::unsupported, "mounting needs CAP_SYS_ADMIN: give the container the capability", err};
    return errno_error("mount " + path, err);
  }
  return device;
}

Result<dev_t> device_of(const std::string& path) {
  const MountedHere here = mounted_at(path);
  if (here.type != kType) return make_error(Errc::internal, "mount point " + path + " does not show our mount");
  return here.device;
}

Result<void> unmount(const std::string& path, dev_t device, bool detach) {
  // Somebody may have unmounted it, or mounted something over it: only ever take away our own.
  const MountedHere here = mounted_at(path);
  if (here.type != kType || here.device != device) return boost::system::in_place_value;
  if (::umount2(path.c_str(), UMOUNT_NOFOLLOW | (detach ? MNT_DETACH : 0)) == 0) return boost::system::in_place_value;
  if (errno == EBUSY) return Error{Errc::busy, "mount point " + path + " is in use", EBUSY};
  if (errno == EINVAL) return boost::system::in_place_value;  // no longer a mount point
  if (errno == EPERM) return fuserunmount(path, detach);
  return errno_error("umount " + path, errno);
}

Result<UniqueFd> open_abort_file(dev_t device) {
  const std::string file = fmt::format("{}/abort", minor(device));
  UniqueFd found(::open(("/sys/fs/fuse/connections/" + file).c_str(), O_WRONLY | O_CLOEXEC));
  if (found) return found;
  // Where fusectl is not mounted (containers), a private instance of it does: attached nowhere, gone with the descriptor.
  const UniqueFd context(::fsopen("fusectl", FSOPEN_CLOEXEC));
  if (!context || ::fsconfig(context.get(), FSCONFIG_CMD_CREATE, nullptr, nullptr, 0) != 0)
    return errno_error("open fusectl", errno);
  const UniqueFd control(::fsmount(context.get(), FSMOUNT_CLOEXEC, 0));
  if (!control) return errno_error("mount fusectl", errno);
  found = UniqueFd(::openat(control.get(), file.c_str(), O_WRONLY | O_CLOEXEC));
  if (!found) return errno_error("open fusectl's " + file, errno);
  return found;
}

bool abort_connection(dev_t device) {
  const auto file = open_abort_file(device);
  return file.has_value() && ::write(file->get(), "1", 1) == 1;
}

std::string mount_users(const std::string& path, dev_t device) {
  std::string users;
  const DirPtr processes(::opendir("/proc"));
  if (!processes) return users;
  while (const dirent* entry = ::readdir(processes.get())) {
    if (entry->d_name[0] < '1' || entry->d_name[0] > '9') continue;
    const std::string proc = std::string("/proc/") + entry->d_name;
    if (!process_uses(proc, path, device)) continue;
    std::string name;
    std::getline(std::ifstream(proc + "/comm"), name);
    users += fmt::format("{}{} ({})", users.empty() ? "" : ", ", entry->d_name, name);
  }
  return users;
}

}  // namespace sluice::fuse
