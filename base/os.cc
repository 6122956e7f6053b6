#include "base/os.h"

#include "base/real_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace sluice {
namespace {

class RealFileSystem final : public FileSystem {
 public:
  Result<std::unique_ptr<File>> open(const std::string& path, OpenMode mode) override {
    int flags = O_CLOEXEC | (mode.write ? O_RDWR : O_RDONLY);
    if (mode.create) flags |= O_CREAT;
    if (mode.exclusive) flags |= O_EXCL;
    UniqueFd fd(::open(path.c_str(), flags, 0644));
    if (!fd) return errno_error("open " + path, errno);
    return make_real_file(std::move(fd), path, mode.write);
  }

  Result<void> rename(const std::string& from, const std::string& to) override {
    if (::rename(from.c_str(), to.c_str()) != 0) return errno_error("rename " + from + " to " + to, errno);
    return {};
  }

  Result<void> unlink(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return errno_error("unlink " + path, errno);
    return {};
  }

  Result<void> remove_directory(const std::string& path) override {
    if (::rmdir(path.c_str()) != 0) return errno_error("rmdir " + path, errno);
    return {};
  }

  Result<bool> exists(const std::string& path) override {
    struct stat st {};
    if (::lstat(path.c_str(), &st) == 0) return true;
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return errno_error("stat " + path, errno);
  }

  Result<void> make_directories(const std::string& path) override {
    for (std::size_t end = path.find('/', 1);; end = path.find('/', end + 1)) {
      const std::string prefix = path.substr(0, end);
      if (::mkdir(prefix.c_str(), 0755) != 0 && errno != EEXIST) return errno_error("mkdir " + prefix, errno);
      if (end == std::string::npos) break;
    }
    struct stat st {};
    if (::stat(path.c_str(), &st) != 0) return errno_error("stat " + path, errno);
    if (!S_ISDIR(st.st_mode)) return errno_error("mkdir " + path, ENOTDIR);
    return {};
  }

  Result<std::vector<DirEntry>> list(const std::string& path) override {
    DIR* dir = ::opendir(path.c_str());
    if (dir == nullptr) return errno_error("open directory " + path, errno);
    std::vector<DirEntry> entries;
    errno = 0;
    while (const dirent* entry = ::readdir(dir)) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      bool is_directory = entry->d_type == DT_DIR;
      if (entry->d_type == DT_UNKNOWN) {
        struct stat st {};
        is_directory = ::lstat((path + "/" + name).c_str(), &st) == 0 && S_ISDIR(st.st_mode);
      }
      entries.push_back({name, is_directory});
      errno = 0;
    }
    const int err = errno;
    ::closedir(dir);
    if (err != 0) return errno_error("read directory " + path, err);
    return entries;
  }

  Result<void> sync_directory(const std::string& path) override {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return errno_error("open directory " + path, errno);
    if (::fsync(fd.get()) != 0) return errno_error("fsync directory " + path, errno);
    return {};
  }

  Result<void> sync_everything(const std::string& path) override {
    UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return errno_error("open directory " + path, errno);
    if (::syncfs(fd.get()) != 0) return errno_error("syncfs " + path, errno);
    return {};
  }
};

}  // namespace

FileSystem& real_file_system() {
  static RealFileSystem fs;
  return fs;
}

Result<Bytes> read_file(FileSystem& fs, const std::string& path, std::uint64_t limit_bytes) {
  TRY_ASSIGN(const auto file, fs.open(path, {}));
  TRY_ASSIGN(const std::uint64_t size, file->size());
  if (size > limit_bytes) {
    return make_error(Errc::too_large, path + " has " + std::to_string(size) + " bytes, at most " +
                                           std::to_string(limit_bytes) + " are expected");
  }
  Bytes data(size);
  TRY_ASSIGN(const std::size_t n, file->read_at(0, data));
  data.resize(n);
  return data;
}

Result<void> write_file_atomically(FileSystem& fs, const std::string& path, ByteView data) {
  const std::string temporary = path + ".tmp";
  {
    TRY_ASSIGN(const auto file, fs.open(temporary, {.write = true, .create = true}));
    TRY(file->truncate(0));
    TRY(file->write_at(0, data));
    TRY(file->sync_data());
  }
  TRY(fs.rename(temporary, path));
  return fs.sync_directory(parent_directory(path));
}

std::string parent_directory(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace sluice
