#include "fuse/capture/recovery.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/log.h"
#include "storage/sqlite/database_header.h"

namespace sluice::fuse {
namespace {

constexpr std::string_view kCleanStopFile = "/clean-stop";
constexpr auto kOrphanWait = std::chrono::seconds(5);

using Visitor = FunctionRef<Result<void>(const std::string& relative)>;

Result<void> walk(storage::Store& store, const std::string& relative, Visitor visit) {
  const std::string directory = relative.empty() ? store.fs_dir() : store.fs_dir() + "/" + relative;
  TRY_ASSIGN(const auto entries, store.fs().list(directory));
  for (const DirEntry& entry : entries) {
    const std::string path = relative.empty() ? entry.name : relative + "/" + entry.name;
    if (entry.is_directory) {
      TRY(walk(store, path, visit));
    } else {
      TRY(visit(path));
    }
  }
  return {};
}

// A write lease is granted only while nobody else has the file open, not even mapped.
bool held_by_others(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd) return false;
  if (::fcntl(fd.get(), F_SETLEASE, F_WRLCK) == 0) {
    ::fcntl(fd.get(), F_SETLEASE, F_UNLCK);
    return false;
  }
  return errno == EAGAIN || errno == EBUSY;
}

std::string stamp(const std::string& path) {
  std::string text;
  for (const char* suffix : {"", "-wal", "-journal"}) {
    struct stat st {};
    if (::lstat((path + suffix).c_str(), &st) != 0) {
      text += "- ";
      continue;
    }
    text += fmt::format("{}:{}:{}.{} ", st.st_ino, st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec);
  }
  return text;
}

}  // namespace

Result<void> refuse_orphans(storage::Store& store) {
  std::vector<std::string> files;
  TRY(walk(store, "", [&](const std::string& path) -> Result<void> {
    if (path.ends_with("-wal") || path.ends_with("-shm")) files.push_back(path);
    return {};
  }));
  const MonotonicTime deadline = system_clock().now() + kOrphanWait;
  auto pause = std::chrono::milliseconds(10);
  for (const std::string& path : files) {
    while (held_by_others(store.backing_path(path))) {
      if (system_clock().now() > deadline) {
        return make_error(Errc::in_use, store.backing_path(path) +
                                            " is still open in a process that used an earlier mount of this data directory; "
                                            "stop that process (fuser -v FILE names it, or lsof +D of the old mount point if it has its working "
                                            "directory there) and start again");
      }
      std::this_thread::sleep_until(std::chrono::steady_clock::now() + pause);
      pause = std::min(pause * 2, std::chrono::milliseconds(200));
    }
  }
  return {};
}

Result<std::vector<std::string>> find_database_files(storage::Store& store) {
  std::vector<std::string> names;
  TRY(walk(store, "", [&](const std::string& path) -> Result<void> {
    struct stat st {};
    if (::lstat(store.backing_path(path).c_str(), &st) != 0 || !S_ISREG(st.st_mode)) return {};
    TRY_ASSIGN(const auto file, store.fs().open(store.backing_path(path), {}));
    std::array<std::byte, sqlite::kMagic.size()> magic{};
    TRY_ASSIGN(const std::size_t n, file->read_at(0, magic));
    if (sqlite::looks_like_database(ByteView(magic).first(n))) names.push_back(path);
    return {};
  }));
  return names;
}

// After a loss of power nothing but a comparison tells what the files have: with synchronous=OFF any page can be an old one, and
// with any other setting a WAL can have lost what the log has.
std::string_view CleanStop::doubt(storage::Store& store, const std::string& name) const {
  if (!was_clean_) {
    return store.machine_restarted() ? "the machine was restarted before this node was stopped" : std::string_view();
  }
  const auto it = stamps_.find(storage::escape_name(name));
  const bool same = it != stamps_.end() && it->second == stamp(store.backing_path(name));
  return same ? std::string_view() : "its files are not those the node left";
}

CleanStop take_clean_stop(storage::Store& store) {
  CleanStop clean;
  const std::string path = store.data_dir() + std::string(kCleanStopFile);
  const auto content = read_file(store.fs(), path, 256u << 20);
  if (content.has_error()) return clean;
  clean.was_clean_ = true;
  std::string_view text = as_text(*content);
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    const std::size_t tab = line.find('\t');
    if (tab != std::string_view::npos) clean.stamps_[std::string(line.substr(0, tab))] = std::string(line.substr(tab + 1));
    text = end == std::string_view::npos ? std::string_view() : text.substr(end + 1);
  }
  Result<void> removed = store.fs().unlink(path);
  if (!removed.has_error()) removed = store.fs().sync_directory(store.data_dir());
  if (removed.has_error()) {
    LOG_WARN("{}", removed.error().message);
    clean.stamps_.clear();  // never trusted twice
  }
  return clean;
}

Result<void> note_clean_stop(storage::Store& store) {
  std::string text;
  for (const auto& database : store.list()) {
    text += storage::escape_name(database->name()) + "\t" + stamp(store.backing_path(database->name())) + "\n";
  }
  return write_file_atomically(store.fs(), store.data_dir() + std::string(kCleanStopFile), as_bytes(text));
}

}  // namespace sluice::fuse
