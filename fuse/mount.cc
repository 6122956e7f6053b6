#include "fuse/mount.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <unordered_map>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "fuse/client_locks.h"
#include "fuse/files/backing_tree.h"
#include "fuse/invalidator.h"
#include "fuse/lowlevel.h"
#include "fuse/mount_point.h"
#include "fuse/operations.h"
#include "fuse/passthrough.h"
#include "fuse/session.h"
#include "fuse/takeover/hidden_files.h"
#include "fuse/takeover/state.h"

namespace sluice::fuse {
namespace {

constexpr int kInitDeadline_ms = 10'000;
constexpr int kBusyRetry_ms = 50;     // nothing announces that the last client has left
constexpr int kBusyReport_ms = 2'000;
constexpr int kEndDeadline_ms = 2'000;  // workers' last requests

/// What outlives the process.
struct Takeover {
  std::unique_ptr<takeover::State> state;
  std::optional<takeover::HiddenFiles> hidden;
  UniqueFd device;  ///< of the process before; empty: to be mounted

  bool taken_over() const { return state && state->taken_over(); }
  static Result<Takeover> prepare(const MountOptions& options);
};

Result<Takeover> Takeover::prepare(const MountOptions& options) {
  Takeover result;
  if (options.descriptors == nullptr) return result;
  TRY_ASSIGN(result.hidden, takeover::HiddenFiles::open(options.hidden_dir));
  if (Mount::takes_over(options.descriptors)) {
    TRY_ASSIGN(result.state, takeover::State::adopt(options.descriptors->take(kTakeoverStateName)));
    result.device = options.descriptors->take(kConnectionName);
    return result;
  }
  TRY_ASSIGN(result.state, takeover::State::create());
  TRY_ASSIGN(const auto left, result.hidden->list());
  for (const NodeId node : left) result.hidden->remove(node);
  return result;
}

class MountImpl final : public Mount {
 public:
  MountImpl(BackingTree tree, ino_t root_ino, Takeover takeover, Observer& observer, VirtualFiles& virtual_files,
            ThreadPool& pool)
      : tree_(std::move(tree)),
        takeover_(std::move(takeover)),
        nodes_(root_ino, takeover_.state.get()),
        handles_(takeover_.state.get()),
        operations_({tree_, nodes_, handles_, observer, virtual_files, pool, own_threads_, invalidator_,
                     takeover_.state.get(), takeover_.hidden ? &*takeover_.hidden : nullptr}),
        access_(tree_, nodes_, invalidator_, own_threads_) {}
  ~MountImpl() override;

  Result<void> serve(const MountOptions& options, std::string mountpoint);

  storage::MountAccess& access() override { return access_; }
  Result<void> stop(int wait_ms) override EXCLUDES(stop_mutex_);
  Result<UniqueFd> open_abort_file() const override { return fuse::open_abort_file(device_); }
  void on_session_end(std::function<void()> callback) override;
  IoPath io_path() const override { return io_; }
  void beat() override;
  void invalidate_virtual(const std::string& path) override;
  std::map<std::string, std::uint64_t> request_counts() const override { return session_->request_counts(); }

 private:
  Result<void> probe_passthrough(int device_fd);
  Result<IoPath> choose_path(IoPath wanted, int device_fd);
  Result<UniqueFd> open_device(const MountOptions& options);
  Result<void> restore(int device_fd);
  Result<void> go_on(const MountOptions& options);
  Result<void> keep(const MountOptions& options, int device_fd);
  Result<void> unmount_patiently(int wait_ms) REQUIRES(stop_mutex_);
  void end_session() REQUIRES(stop_mutex_);

  BackingTree tree_;
  Takeover takeover_;
  InodeTable nodes_;
  OpenFiles handles_;
  OwnThreads own_threads_;
  Invalidator invalidator_;
  Operations operations_;
  ClientLocks access_;
  std::unique_ptr<Session> session_;
  DescriptorStore* descriptors_ = nullptr;  ///< that keeps the connection
  std::uint64_t taken_ = 0;  ///< requests, at the last beat
  std::string mountpoint_;
  dev_t device_ = 0;
  IoPath io_ = IoPath::native;
  std::atomic<bool> stopping_{false};
  Mutex stop_mutex_;
  CondVar never_;  // nobody notifies it: waits that end by their deadline
  bool mounted_ GUARDED_BY(stop_mutex_) = false;
};

Result<void> MountImpl::probe_passthrough(int device_fd) {
  if (!session_->passthrough_offered())
    return make_error(Errc::unsupported,
                      "this kernel offers no FUSE passthrough (Linux 6.9 or later with CONFIG_FUSE_PASSTHROUGH); use --io "
                      "plain or auto");
  UniqueFd file(::openat(tree_.fd(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600));
  if (!file) return errno_error("create a temporary file in " + tree_.directory(), errno);
  TRY_ASSIGN(const int id, open_backing_id(device_fd, file.get()));
  close_backing_id(device_fd, id);
  return boost::system::in_place_value;
}

Result<IoPath> MountImpl::choose_path(IoPath wanted, int device_fd) {
  if (wanted == IoPath::plain) return IoPath::plain;
  auto probed = probe_passthrough(device_fd);
  if (probed) return IoPath::native;
  if (wanted == IoPath::native || probed.error().code != Errc::unsupported) return std::move(probed).error();
  LOG_INFO("-wal and -shm are served on the plain path, which is slower: {}", probed.error().message);
  return IoPath::plain;
}

Result<void> MountImpl::serve(const MountOptions& options, std::string mountpoint) {
  mountpoint_ = std::move(mountpoint);
  TRY_ASSIGN(UniqueFd device, open_device(options));
  const int device_fd = device.get();
  if (takeover_.taken_over()) TRY(restore(device_fd));
  auto session = Session::create(std::move(device), operations_, std::max(options.threads, 2u),
                                 options.io == IoPath::plain ? 0 : required_stack_depth(tree_.fd()), takeover_.state.get());
  if (!session) return std::move(session).error();
  session_ = std::move(*session);
  if (takeover_.taken_over()) return go_on(options);
  TRY(session_->start(kInitDeadline_ms));
  auto path = choose_path(options.io, device_fd);
  io_ = path ? *path : IoPath::plain;
  operations_.set_io_path(io_);  // also on an error: who waits for it goes on, and meets the end of the connection
  if (!path) return std::move(path).error();
  access_.set_mount(mountpoint_, device_, io_);
  invalidator_.start(session_->handle());
  return takeover_.state ? keep(options, device_fd) : boost::system::in_place_value;
}

/// Serves what the process before served; only the native path can be taken over.
Result<void> MountImpl::go_on(const MountOptions& options) {
  operations_.set_io_path(io_);
  access_.set_mount(mountpoint_, device_, io_);
  descriptors_ = options.descriptors;
  access_.set_descriptors(descriptors_);
  if (options.before_serving) TRY(options.before_serving(access_));
  TRY(session_->start(kInitDeadline_ms));
  invalidator_.start(session_->handle());
  invalidator_.post(kRootNode);  // its listing may have changed in between
  MutexLock lock(stop_mutex_);
  mounted_ = true;  // until here a failure leaves it to the next process
  return boost::system::in_place_value;
}

Result<UniqueFd> MountImpl::open_device(const MountOptions& options) {
  if (takeover_.taken_over()) {
    device_ = takeover_.state->header().device;
    TRY_ASSIGN(const dev_t there, device_of(mountpoint_));
    if (there != device_) return make_error(Errc::unavailable, "mount point " + mountpoint_ + " was unmounted");
    return std::move(takeover_.device);
  }
  TRY_ASSIGN(UniqueFd device, mount_fuse(mountpoint_, options.allow_other));
  {
    MutexLock lock(stop_mutex_);
    mounted_ = true;
  }
  TRY_ASSIGN(device_, device_of(mountpoint_));
  return device;
}

/// The nodes and open files of the process before.
Result<void> MountImpl::restore(int device_fd) {
  std::unordered_map<std::uint64_t, unsigned> opens;
  for (const OpenFile& file : handles_.list()) ++opens[file.node.value()];
  for (const int id : nodes_.restore(opens)) close_backing_id(device_fd, id);
  TRY_ASSIGN(const auto hidden, takeover_.hidden->list());
  for (const NodeId id : hidden) {
    const auto node = nodes_.find(id);
    if (node && node->opens > 0)
      nodes_.set_hidden(id);
    else
      takeover_.hidden->remove(id);
  }
  operations_.set_device(device_fd);
  operations_.announce_opens();
  return boost::system::in_place_value;
}

/// From here on the connection outlives this process.
Result<void> MountImpl::keep(const MountOptions& options, int device_fd) {
  takeover_.state->header().device = device_;
  if (!session_->can_resend() || io_ != IoPath::native) {
    LOG_WARN("no takeover {}: a crash of the node ends the mount",
             io_ != IoPath::native ? "on the plain I/O path" : "on a kernel that cannot send unanswered requests again (Linux 6.9 can)");
    return boost::system::in_place_value;
  }
  TRY(options.descriptors->keep(kTakeoverStateName, takeover_.state->fd()));
  descriptors_ = options.descriptors;
  access_.set_descriptors(descriptors_);
  return options.descriptors->keep(kConnectionName, device_fd);
}

MountImpl::~MountImpl() {
  if (auto stopped = stop(0); !stopped) LOG_ERROR("{}", stopped.error().to_string());
}

Result<void> MountImpl::unmount_patiently(int wait_ms) {
  const auto start = std::chrono::steady_clock::now();
  const auto deadline = start + std::chrono::milliseconds(wait_ms);
  auto next_report = start + std::chrono::milliseconds(2 * kBusyRetry_ms);  // closing a file can outlast close()
  for (;;) {
    auto done = unmount(mountpoint_, device_, false);
    if (done || done.error().code != Errc::busy) return done;
    const auto now = std::chrono::steady_clock::now();
    if (now >= next_report || now >= deadline) {
      const std::string users = mount_users(mountpoint_, device_);
      LOG_WARN("mount point {} is in use by {}", mountpoint_, users.empty() ? "the kernel only" : users);
      next_report = now + std::chrono::milliseconds(kBusyReport_ms);
    }
    if (now >= deadline) return done;
    never_.wait_until(stop_mutex_, std::min(deadline, now + std::chrono::milliseconds(kBusyRetry_ms)));
  }
}

void MountImpl::end_session() {
  if (!session_) return;
  if (!session_->wait_ended(kEndDeadline_ms)) {
    // Detached with files open, or alive in another mount namespace: cut it off.
    if (!abort_connection(device_))
      LOG_WARN("the FUSE connection could not be aborted; waiting until its last file is closed");
    while (!session_->wait_ended(kBusyReport_ms)) LOG_WARN("waiting for the mount's worker threads to end");
  }
  invalidator_.stop();
  operations_.drain();
}

Result<void> MountImpl::stop(int wait_ms) {
  stopping_.store(true);
  MutexLock lock(stop_mutex_);
  if (!std::exchange(mounted_, false)) return boost::system::in_place_value;
  // Should we be killed from here on, the mount goes.
  if (descriptors_ != nullptr)
    for (const char* name : {kConnectionName, kTakeoverStateName}) descriptors_->drop(name);
  auto unmounted = unmount_patiently(wait_ms);
  if (!unmounted && unmounted.error().code == Errc::busy) {
    LOG_WARN("detaching {} from the processes that still use it", mountpoint_);
    unmounted = unmount(mountpoint_, device_, true);
    if (session_ && !session_->wait_ended(0) && !abort_connection(device_))
      LOG_WARN("the FUSE connection could not be aborted");
  }
  end_session();
  return unmounted;
}

void MountImpl::beat() {
  if (!takeover_.state) return;
  std::uint64_t taken = 0;
  for (const auto& [name, count] : session_->request_counts()) taken += count;
  pollfd device{fuse_session_fd(session_->handle()), POLLIN, 0};
  const bool waiting = ::poll(&device, 1, 0) > 0 && (device.revents & POLLIN) != 0;
  if (!waiting || taken != taken_) takeover_.state->header().beats.fetch_add(1, std::memory_order_relaxed);
  taken_ = taken;
}

void MountImpl::on_session_end(std::function<void()> callback) {
  session_->on_end([this, callback = std::move(callback)] {
    if (!stopping_.load()) callback();
  });
}

void MountImpl::invalidate_virtual(const std::string& path) {
  if (const auto node = nodes_.find_path(path)) invalidator_.post(*node);
  // .primary comes and goes, and the listing shows it.
  if (path == kPrimaryName) invalidator_.post(kRootNode);
}

}  // namespace

Result<MountPulse> MountPulse::open(int state_fd) {
  constexpr std::size_t kSize = sizeof(takeover::StateHeader);
  void* memory = ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_SHARED, state_fd, 0);
  if (memory == MAP_FAILED) return errno_error("map the takeover state", errno);
  return MountPulse(Mapping(memory, kSize));
}

std::uint64_t MountPulse::beats() const {
  return reinterpret_cast<takeover::StateHeader*>(memory_.data())->beats.load(std::memory_order_relaxed);
}

void MountPulse::suspect() { reinterpret_cast<takeover::StateHeader*>(memory_.data())->suspect.store(1); }

bool Mount::takes_over(const DescriptorStore* descriptors) {
  return descriptors != nullptr && descriptors->has(kConnectionName) && descriptors->has(kTakeoverStateName);
}

Result<void> Mount::check_takeover(int state_fd) { return takeover::State::check(state_fd); }

Result<void> Mount::clear_mount_point(const std::string& mountpoint) { return detach_if_dead(mountpoint); }

Result<std::unique_ptr<Mount>> Mount::start(const MountOptions& options, Observer& observer,
                                            VirtualFiles& virtual_files, ThreadPool& pool) {
  TRY_ASSIGN(BackingTree tree, BackingTree::open(options.backing_dir));
  TRY_ASSIGN(Takeover takeover, Takeover::prepare(options));
  // At a takeover what is mounted there is ours.
  auto mountpoint = takeover.taken_over() ? resolve_mount_point(options.mountpoint) : check_mount_point(options.mountpoint, tree.directory());
  if (!mountpoint) return std::move(mountpoint).error();
  struct stat root {};
  if (const int err = tree.stat("", root); err != 0) return errno_error("stat " + tree.directory(), err);
  auto mount = std::make_unique<MountImpl>(std::move(tree), root.st_ino, std::move(takeover), observer, virtual_files, pool);
  TRY(mount->serve(options, std::move(*mountpoint)));
  return std::unique_ptr<Mount>(std::move(mount));
}

}  // namespace sluice::fuse
