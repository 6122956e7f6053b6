#include "storage/apply/io.h"

#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "base/log.h"

namespace sluice::storage::apply {

Result<void> read_full(int fd, std::uint64_t offset, ByteSpan out, const std::string& what) {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("read " + what, errno);
    if (n == 0) return make_error(Errc::corrupt, what + " ends at byte " + std::to_string(offset + done));
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<void> write_full(int fd, std::uint64_t offset, ByteView data, const std::string& what) {
  std::size_t done = 0;
  while (done < data.size()) {
    const ssize_t n = ::pwrite(fd, data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno_error("write " + what, errno);
    done += static_cast<std::size_t>(n);
  }
  return {};
}

Result<std::uint64_t> file_size(int fd, const std::string& what) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) return errno_error("stat " + what, errno);
  return static_cast<std::uint64_t>(st.st_size);
}

Result<void> sync_data(int fd, const std::string& what) {
  if (::fdatasync(fd) != 0) return errno_error("fdatasync " + what, errno);
  return {};
}

void inherit_owner(int fd, const std::string& model, unsigned mode_mask) {
  struct stat st {};
  if (::stat(model.c_str(), &st) != 0) return;
  // Convenience for other users' readers, not correctness: a daemon that is not root cannot give files away.
  if (::fchmod(fd, st.st_mode & mode_mask & 0777) != 0) LOG_DEBUG("fchmod like {}: errno {}", model, errno);
  if (::geteuid() == 0 && ::fchown(fd, st.st_uid, st.st_gid) != 0) {
    LOG_DEBUG("fchown like {}: errno {}", model, errno);
  }
}

}  // namespace sluice::storage::apply
