#include "fuse/orphans/orphan_fence.h"

#include <sys/stat.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <optional>
#include <set>
#include <string_view>
#include <thread>

#include "base/log.h"
#include "fuse/capture/recovery.h"
#include "fuse/orphans/fenced_files.h"

namespace sluice::fuse {
namespace {

constexpr auto kRetry = std::chrono::milliseconds(20);
// How long a commit may take from its last frame to its publication; what is slower is poisoned at the next sweep.
constexpr auto kPublishing = std::chrono::milliseconds(50);
constexpr std::uint64_t kMaxRefusedFile = 64u << 20;

void pause(std::chrono::milliseconds time) { std::this_thread::sleep_until(std::chrono::steady_clock::now() + time); }

/// Path of the database that a -wal or -shm belongs to, by its name.
std::optional<std::string> base_of(const std::string& path) {
  constexpr std::size_t kSuffix = 4;
  const bool side = path.size() > kSuffix && (path.ends_with("-wal") || path.ends_with("-shm"));
  return side ? std::optional(path.substr(0, path.size() - kSuffix)) : std::nullopt;
}

// The node that died had the database file open itself, and may be slow to go.
bool stays_written(const std::string& path, MonotonicTime deadline) {
  while (is_written_directly(path)) {
    if (system_clock().now() > deadline) return true;
    pause(kRetry);
  }
  return false;
}

Result<std::vector<std::string>> find_held(storage::Store& store, std::chrono::milliseconds ending) {
  std::vector<std::string> held;
  TRY(walk_files(store, [&](const std::string& path) -> Result<void> {
    if (base_of(path) && is_held(store.backing_path(path))) held.push_back(path);
    return boost::system::in_place_value;
  }));
  const MonotonicTime deadline = system_clock().now() + ending;
  while (!held.empty() && system_clock().now() < deadline) {
    pause(kRetry);
    std::erase_if(held, [&](const std::string& path) { return !is_held(store.backing_path(path)); });
  }
  return held;
}

void add_new(std::vector<Holder>& known, const std::vector<Holder>& more) {
  for (const Holder& h : more)
    if (std::none_of(known.begin(), known.end(), [&](const Holder& k) { return k.pid == h.pid; })) known.push_back(h);
}

struct FencedDirectory {
  std::string name;
  std::string path;
  unsigned number = 0;
};

/// DATA/fenced/<escaped name>.<number>, ordered by name and number.
Result<std::vector<FencedDirectory>> list_fenced(storage::Store& store) {
  std::vector<FencedDirectory> found;
  const std::string root = OrphanFence::directory(store);
  TRY_ASSIGN(const bool exists, store.fs().exists(root));
  if (!exists) return found;
  TRY_ASSIGN(const auto entries, store.fs().list(root));
  for (const DirEntry& entry : entries) {
    const std::size_t dot = entry.name.rfind('.');
    FencedDirectory one;
    const char* const end = entry.name.data() + entry.name.size();
    if (!entry.is_directory || dot == std::string::npos ||
        std::from_chars(entry.name.data() + dot + 1, end, one.number).ptr != end)
      continue;
    const auto name = storage::unescape_name(entry.name.substr(0, dot));
    if (name.has_error()) continue;
    one.name = *name;
    one.path = root + "/" + entry.name;
    found.push_back(std::move(one));
  }
  std::sort(found.begin(), found.end(), [](const FencedDirectory& a, const FencedDirectory& b) {
    return a.name != b.name ? a.name < b.name : a.number < b.number;
  });
  return found;
}

class Run {
 public:
  Run(storage::Store& store, std::chrono::milliseconds ending, std::map<std::string, Error>& refused)
      : store_(store), ending_(ending), refused_(refused), immutable_(can_be_immutable(store.fs_dir())) {}

  /// What earlier starts left unfinished.
  Result<void> resume() {
    TRY_ASSIGN(const auto directories, list_fenced(store_));
    for (const FencedDirectory& d : directories) {
      next_number_[d.name] = d.number + 1;
      FencedFiles files(store_, d.name, d.path, immutable_.has_value());
      TRY_ASSIGN(const bool done, files.is_done());
      if (done) continue;
      // The earlier start could stop them, this one cannot.
      if (immutable_.has_error() && !is_disposable(d.name) && files.held()) {
        refuse(d.name, cannot_fence(d.name, find_users(files.identities())));
        continue;
      }
      LOG_INFO("{}: an earlier start died while it fenced off processes; going on with that", d.name);
      begin(std::move(files));
    }
    finish_all();
    return boost::system::in_place_value;
  }

  Result<void> fence() {
    TRY_ASSIGN(const auto held, find_held(store_, ending_));
    std::set<std::string> names;
    for (const std::string& path : held) names.insert(*base_of(path));
    ended_ = system_clock().now() + ending_;
    for (const std::string& name : names) {
      if (refused_.contains(name)) continue;
      if (auto error = why_not(name)) {
        refuse(name, std::move(*error));
        continue;
      }
      const std::string number = std::to_string(next_number_.try_emplace(name, 1u).first->second++);
      const std::string directory = OrphanFence::directory(store_) + "/" + storage::escape_name(name) + "." + number;
      begin(FencedFiles(store_, name, directory, immutable_.has_value()));
    }
    finish_all();
    return boost::system::in_place_value;
  }

 private:
  /// On a replica the log has everything; a WAL there is only a way to readers.
  bool is_disposable(const std::string& name) const {
    return store_.last_role() == storage::Role::replica && store_.find(name) != nullptr;
  }

  std::optional<Error> why_not(const std::string& name) const {
    if (storage::escape_name(name).size() > kMaxEscapedName) return make_error(Errc::too_large, name + ": its name is too long");
    const bool direct = stays_written(store_.backing_path(name), ended_);
    const bool no_fence = immutable_.has_error() && !is_disposable(name);
    if (!direct && !no_fence) return std::nullopt;
    const std::vector<Holder> holders = users(name);
    if (!direct) return cannot_fence(name, holders);
    return make_error(Errc::in_use, fmt::format("{} is open for writing in {} itself by {}; end it and restart the node", name,
                                                store_.fs_dir(), to_string(holders)));
  }

  Error cannot_fence(const std::string& name, const std::vector<Holder>& holders) const {
    return make_error(Errc::in_use,
                      fmt::format("{} is still open from an earlier mount in {}, which cannot be fenced off: {}; end the process "
                                  "and restart the node",
                                  name, to_string(holders), immutable_.error().message));
  }

  std::vector<Holder> users(const std::string& name) const {
    std::vector<FileIdentity> files;
    const std::string base = name.substr(name.rfind('/') + 1);
    for (const char* suffix : {"", "-wal", "-shm"}) {
      struct stat st {};
      if (::lstat((store_.backing_path(name) + suffix).c_str(), &st) == 0) files.push_back({base + suffix, st.st_ino});
    }
    return find_users(files);
  }

  static std::vector<Holder> find_users(const std::vector<FileIdentity>& files) {
    std::vector<Holder> holders;
    for (const auto& list : find_holders(files)) add_new(holders, list);
    return holders;
  }

  void refuse(const std::string& name, Error error) {
    LOG_ERROR("{}: not served: {}", name, error.message);
    refused_.insert_or_assign(name, std::move(error));
  }

  void begin(FencedFiles files) {
    Result<void> begun = files.take_aside();
    if (begun.has_value()) begun = files.stop_orphans();
    if (begun.has_error())
      refuse(files.name(), begun.error());
    else
      begun_.push_back(std::move(files));
  }

  void finish_all() {
    if (!begun_.empty()) pause(kPublishing);
    for (FencedFiles& files : begun_) {
      Result<void> finished = files.replace();
      if (finished.has_value()) finished = files.finish();
      if (finished.has_error())
        refuse(files.name(), finished.error());
      else
        LOG_INFO("{}: fenced; {} frames of its WAL are kept", files.name(), files.kept_frames());
    }
    begun_.clear();
  }

  static constexpr std::size_t kMaxEscapedName = 220;
  storage::Store& store_;
  const std::chrono::milliseconds ending_;
  MonotonicTime ended_{};  ///< all that was to end has ended
  std::map<std::string, Error>& refused_;
  const Result<void> immutable_;
  std::map<std::string, unsigned> next_number_;
  std::vector<FencedFiles> begun_;
};

}  // namespace

Result<void> OrphanFence::run() {
  Run run(store_, std::chrono::milliseconds(ending_ms_), refused_);
  TRY(run.resume());
  sweep();
  TRY(run.fence());
  sweep();
  TRY(save_refused());
  MutexLock lock(mutex_);
  for (const auto& [name, holders] : orphans_)
    LOG_WARN("{}: {} still used a mount that is gone: cut off (SQLITE_CANTOPEN), it must connect again", name, to_string(holders));
  return boost::system::in_place_value;
}

Result<void> OrphanFence::resume() {
  TRY(load_refused());
  for (const auto& [name, error] : refused_) LOG_ERROR("{}: still not served: {}", name, error.message);
  sweep();
  return boost::system::in_place_value;
}

// Whoever takes the mount over cannot tell orphans from clients any more.
Result<void> OrphanFence::save_refused() const {
  const std::string path = directory(store_) + "/refused";
  FileSystem& fs = store_.fs();
  if (refused_.empty()) {
    TRY_ASSIGN(const bool there, fs.exists(path));
    return there ? fs.unlink(path) : Result<void>();
  }
  std::string text;
  for (const auto& [name, error] : refused_) text += name + '\0' + error.message + '\0';
  TRY(fs.make_directories(directory(store_)));
  return write_file_atomically(fs, path, as_bytes(text));
}

Result<void> OrphanFence::load_refused() {
  const auto content = read_file(store_.fs(), directory(store_) + "/refused", kMaxRefusedFile);
  if (content.has_error()) return content.error().code == Errc::not_found ? Result<void>() : Result<void>(content.error());
  std::string_view text = as_text(*content);
  const auto next = [&text] {
    const std::string_view field = text.substr(0, text.find('\0'));
    text.remove_prefix(std::min(text.size(), field.size() + 1));
    return std::string(field);
  };
  while (!text.empty()) {
    std::string name = next();
    refused_.insert_or_assign(std::move(name), make_error(Errc::in_use, next()));
  }
  return boost::system::in_place_value;
}

void OrphanFence::sweep() {
  const auto directories = list_fenced(store_);
  if (directories.has_error()) {
    LOG_WARN("{}", directories.error().message);
    return;
  }
  std::map<std::string, std::vector<Holder>> orphans;
  std::vector<FileIdentity> identities;
  std::vector<std::string> owners;
  for (const FencedDirectory& d : *directories) {
    FencedFiles files(store_, d.name, d.path, true);
    const auto done = files.is_done();
    if (done.has_error() || !*done) continue;
    if (files.held()) {
      const Result<void> poisoned = files.poison();
      if (poisoned.has_error()) LOG_WARN("{}: {}", d.name, poisoned.error().message);
      for (FileIdentity& identity : files.identities()) {
        identities.push_back(std::move(identity));
        owners.push_back(d.name);
      }
      orphans[d.name];
      continue;
    }
    const Result<void> removed = files.remove();
    if (removed.has_error())
      LOG_WARN("{}: {}", d.name, removed.error().message);
    else
      LOG_INFO("{}: the processes that were fenced off have ended", d.name);
  }
  const auto found = find_holders(identities);
  for (std::size_t i = 0; i < found.size(); ++i) add_new(orphans[owners[i]], found[i]);
  MutexLock lock(mutex_);
  orphans_ = std::move(orphans);
}

std::map<std::string, std::vector<Holder>> OrphanFence::orphans() const {
  MutexLock lock(mutex_);
  return orphans_;
}

}  // namespace sluice::fuse
