#include "storage/apply/placement.h"

#include <sys/stat.h>

#include <vector>

#include "base/log.h"
#include "storage/apply/fresh_wal.h"
#include "storage/apply/io.h"

namespace sluice::storage::apply {
namespace {

constexpr const char* kBeside[] = {"-wal", "-shm", "-journal"};

bool is_directory(const std::string& path) {
  struct stat st {};
  return ::stat(path.c_str(), &st) == 0 && S_ISDIR(st.st_mode);
}

Result<void> write_fresh_wal(FileSystem& fs, const std::string& path, const std::string& model,
                             std::uint32_t page_size) {
  TRY_ASSIGN(const auto wal, fs.open(path, {.write = true, .create = true}));
  TRY(wal->truncate(0));
  TRY(wal->write_at(0, make_fresh_wal_header(page_size, 0).bytes));
  inherit_owner(wal->fd(), model, 0666);
  return {};
}

}  // namespace

void Placement::forget(const std::string& path) const {
  if (access != nullptr) access->invalidate_entry(path);
}

Result<void> Placement::unlink_if_there(const std::string& path) const {
  const Result<void> removed = store.fs().unlink(path);
  if (removed.has_error() && removed.error().code != Errc::not_found) return removed;
  return {};
}

Result<void> Placement::put(const std::string& name, const std::string& image, std::uint32_t page_size) const {
  FileSystem& fs = store.fs();
  TRY(clear_way(name));
  const std::string path = store.backing_path(name);
  const std::string parent = parent_directory(path);
  {
    TRY_ASSIGN(const auto file, fs.open(image, {.write = true}));
    inherit_owner(file->fd(), parent, 0666);
  }
  const std::string wal = store.tmp_dir() + "/" + escape_name(name) + ".wal";
  TRY(write_fresh_wal(fs, wal, image, page_size));
  TRY(unlink_if_there(path + "-shm"));
  forget(name + "-shm");
  TRY(fs.rename(wal, path + "-wal"));
  TRY(fs.rename(image, path));
  forget(name + "-wal");
  forget(name);
  return fs.sync_directory(parent);
}

/// Makes the directories of `name` and moves away what is in the way of them and of the database itself.
Result<void> Placement::clear_way(const std::string& name) const {
  FileSystem& fs = store.fs();
  for (std::size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1)) {
    const std::string directory = name.substr(0, slash);
    TRY_ASSIGN(const bool exists, fs.exists(store.backing_path(directory)));
    if (exists && is_directory(store.backing_path(directory))) continue;
    if (exists) {
      TRY_ASSIGN(const std::string moved, set_aside(directory, "local"));
      LOG_WARN("{} was a local file where the primary has a directory: moved to {}", directory, moved);
    }
    TRY(fs.make_directories(store.backing_path(directory)));
    TRY(fs.sync_directory(parent_directory(store.backing_path(directory))));
    forget(directory);
  }
  TRY_ASSIGN(const bool exists, fs.exists(store.backing_path(name)));
  TRY_ASSIGN(const bool journal, fs.exists(store.backing_path(name) + "-journal"));
  if (exists || journal) {
    TRY_ASSIGN(const std::string moved, set_aside(name, "local"));
    LOG_WARN("{} was a local file where the primary has a database: moved to {}", name, moved);
  }
  return {};
}

Result<void> Placement::remove(const std::string& name) const {
  const std::string path = store.backing_path(name);
  TRY(unlink_if_there(path));
  forget(name);
  for (const char* suffix : {"-wal", "-shm"}) {
    TRY(unlink_if_there(path + suffix));
    forget(name + suffix);
  }
  TRY_ASSIGN(const bool parent, store.fs().exists(parent_directory(path)));
  return parent ? store.fs().sync_directory(parent_directory(path)) : Result<void>();
}

Result<std::string> Placement::make_directory(const std::string& name, const std::string& tag) const {
  const std::string prefix = store.lost_found_dir() + "/" + escape_name(name) + "-" + tag + "-";
  for (unsigned n = 1;; ++n) {
    const std::string directory = prefix + std::to_string(n);
    TRY_ASSIGN(const bool taken, store.fs().exists(directory));
    if (taken) continue;
    TRY(store.fs().make_directories(directory));
    TRY(store.fs().sync_directory(store.lost_found_dir()));
    return directory;
  }
}

Result<std::string> Placement::set_aside(const std::string& name, const std::string& tag) const {
  FileSystem& fs = store.fs();
  std::vector<std::string> files;
  for (const std::string& file : {name, name + kBeside[0], name + kBeside[1], name + kBeside[2]}) {
    TRY_ASSIGN(const bool exists, fs.exists(store.backing_path(file)));
    if (exists) files.push_back(file);
  }
  if (files.empty()) return std::string();
  TRY_ASSIGN(const std::string directory, make_directory(name, tag));
  for (const std::string& file : files) {
    const std::string from = store.backing_path(file);
    TRY(fs.rename(from, directory + "/" + from.substr(from.rfind('/') + 1)));
    forget(file);
  }
  TRY(fs.sync_directory(directory));
  TRY(fs.sync_directory(parent_directory(store.backing_path(name))));
  return directory;
}

Result<void> Placement::drop_wal_index(const std::string& name) const {
  TRY(unlink_if_there(store.backing_path(name) + "-shm"));
  forget(name + "-shm");
  return {};
}

Result<void> Placement::reset_wal(const std::string& name, std::uint32_t page_size) const {
  TRY(drop_wal_index(name));
  return reset_wal_only(name, page_size);
}

Result<void> Placement::empty_wal_index(const std::string& name) const {
  const std::string path = store.backing_path(name) + "-shm";
  auto shm = store.fs().open(path, {.write = true});
  if (shm.has_value()) {
    TRY_ASSIGN(const std::uint64_t size, (*shm)->size());
    return size == 0 ? Result<void>() : (*shm)->truncate(0);
  }
  if (shm.error().code != Errc::not_found) return std::move(shm).error();
  TRY_ASSIGN(const auto made, store.fs().open(path, {.write = true, .create = true}));
  inherit_owner(made->fd(), store.backing_path(name), 0666);
  forget(name + "-shm");
  return {};
}

Result<void> Placement::reset_wal_only(const std::string& name, std::uint32_t page_size) const {
  const std::string path = store.backing_path(name);
  const std::string wal = store.tmp_dir() + "/" + escape_name(name) + ".wal";
  TRY(write_fresh_wal(store.fs(), wal, path, page_size));
  TRY(store.fs().rename(wal, path + "-wal"));
  forget(name + "-wal");
  return {};
}

}  // namespace sluice::storage::apply
