#include "base/real_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <map>
#include <optional>
#include <vector>

#include "base/log.h"
#include "base/resource_pool.h"

namespace sluice {
namespace {

constexpr std::size_t kMostOpen = 1024;
constexpr std::size_t kFewestOpen = 64;
constexpr auto kAfterFailure = std::chrono::seconds(30);

/// What a file is, whatever its name: a number that is used again comes with another time.
struct Identity {
  std::uint64_t device = 0;
  std::uint64_t inode = 0;
  std::int64_t born_s = 0;
  std::uint32_t born_ns = 0;
  bool operator==(const Identity&) const = default;
};

/// nullopt: there is none, or it has no name left.
std::optional<Identity> identity_of(int dir, const char* path, int flags) {
  struct statx st {};
  if (::statx(dir, path, flags, STATX_INO | STATX_NLINK | STATX_BTIME, &st) != 0 || st.stx_nlink == 0) return std::nullopt;
  Identity identity;
  identity.device = std::uint64_t{st.stx_dev_major} << 32 | st.stx_dev_minor;
  identity.inode = st.stx_ino;
  if ((st.stx_mask & STATX_BTIME) != 0) {
    identity.born_s = st.stx_btime.tv_sec;
    identity.born_ns = st.stx_btime.tv_nsec;
  }
  return identity;
}

class FilePool final : public ResourcePool {
 public:
  FilePool() : ResourcePool(default_limit()) {}

 protected:
  bool make_closable() override EXCLUDES(settling_);

 private:
  static std::size_t default_limit() {
    rlimit limit{};
    if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return kFewestOpen;
    return std::clamp<std::size_t>(limit.rlim_max / 4, kFewestOpen, kMostOpen);
  }
  Mutex settling_;  ///< before the pool's mutex
  std::chrono::steady_clock::time_point failed_at_ GUARDED_BY(settling_){};
};

FilePool& file_pool() {
  static auto* const pool = new FilePool;  // files may be closed by destructors that run last
  return *pool;
}

class RealFile final : public File, private PooledResource {
 public:
  RealFile(UniqueFd fd, std::string path, bool writable)
      : PooledResource(file_pool()), fd_(std::move(fd)), path_(std::move(path)), writable_(writable) {
    join_pool();
  }
  ~RealFile() override { leave_pool(); }

  Result<std::size_t> read_at(std::uint64_t offset, ByteSpan out) const override {
    Use use(*this);
    TRY(use.opened);
    std::size_t done = 0;
    while (done < out.size()) {
      const ssize_t n =
          ::pread(fd_.get(), out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
      if (n < 0) {
        if (errno == EINTR) continue;
        return errno_error("read " + path_, errno);
      }
      if (n == 0) break;
      done += static_cast<std::size_t>(n);
    }
    return done;
  }

  Result<void> write_at(std::uint64_t offset, ByteView data) override {
    Use use(*this);
    TRY(use.opened);
    const Counted counted(*this);
    std::size_t done = 0;
    while (done < data.size()) {
      const ssize_t n =
          ::pwrite(fd_.get(), data.data() + done, data.size() - done, static_cast<off_t>(offset + done));
      if (n < 0) {
        if (errno == EINTR) continue;
        return errno_error("write " + path_, errno);
      }
      done += static_cast<std::size_t>(n);
    }
    return {};
  }

  Result<void> sync_data() override {
    Use use(*this);
    TRY(use.opened);
    const std::uint64_t covered = changes_;
    if (::fdatasync(fd_.get()) != 0) {
      ++changes_;  // open for good: the kernel has told, and would not tell again
      sync_failed_ = true;
      return errno_error("fdatasync " + path_, errno);
    }
    note_synced(covered);
    return {};
  }

  void start_writeback(std::uint64_t offset, std::uint64_t length) override {
    Use use(*this);
    if (use.opened.has_error()) return;
    (void)::sync_file_range(fd_.get(), static_cast<off64_t>(offset), static_cast<off64_t>(length), SYNC_FILE_RANGE_WRITE);
  }

  void forget_cached(std::uint64_t offset, std::uint64_t length) override {
    Use use(*this);
    if (use.opened.has_error()) return;
    (void)::posix_fadvise(fd_.get(), static_cast<off_t>(offset), static_cast<off_t>(length), POSIX_FADV_DONTNEED);
  }

  Result<void> truncate(std::uint64_t size) override {
    Use use(*this);
    TRY(use.opened);
    const Counted counted(*this);
    if (::ftruncate(fd_.get(), static_cast<off_t>(size)) != 0) return errno_error("truncate " + path_, errno);
    return {};
  }

  Result<std::uint64_t> size() const override {
    Use use(*this);
    TRY(use.opened);
    struct stat st {};
    if (::fstat(fd_.get(), &st) != 0) return errno_error("stat " + path_, errno);
    return static_cast<std::uint64_t>(st.st_size);
  }

  Result<Mapping> map_shared(std::size_t length) override {
    Use use(*this);
    TRY(use.opened);
    const int protection = writable_ ? PROT_READ | PROT_WRITE : PROT_READ;
    void* address = ::mmap(nullptr, length, protection, MAP_SHARED, fd_.get(), 0);
    if (address == MAP_FAILED) return errno_error("mmap " + path_, errno);
    return Mapping(address, length);
  }

  void changed_through_mapping() override { ++changes_; }

  int fd() const override {
    // In use from here on.
    if (!pinned_.exchange(true) && self().acquire().has_error()) pinned_ = false;
    return fd_.get();
  }
  const std::string& path() const override { return path_; }

 private:
  friend class FilePool;
  struct Use {
    explicit Use(const RealFile& f) : file(f.self()), opened(file.acquire()) {}
    ~Use() {
      if (!opened.has_error()) file.release();
    }
    Use(const Use&) = delete;
    Use& operator=(const Use&) = delete;
    RealFile& file;
    Result<void> opened;
  };
  /// A change counts when it is done: a sync that begins meanwhile does not cover it.
  struct Counted {
    explicit Counted(RealFile& f) : file(f) {}
    ~Counted() { ++file.changes_; }
    RealFile& file;
  };
  RealFile& self() const { return const_cast<RealFile&>(*this); }

  void note_synced(std::uint64_t covered) {
    std::uint64_t known = synced_.load();
    while (known < covered && !synced_.compare_exchange_weak(known, covered)) {
    }
  }
  bool dirty() const { return sync_failed_ || synced_.load() < changes_.load(); }

  Result<void> open_resource() override {
    UniqueFd fd(::open(path_.c_str(), O_CLOEXEC | O_NOFOLLOW | (writable_ ? O_RDWR : O_RDONLY)));
    if (!fd) return errno_error("open " + path_, errno);
    if (identity_of(fd.get(), "", AT_EMPTY_PATH) != identity_)
      return make_error(Errc::not_found, path_ + " is another file than the one that was open here");
    fd_ = std::move(fd);
    return {};
  }

  bool close_resource() override {
    if (dirty()) return false;
    identity_ = identity_of(fd_.get(), "", AT_EMPTY_PATH);
    if (!identity_ || identity_of(AT_FDCWD, path_.c_str(), AT_SYMLINK_NOFOLLOW) != identity_) return false;
    fd_.reset();
    return true;
  }

  UniqueFd fd_;
  const std::string path_;
  const bool writable_;
  std::optional<Identity> identity_;  ///< while it is closed
  mutable std::atomic<bool> pinned_{false};
  std::atomic<bool> sync_failed_{false};
  // How often it was changed, and how many of those changes are known to be on disk.
  std::atomic<std::uint64_t> changes_{0};
  std::atomic<std::uint64_t> synced_{0};
  std::uint64_t settling_ = 0;  ///< the pool's mutex: changes_ before the sync of everything that is under way
};

// Hundreds of files wait for somebody to sync them one by one: the whole file system is synced at once.
bool FilePool::make_closable() {
  if (!settling_.try_lock()) return false;  // somebody is at it
  bool done = false;
  if (std::chrono::steady_clock::now() - failed_at_ > kAfterFailure) {
    std::map<dev_t, std::pair<std::size_t, UniqueFd>> devices;
    for_each_open([&](PooledResource& member) {
      auto& file = static_cast<RealFile&>(member);
      file.settling_ = 0;
      struct stat st {};
      if (!file.dirty() || file.sync_failed_ || ::fstat(file.fd_.get(), &st) != 0) return;
      file.settling_ = file.changes_.load();
      auto& [count, fd] = devices[st.st_dev];
      if (++count == 1) fd = UniqueFd(::fcntl(file.fd_.get(), F_DUPFD_CLOEXEC, 0));
    });
    const auto most = std::max_element(devices.begin(), devices.end(),
                                       [](const auto& a, const auto& b) { return a.second.first < b.second.first; });
    if (most != devices.end() && most->second.second) {
      if (::syncfs(most->second.second.get()) == 0) {
        for_each_open([&, device = most->first](PooledResource& member) {
          auto& file = static_cast<RealFile&>(member);
          struct stat st {};
          if (file.settling_ == 0 || ::fstat(file.fd_.get(), &st) != 0 || st.st_dev != device) return;
          file.note_synced(file.settling_);
        });
        done = true;
      } else {
        // Each file's own sync will tell which one it was.
        LOG_WARN("syncing the file system of the data directory: errno {}", errno);
        failed_at_ = std::chrono::steady_clock::now();
      }
    }
  }
  settling_.unlock();
  return done;
}

}  // namespace

std::unique_ptr<File> make_real_file(UniqueFd fd, std::string path, bool writable) {
  return std::make_unique<RealFile>(std::move(fd), std::move(path), writable);
}

void set_open_file_limit(std::size_t limit) { file_pool().set_limit(limit); }

std::size_t open_file_count() { return file_pool().open_count(); }

}  // namespace sluice
