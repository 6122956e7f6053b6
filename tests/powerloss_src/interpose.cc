// This program's system calls on files, recorded (trace.h). The dynamic linker finds these before the C library's.
#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <string>

#include "tests/powerloss_src/trace.h"

namespace sluice::powerloss {
namespace {

AppSync app_sync;
std::atomic<bool> wakeups{true};
std::string forgotten;

bool is_forgotten(int fd) {
  if (forgotten.empty()) return false;
  char path[4096];
  const ssize_t n = ::readlink(("/proc/self/fd/" + std::to_string(fd)).c_str(), path, sizeof path);
  return n > 0 && std::string_view(path, static_cast<std::size_t>(n)).ends_with(forgotten);
}

Recorder& recorder() { return Recorder::instance(); }

bool is_there(const char* path) {
  struct stat st {};
  return ::lstat(path, &st) == 0;
}

int recorded_open(const char* path, int flags, mode_t mode) {
  if (!recorder().watches(path)) return real_open(path, flags, mode);
  const std::lock_guard lock(recorder().lock());
  const bool existed = is_there(path);
  const int fd = real_open(path, flags, mode);
  if (fd >= 0) {
    const int saved = errno;
    recorder().opened(path, fd, !existed && (flags & O_CREAT) != 0, existed && (flags & O_TRUNC) != 0);
    errno = saved;
  }
  return fd;
}

ssize_t recorded_pwrite(int fd, const void* data, std::size_t n, off_t offset) {
  const std::lock_guard lock(recorder().lock());
  const ssize_t written = ::syscall(SYS_pwrite64, fd, data, n, offset);
  if (written > 0) recorder().written(fd, static_cast<std::uint64_t>(offset), data, static_cast<std::size_t>(written));
  return written;
}

int recorded_ftruncate(int fd, off_t size) {
  const std::lock_guard lock(recorder().lock());
  const int rc = static_cast<int>(::syscall(SYS_ftruncate, fd, size));
  if (rc == 0) recorder().truncated(fd, static_cast<std::uint64_t>(size));
  return rc;
}

int recorded_sync(int fd) {
  int result = 0;
  if (app_sync && app_sync(fd, result)) return result;
  return real_sync(fd, false);
}

int recorded_remove(const char* path, bool directory) {
  const long call = directory ? SYS_rmdir : SYS_unlink;
  if (!recorder().watches(path)) return static_cast<int>(::syscall(call, path));
  const std::lock_guard lock(recorder().lock());
  const int file = recorder().file_at(path);
  const int rc = static_cast<int>(::syscall(call, path));
  if (rc == 0) recorder().removed(path, file, directory);
  return rc;
}

void* recorded_mmap(void* address, std::size_t length, int protection, int flags, int fd, off_t offset) {
  if (fd >= 0 && (flags & MAP_SHARED) != 0 && (protection & PROT_WRITE) != 0) {
    const std::lock_guard lock(recorder().lock());
    recorder().mapped(fd);
  }
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, length, protection, flags, fd, offset));
}

}  // namespace

void set_app_sync(AppSync hook) { app_sync = std::move(hook); }
void allow_wakeups(bool allow) { wakeups = allow; }

int real_open(const char* path, int flags, mode_t mode) {
  return static_cast<int>(::syscall(SYS_openat, AT_FDCWD, path, flags, mode));
}

void forget_syncs(const std::string& suffix) { forgotten = suffix; }

int real_sync(int fd, bool by_application) {
  const std::lock_guard lock(recorder().lock());
  if (!by_application && is_forgotten(fd)) return 0;
  // Nothing is really synced: the model decides what is on disk.
  recorder().before_sync(fd);
  recorder().synced(fd);
  return 0;
}

}  // namespace sluice::powerloss

namespace pl = sluice::powerloss;

extern "C" {

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return pl::recorded_open(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  return pl::recorded_open(path, flags, mode);
}
ssize_t pwrite(int fd, const void* data, size_t n, off_t offset) { return pl::recorded_pwrite(fd, data, n, offset); }
ssize_t pwrite64(int fd, const void* data, size_t n, off64_t offset) { return pl::recorded_pwrite(fd, data, n, offset); }
int ftruncate(int fd, off_t size) noexcept { return pl::recorded_ftruncate(fd, size); }
int ftruncate64(int fd, off64_t size) noexcept { return pl::recorded_ftruncate(fd, size); }
int fsync(int fd) { return pl::recorded_sync(fd); }
int fdatasync(int fd) { return pl::recorded_sync(fd); }
int unlink(const char* path) noexcept { return pl::recorded_remove(path, false); }
int rmdir(const char* path) noexcept { return pl::recorded_remove(path, true); }

int rename(const char* from, const char* to) noexcept {
  if (!pl::recorder().watches(from)) return static_cast<int>(::syscall(SYS_rename, from, to));
  const std::lock_guard lock(pl::recorder().lock());
  const int file = pl::recorder().file_at(from);
  const int rc = static_cast<int>(::syscall(SYS_rename, from, to));
  if (rc == 0) pl::recorder().renamed(from, to, file);
  return rc;
}

int mkdir(const char* path, mode_t mode) noexcept {
  if (!pl::recorder().watches(path)) return static_cast<int>(::syscall(SYS_mkdir, path, mode));
  const std::lock_guard lock(pl::recorder().lock());
  const int rc = static_cast<int>(::syscall(SYS_mkdir, path, mode));
  if (rc == 0) pl::recorder().made_directory(path);
  return rc;
}

void* mmap(void* address, size_t length, int protection, int flags, int fd, off_t offset) noexcept {
  return pl::recorded_mmap(address, length, protection, flags, fd, offset);
}
void* mmap64(void* address, size_t length, int protection, int flags, int fd, off64_t offset) noexcept {
  return pl::recorded_mmap(address, length, protection, flags, fd, offset);
}

int eventfd_write(int fd, eventfd_t value) {
  if (!pl::wakeups) return 0;
  return ::syscall(SYS_write, fd, &value, sizeof value) == sizeof value ? 0 : -1;
}

}  // extern "C"
