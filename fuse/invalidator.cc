#include "fuse/invalidator.h"

#include <pthread.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "base/log.h"
#include "fuse/lowlevel.h"

namespace sluice::fuse {
namespace {

void report(const char* what, int rc) {
  // ENOENT: the kernel does not know it. ENODEV, ENOTCONN: unmounted meanwhile.
  if (rc == 0 || rc == -ENOENT || rc == -ENODEV || rc == -ENOTCONN || rc == -ENOTDIR || rc == -EBADF) return;
  LOG_WARN("{}: kernel notification failed (errno {})", what, -rc);
}

}  // namespace

/// Keeps the session alive while a notification runs.
class Invalidator::Use {
 public:
  explicit Use(Invalidator& owner) : owner_(owner) {
    MutexLock lock(owner_.mutex_);
    session = owner_.session_;
    if (session != nullptr) ++owner_.users_;
  }
  ~Use() {
    if (session == nullptr) return;
    MutexLock lock(owner_.mutex_);
    if (--owner_.users_ == 0) owner_.changed_.notify_all();
  }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;

  fuse_session* session = nullptr;

 private:
  Invalidator& owner_;
};

void Invalidator::start(fuse_session* session) {
  {
    MutexLock lock(mutex_);
    session_ = session;
  }
  thread_ = std::thread([this] { run(); });
  pthread_setname_np(thread_.native_handle(), "sluice-inval");
}

void Invalidator::stop() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    session_ = nullptr;
    changed_.notify_all();
    while (users_ > 0) changed_.wait(mutex_);  // ends: the connection is gone or being aborted by now
  }
  if (thread_.joinable()) thread_.join();
}

void Invalidator::inode(NodeId node, std::uint64_t offset, std::uint64_t length) {
  const Use use(*this);
  if (use.session == nullptr) return;
  report("invalidate pages", fuse_lowlevel_notify_inval_inode(use.session, node.value(), static_cast<off_t>(offset),
                                                              static_cast<off_t>(length)));
}

void Invalidator::entry(NodeId parent, std::string_view name) {
  const Use use(*this);
  if (use.session == nullptr) return;
  report("invalidate entry", fuse_lowlevel_notify_inval_entry(use.session, parent.value(), name.data(), name.size()));
  // The kernel keeps listings as pages of the directory, and drops them only for entries it had cached.
  report("invalidate listing", fuse_lowlevel_notify_inval_inode(use.session, parent.value(), 0, 0));
}

void Invalidator::post(NodeId node) {
  MutexLock lock(mutex_);
  if (stopping_ || std::find(posted_.begin(), posted_.end(), node) != posted_.end()) return;
  posted_.push_back(node);
  changed_.notify_all();
}

void Invalidator::run() {
  for (;;) {
    std::vector<NodeId> nodes;
    {
      MutexLock lock(mutex_);
      while (!stopping_ && posted_.empty()) changed_.wait(mutex_);
      if (stopping_) return;
      nodes.swap(posted_);
    }
    for (const NodeId node : nodes) inode(node, 0, 0);
  }
}

}  // namespace sluice::fuse
