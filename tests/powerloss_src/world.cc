#include "tests/powerloss_src/world.h"

#include <filesystem>

#include "base/os.h"

namespace sluice::powerloss {

SteppedPool::SteppedPool() { close_gate(); }

SteppedPool::~SteppedPool() {
  release();
  pool_.stop();
}

void SteppedPool::close_gate() {
  int mine = 0;
  {
    const std::lock_guard lock(mutex_);
    mine = ++gates_;
  }
  pool_.post([this, mine] {
    std::unique_lock lock(mutex_);
    reached_ = mine;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_ >= mine || released_; });
  });
}

void SteppedPool::drain() {
  {
    const std::lock_guard lock(mutex_);
    if (released_) return;
  }
  close_gate();
  std::unique_lock lock(mutex_);
  open_ = gates_ - 1;
  changed_.notify_all();
  changed_.wait(lock, [this] { return reached_ >= gates_; });
}

void SteppedPool::release() {
  const std::lock_guard lock(mutex_);
  released_ = true;
  changed_.notify_all();
}

void remove_tree(const std::string& path) {
  std::error_code ignored;
  std::filesystem::remove_all(path, ignored);
}

void copy_tree(const std::string& from, const std::string& to) {
  std::filesystem::copy(from, to, std::filesystem::copy_options::recursive);
}

Bytes load(const std::string& path) {
  auto content = read_file(real_file_system(), path, std::uint64_t{1} << 32);
  return content.has_value() ? std::move(*content) : Bytes();
}

std::string describe(const std::string& what, const std::string& why) { return what + ": " + why; }

}  // namespace sluice::powerloss
