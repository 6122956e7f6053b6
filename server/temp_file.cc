#include "server/temp_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

namespace sluice::server {

Result<TempFile> TempFile::create(const std::string& dir, const std::string& prefix) {
  std::string path = dir + "/" + prefix + "XXXXXX";
  UniqueFd fd(::mkostemp(path.data(), O_CLOEXEC));
  if (!fd) return errno_error("create a temporary file in " + dir, errno);
  return TempFile(std::move(fd), std::move(path));
}

TempFile::TempFile(TempFile&& other) noexcept
    : fd_(std::move(other.fd_)), path_(std::exchange(other.path_, {})) {}

TempFile::~TempFile() {
  if (path_.empty()) return;
  ::unlink(path_.c_str());
}

Result<void> TempFile::write_at(std::uint64_t offset, ByteView data) {
  while (!data.empty()) {
    const ssize_t n = ::pwrite(fd_.get(), data.data(), data.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("write " + path_, errno);
    }
    data = data.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

Result<void> read_exactly(int fd, std::uint64_t offset, ByteSpan out, const std::string& what) {
  while (!out.empty()) {
    const ssize_t n = ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0) {
      if (errno == EINTR) continue;
      return errno_error("read " + what, errno);
    }
    if (n == 0)
      return make_error(Errc::corrupt, what + " ends at byte " + std::to_string(offset) + ", too early");
    out = out.subspan(static_cast<std::size_t>(n));
    offset += static_cast<std::uint64_t>(n);
  }
  return {};
}

Result<void> TempFile::read_at(std::uint64_t offset, ByteSpan out) const {
  return read_exactly(fd_.get(), offset, out, path_);
}

Result<std::uint64_t> TempFile::size() const {
  struct stat st {};
  if (::fstat(fd_.get(), &st) != 0) return errno_error("stat " + path_, errno);
  return static_cast<std::uint64_t>(st.st_size);
}

Result<void> TempFile::truncate(std::uint64_t size) {
  if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) return errno_error("truncate " + path_, errno);
  return {};
}

}  // namespace sluice::server
