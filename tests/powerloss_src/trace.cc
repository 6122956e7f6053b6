#include "tests/powerloss_src/trace.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

namespace sluice::powerloss {
namespace {

constexpr std::size_t kPiece = 512;

Bytes content_of(int fd) {
  struct stat st {};
  if (::fstat(fd, &st) != 0) std::abort();
  Bytes content(static_cast<std::size_t>(st.st_size));
  for (std::size_t done = 0; done < content.size();) {
    const ssize_t n = ::pread(fd, content.data() + done, content.size() - done, static_cast<off_t>(done));
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  return content;
}

}  // namespace

Recorder& Recorder::instance() {
  static Recorder recorder;
  return recorder;
}

void Recorder::start(const std::string& root) {
  const std::lock_guard lock(mutex_);
  root_ = root;
  ops_.clear();
  numbers_.clear();
  shared_memory_.clear();
  struct stat st {};
  if (::stat(root.c_str(), &st) != 0) std::abort();
  (void)number_of(st.st_dev, st.st_ino, true);
  on_ = true;
}

std::vector<Op> Recorder::stop() {
  const std::lock_guard lock(mutex_);
  look_at_mappings();
  on_ = false;
  for (auto& [file, mapping] : mapped_) ::close(mapping.fd);
  mapped_.clear();
  return std::move(ops_);
}

bool Recorder::note(int number) {
  const std::lock_guard lock(mutex_);
  if (!on_) return false;
  look_at_mappings();
  Op op;
  op.kind = OpKind::note;
  op.note = number;
  add(std::move(op));
  return true;
}

std::size_t Recorder::size() {
  const std::lock_guard lock(mutex_);
  return ops_.size();
}

bool Recorder::watches(const char* path) const {
  return on_ && std::strncmp(path, root_.c_str(), root_.size()) == 0 && (path[root_.size()] == '/' || path[root_.size()] == 0);
}

int Recorder::number_of(dev_t device, ino_t inode, bool add_it) {
  const auto found = numbers_.find({device, inode});
  if (found != numbers_.end()) return found->second;
  if (!add_it) return -1;
  const int number = static_cast<int>(numbers_.size());
  numbers_[{device, inode}] = number;
  return number;
}

int Recorder::number_of_fd(int fd, bool* directory) {
  struct stat st {};
  if (!on_ || ::fstat(fd, &st) != 0) return -1;
  if (directory != nullptr) *directory = S_ISDIR(st.st_mode);
  if (!S_ISREG(st.st_mode) && !S_ISDIR(st.st_mode)) return -1;
  return number_of(st.st_dev, st.st_ino, false);
}

int Recorder::parent_of(const char* path, std::string& name) {
  const std::string text(path);
  const std::size_t slash = text.rfind('/');
  name = text.substr(slash + 1);
  struct stat st {};
  if (::stat(text.substr(0, slash).c_str(), &st) != 0) return -1;
  return number_of(st.st_dev, st.st_ino, true);
}

int Recorder::file_at(const char* path) {
  struct stat st {};
  if (::lstat(path, &st) != 0) return -1;
  return number_of(st.st_dev, st.st_ino, true);
}

void Recorder::opened(const char* path, int fd, bool created, bool truncated_it) {
  if (created) {
    struct stat st {};
    if (::fstat(fd, &st) != 0) std::abort();
    look_at_mappings();
    Op op;
    op.kind = OpKind::create;
    op.file = number_of(st.st_dev, st.st_ino, true);
    op.directory = parent_of(path, op.name);
    if (op.name.ends_with("-shm")) shared_memory_[op.file] = true;
    add(std::move(op));
  } else if (truncated_it) {
    truncated(fd, 0);
  }
}

void Recorder::written(int fd, std::uint64_t offset, const void* data, std::size_t n) {
  const int file = number_of_fd(fd);
  if (file < 0 || shared_memory_.contains(file)) return;
  const auto mapping = mapped_.find(file);
  if (mapping != mapped_.end()) {
    look_at_mappings();  // finds this write, too
    return;
  }
  look_at_mappings();
  Op op;
  op.kind = OpKind::write;
  op.file = file;
  op.offset = offset;
  const auto* bytes = static_cast<const std::byte*>(data);
  op.data.assign(bytes, bytes + n);
  add(std::move(op));
}

void Recorder::truncated(int fd, std::uint64_t size) {
  const int file = number_of_fd(fd);
  if (file < 0 || shared_memory_.contains(file)) return;
  const auto mapping = mapped_.find(file);
  if (mapping != mapped_.end()) mapping->second.known.resize(static_cast<std::size_t>(size));
  look_at_mappings();
  Op op;
  op.kind = OpKind::truncate;
  op.file = file;
  op.offset = size;
  add(std::move(op));
}

void Recorder::before_sync(int fd) {
  if (number_of_fd(fd) >= 0) look_at_mappings();
}

void Recorder::synced(int fd) {
  bool directory = false;
  const int file = number_of_fd(fd, &directory);
  if (file < 0) return;
  Op op;
  op.kind = directory ? OpKind::sync_directory : OpKind::sync;
  op.file = file;
  add(std::move(op));
}

void Recorder::made_directory(const char* path) {
  look_at_mappings();
  Op op;
  op.kind = OpKind::make_directory;
  op.directory = parent_of(path, op.name);
  op.file = file_at(path);
  add(std::move(op));
}

void Recorder::removed(const char* path, int file, bool directory) {
  look_at_mappings();
  Op op;
  op.kind = directory ? OpKind::remove_directory : OpKind::unlink;
  op.file = file;
  op.directory = parent_of(path, op.name);
  add(std::move(op));
}

void Recorder::renamed(const char* from, const char* to, int file) {
  look_at_mappings();
  Op op;
  op.kind = OpKind::rename;
  op.file = file;
  op.directory = parent_of(from, op.name);
  op.to_directory = parent_of(to, op.to_name);
  add(std::move(op));
}

void Recorder::mapped(int fd) {
  const int file = number_of_fd(fd);
  if (file < 0 || shared_memory_.contains(file) || mapped_.contains(file)) return;
  const int copy = real_open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC, 0);
  if (copy < 0) std::abort();
  mapped_[file] = {copy, content_of(copy)};
}

void Recorder::look_at_mappings() {
  for (auto& [file, mapping] : mapped_) {
    const Bytes now = content_of(mapping.fd);
    Bytes& known = mapping.known;
    if (now == known) continue;
    if (now.size() != known.size()) known.resize(now.size());
    for (std::size_t at = 0; at < now.size(); at += kPiece) {
      const std::size_t n = std::min(kPiece, now.size() - at);
      if (std::memcmp(now.data() + at, known.data() + at, n) == 0) continue;
      Op op;
      op.kind = OpKind::write;
      op.file = file;
      op.offset = at;
      op.data.assign(now.data() + at, now.data() + at + n);
      add(std::move(op));
    }
    known = now;
  }
}

}  // namespace sluice::powerloss
