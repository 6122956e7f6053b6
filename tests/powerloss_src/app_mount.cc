#include "tests/powerloss_src/app_mount.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdarg>
#include <cstdlib>
#include <map>

#include "tests/powerloss_src/trace.h"

namespace sluice::powerloss {
namespace {

using fuse::FileKind;
using FuseOp = fuse::Op;
using fuse::OpKind;

struct AppFile {
  FileKind kind{};
  std::string path;
  std::string database;
  bool write_access = false;
};

std::string prefix;
std::string directory;
fuse::Observer* observer = nullptr;
std::map<int, AppFile> files;
std::function<void()> hook;
bool inside = false;

bool is_ours(const char* path) {
  return !prefix.empty() && std::string_view(path).starts_with(prefix) &&
         (path[prefix.size()] == '/' || path[prefix.size()] == 0);
}
std::string backing(const char* path) { return is_ours(path) ? directory + (path + prefix.size()) : path; }

AppFile describe(const char* path) {
  AppFile file;
  file.path = path + prefix.size() + (path[prefix.size()] == '/' ? 1 : 0);
  file.kind = FileKind::database;
  file.database = file.path;
  for (const auto& [suffix, kind] : {std::pair{"-journal", FileKind::journal}, {"-wal", FileKind::wal}, {"-shm", FileKind::shm}}) {
    if (!file.path.ends_with(suffix)) continue;
    file.kind = kind;
    file.database = file.path.substr(0, file.path.size() - std::string(suffix).size());
  }
  if (file.path.size() > 12 && file.path.substr(file.path.size() - 12, 3) == "-mj") {
    file.kind = FileKind::super_journal;
    file.database.clear();
  }
  return file;
}

FuseOp operation(OpKind kind, const AppFile& file) {
  FuseOp op;
  op.kind = kind;
  op.file = file.kind;
  op.path = file.path;
  op.database = file.database;
  op.write_access = file.write_access;
  return op;
}

/// 0, or -1 and errno.
int ask(const FuseOp& op, FunctionRef<int()> perform) {
  if (hook && !inside) {
    inside = true;
    hook();
    inside = false;
  }
  const int rc = observer != nullptr ? observer->run(op, perform) : perform();
  if (rc == 0) return 0;
  errno = rc;
  return -1;
}

int app_open(const char* path, int flags, int mode) {
  const std::string real = backing(path);
  if (!is_ours(path)) return ::open(real.c_str(), flags, mode);
  struct stat st {};
  if (::stat(real.c_str(), &st) == 0 && S_ISDIR(st.st_mode)) {
    const int fd = ::open(real.c_str(), flags, mode);
    if (fd >= 0) files[fd] = {FileKind::directory, real, "", false};
    return fd;
  }
  AppFile file = describe(path);
  file.write_access = (flags & O_ACCMODE) != O_RDONLY;
  const bool exists = ::access(real.c_str(), F_OK) == 0;
  FuseOp op = operation(exists ? OpKind::open : OpKind::create, file);
  const int fd = ::open(real.c_str(), flags, mode);
  if (fd < 0) return fd;
  if (observer != nullptr) observer->opened(op);
  files[fd] = file;
  return fd;
}

int app_close(int fd) {
  const auto found = files.find(fd);
  if (found == files.end()) return ::close(fd);
  const AppFile file = found->second;
  files.erase(found);
  const int rc = ::close(fd);
  if (observer != nullptr && file.kind != FileKind::directory) observer->released(operation(OpKind::open, file));
  return rc;
}

ssize_t app_pwrite(int fd, const void* data, std::size_t n, off_t offset) {
  const auto found = files.find(fd);
  const bool asked = found != files.end() && (found->second.kind == FileKind::database || found->second.kind == FileKind::journal);
  if (!asked) return ::pwrite(fd, data, n, offset);
  FuseOp op = operation(OpKind::write, found->second);
  op.offset = static_cast<std::uint64_t>(offset);
  op.data = ByteView(static_cast<const std::byte*>(data), n);
  const int rc = ask(op, [&] { return ::pwrite(fd, data, n, offset) == static_cast<ssize_t>(n) ? 0 : EIO; });
  return rc == 0 ? static_cast<ssize_t>(n) : -1;
}

int app_ftruncate(int fd, off_t size) {
  const auto found = files.find(fd);
  if (found == files.end()) return ::ftruncate(fd, size);
  FuseOp op = operation(OpKind::truncate, found->second);
  op.size = static_cast<std::uint64_t>(size);
  return ask(op, [&] { return ::ftruncate(fd, size) == 0 ? 0 : errno; });
}

bool app_sync(int fd, int& result) {
  const auto found = files.find(fd);
  if (found == files.end()) return false;
  if (found->second.kind != FileKind::database && found->second.kind != FileKind::wal) {
    result = real_sync(fd, true);
    return true;
  }
  result = ask(operation(OpKind::fsync, found->second), [fd] { return real_sync(fd, true); });
  return true;
}

int app_unlink(const char* path) {
  if (!is_ours(path)) return ::unlink(path);
  const std::string real = backing(path);
  struct stat st {};
  if (::lstat(real.c_str(), &st) != 0) return -1;
  return ask(operation(OpKind::unlink, describe(path)), [&] { return ::unlink(real.c_str()) == 0 ? 0 : errno; });
}

int app_access(const char* path, int mode) { return ::access(backing(path).c_str(), mode); }
int app_stat(const char* path, struct stat* st) { return ::stat(backing(path).c_str(), st); }
int app_lstat(const char* path, struct stat* st) { return ::lstat(backing(path).c_str(), st); }
ssize_t app_readlink(const char* path, char* out, std::size_t n) { return ::readlink(backing(path).c_str(), out, n); }

int app_fcntl(int fd, int command, ...) {
  va_list rest;
  va_start(rest, command);
  void* const argument = va_arg(rest, void*);
  va_end(rest);
  switch (command) {
    case F_SETLK: command = F_OFD_SETLK; break;
    case F_SETLKW: command = F_OFD_SETLKW; break;
    case F_GETLK: command = F_OFD_GETLK; break;
    default: return ::fcntl(fd, command, argument);
  }
  static_cast<struct flock*>(argument)->l_pid = 0;
  return ::fcntl(fd, command, argument);
}

template <class Function>
void replace(const char* name, Function function) {
  sqlite3_vfs* const vfs = sqlite3_vfs_find("unix");
  if (vfs->xSetSystemCall(vfs, name, reinterpret_cast<sqlite3_syscall_ptr>(function)) != SQLITE_OK) std::abort();
}

}  // namespace

AppMount& AppMount::instance() {
  static AppMount mount;
  return mount;
}

void AppMount::install() {
  sqlite3_initialize();
  replace("open", app_open);
  replace("close", app_close);
  replace("pwrite", app_pwrite);
  replace("pwrite64", app_pwrite);
  replace("ftruncate", app_ftruncate);
  replace("unlink", app_unlink);
  replace("access", app_access);
  replace("stat", app_stat);
  replace("lstat", app_lstat);
  replace("readlink", app_readlink);
  replace("fcntl", app_fcntl);
  set_app_sync(app_sync);
}

void AppMount::serve(const std::string& new_prefix, const std::string& new_directory, fuse::Observer* new_observer) {
  prefix = new_prefix;
  directory = new_directory;
  observer = new_observer;
}

void AppMount::before_operation(std::function<void()> new_hook) { hook = std::move(new_hook); }

int AppMount::remove(const std::string& path) { return app_unlink(path.c_str()); }

Connection::Connection(const std::string& path, bool create) {
  code_ = sqlite3_open_v2(path.c_str(), &db_, SQLITE_OPEN_READWRITE | (create ? SQLITE_OPEN_CREATE : 0), nullptr);
}

Connection::~Connection() { sqlite3_close(db_); }

std::string Connection::value(const std::string& sql, int* code) {
  sqlite3_stmt* statement = nullptr;
  int rc = sqlite3_prepare_v2(db_, sql.c_str(), -1, &statement, nullptr);
  std::string text;
  if (rc == SQLITE_OK) {
    rc = sqlite3_step(statement);
    const unsigned char* column = rc == SQLITE_ROW ? sqlite3_column_text(statement, 0) : nullptr;
    if (column != nullptr) text = reinterpret_cast<const char*>(column);
    while (rc == SQLITE_ROW) rc = sqlite3_step(statement);
  }
  sqlite3_finalize(statement);
  if (code != nullptr) *code = rc == SQLITE_DONE ? SQLITE_OK : rc;
  return text;
}

}  // namespace sluice::powerloss
