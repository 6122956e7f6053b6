#include "tests/support/fault_fs.h"

#include <algorithm>
#include <cerrno>

namespace sluice::test {
namespace {

constexpr std::size_t kSector = 512;

void apply_write(Bytes& content, std::uint64_t offset, ByteView data) {
  const auto end = static_cast<std::size_t>(offset) + data.size();
  if (content.size() < end) content.resize(end);
  std::copy(data.begin(), data.end(), content.begin() + static_cast<std::ptrdiff_t>(offset));
}

}  // namespace

class FaultFile final : public File {
 public:
  FaultFile(FaultFileSystem& fs, std::unique_ptr<File> base,
            std::shared_ptr<FaultFileSystem::Volatile> tracked)
      : fs_(fs), base_(std::move(base)), volatile_(std::move(tracked)) {}

  Result<std::size_t> read_at(std::uint64_t offset, ByteSpan out) const override {
    TRY(fs_.enter(FileOp::read, path(), false));
    return base_->read_at(offset, out);
  }

  Result<void> write_at(std::uint64_t offset, ByteView data) override {
    auto allowed = fs_.enter(FileOp::write, path(), true);
    if (allowed.has_error()) data = data.first(data.size() / 2);
    {
      MutexLock lock(fs_.mutex_);
      if (volatile_) volatile_->changes.push_back({false, offset, Bytes(data.begin(), data.end())});
    }
    TRY(base_->write_at(offset, data));
    return allowed;
  }

  Result<void> sync_data() override {
    std::function<void()> hook;
    {
      MutexLock lock(fs_.mutex_);
      hook = fs_.on_sync_;
    }
    if (hook) hook();
    TRY(fs_.enter(FileOp::sync, path(), true));
    // What is written from here on is not covered.
    MutexLock lock(fs_.mutex_);
    if (!volatile_) return {};
    for (const auto& change : volatile_->changes) {
      if (change.truncate) {
        volatile_->synced.resize(static_cast<std::size_t>(change.offset));
      } else {
        apply_write(volatile_->synced, change.offset, change.data);
      }
    }
    volatile_->changes.clear();
    return {};
  }

  Result<void> truncate(std::uint64_t size) override {
    TRY(fs_.enter(FileOp::truncate, path(), true));
    {
      MutexLock lock(fs_.mutex_);
      if (volatile_) volatile_->changes.push_back({true, size, {}});
    }
    return base_->truncate(size);
  }

  Result<std::uint64_t> size() const override { return base_->size(); }
  Result<Mapping> map_shared(std::size_t length) override {
    TRY(fs_.enter(FileOp::map, path(), false));
    return base_->map_shared(length);
  }
  int fd() const override { return base_->fd(); }
  const std::string& path() const override { return base_->path(); }

 private:
  FaultFileSystem& fs_;
  std::unique_ptr<File> base_;
  std::shared_ptr<FaultFileSystem::Volatile> volatile_;
};

void FaultFileSystem::fail(FileOp op, int n, int err, bool forever) {
  MutexLock lock(mutex_);
  faults_.push_back({op, counts_[op] + n, err, forever});
}

void FaultFileSystem::fail_changes_from(int n) {
  MutexLock lock(mutex_);
  fail_changes_at_ = changes_ + n;
}

void FaultFileSystem::heal() {
  MutexLock lock(mutex_);
  faults_.clear();
  fail_changes_at_ = 0;
}

void FaultFileSystem::on_sync(std::function<void()> hook) {
  MutexLock lock(mutex_);
  on_sync_ = std::move(hook);
}

void FaultFileSystem::on_change(std::function<void()> hook) {
  MutexLock lock(mutex_);
  on_change_ = std::move(hook);
}

int FaultFileSystem::count(FileOp op) const {
  MutexLock lock(mutex_);
  const auto it = counts_.find(op);
  return it == counts_.end() ? 0 : it->second;
}

int FaultFileSystem::changes() const {
  MutexLock lock(mutex_);
  return changes_;
}

Result<void> FaultFileSystem::enter(FileOp op, const std::string& path, bool changes_something) {
  std::function<void()> hook;
  {
    MutexLock lock(mutex_);
    if (changes_something) hook = on_change_;
  }
  if (hook) hook();
  MutexLock lock(mutex_);
  const int now = ++counts_[op];
  if (changes_something) ++changes_;
  if (changes_something && fail_changes_at_ != 0 && changes_ >= fail_changes_at_) {
    return errno_error("injected fault on " + path, EIO);
  }
  for (const Fault& fault : faults_) {
    if (fault.op == op && (now == fault.at || (fault.forever && now > fault.at))) {
      return errno_error("injected fault on " + path, fault.err);
    }
  }
  return {};
}

std::shared_ptr<FaultFileSystem::Volatile> FaultFileSystem::track(const std::string& path) {
  MutexLock lock(mutex_);
  auto& tracked = volatile_[path];
  if (!tracked) {
    tracked = std::make_shared<Volatile>();
    // What was there before this object saw the file counts as synced.
    if (auto content = read_file(base_, path, std::uint64_t{1} << 30); content.has_value()) {
      tracked->synced = std::move(*content);
    }
  }
  return tracked;
}

void FaultFileSystem::power_loss(std::mt19937_64& random) {
  MutexLock lock(mutex_);
  for (auto& [path, tracked] : volatile_) {
    Bytes content = tracked->synced;
    for (const auto& change : tracked->changes) {
      if (change.truncate) {
        if (random() % 2 == 0) content.resize(static_cast<std::size_t>(change.offset));
        continue;
      }
      const std::uint64_t end = change.offset + change.data.size();
      for (std::uint64_t at = change.offset; at < end;) {
        const std::uint64_t stop = std::min(end, (at / kSector + 1) * kSector);
        const ByteView piece =
            ByteView(change.data)
                .subspan(static_cast<std::size_t>(at - change.offset), static_cast<std::size_t>(stop - at));
        if (random() % 3 != 0) apply_write(content, at, piece);
        at = stop;
      }
    }
    if (auto file = base_.open(path, {.write = true}); file.has_value()) {
      if ((*file)->truncate(0).has_error() || (*file)->write_at(0, content).has_error()) std::abort();
    }
  }
  volatile_.clear();
}

Result<std::unique_ptr<File>> FaultFileSystem::open(const std::string& path, OpenMode mode) {
  TRY(enter(FileOp::open, path, mode.create));
  TRY_ASSIGN(auto file, base_.open(path, mode));
  auto tracked = mode.write ? track(path) : nullptr;
  return std::unique_ptr<File>(std::make_unique<FaultFile>(*this, std::move(file), std::move(tracked)));
}

Result<void> FaultFileSystem::rename(const std::string& from, const std::string& to) {
  TRY(enter(FileOp::rename, from, true));
  TRY(base_.rename(from, to));
  MutexLock lock(mutex_);
  volatile_.erase(to);
  if (auto moved = volatile_.extract(from)) {
    moved.key() = to;
    volatile_.insert(std::move(moved));
  }
  return {};
}

Result<void> FaultFileSystem::unlink(const std::string& path) {
  TRY(enter(FileOp::unlink, path, true));
  TRY(base_.unlink(path));
  MutexLock lock(mutex_);
  volatile_.erase(path);
  return {};
}

Result<void> FaultFileSystem::remove_directory(const std::string& path) {
  TRY(enter(FileOp::remove_directory, path, true));
  return base_.remove_directory(path);
}

Result<bool> FaultFileSystem::exists(const std::string& path) {
  return base_.exists(path);
}

Result<void> FaultFileSystem::make_directories(const std::string& path) {
  TRY(enter(FileOp::make_directories, path, true));
  return base_.make_directories(path);
}

Result<std::vector<DirEntry>> FaultFileSystem::list(const std::string& path) {
  TRY(enter(FileOp::list, path, false));
  return base_.list(path);
}

Result<void> FaultFileSystem::sync_directory(const std::string& path) {
  return enter(FileOp::sync_directory, path, true);
}

}  // namespace sluice::test
