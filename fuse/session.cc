#include "fuse/session.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "fuse/handlers.h"
#include "fuse/lowlevel.h"
#include "fuse/protocol.h"

namespace sluice::fuse {
namespace {

const std::map<std::uint32_t, const char*>& opcode_names() {
  static const std::map<std::uint32_t, const char*> names = {
      {1, "LOOKUP"},    {2, "FORGET"},     {3, "GETATTR"},    {4, "SETATTR"},      {5, "READLINK"},
      {6, "SYMLINK"},   {8, "MKNOD"},      {9, "MKDIR"},      {10, "UNLINK"},      {11, "RMDIR"},
      {12, "RENAME"},   {13, "LINK"},      {14, "OPEN"},      {15, "READ"},        {16, "WRITE"},
      {17, "STATFS"},   {18, "RELEASE"},   {20, "FSYNC"},     {21, "SETXATTR"},    {22, "GETXATTR"},
      {23, "LISTXATTR"}, {24, "REMOVEXATTR"}, {25, "FLUSH"},  {26, "INIT"},        {27, "OPENDIR"},
      {28, "READDIR"},  {29, "RELEASEDIR"}, {30, "FSYNCDIR"}, {31, "GETLK"},       {32, "SETLK"},
      {33, "SETLKW"},   {34, "ACCESS"},    {35, "CREATE"},    {36, "INTERRUPT"},   {37, "BMAP"},
      {38, "DESTROY"},  {39, "IOCTL"},     {40, "POLL"},      {41, "NOTIFY_REPLY"}, {42, "BATCH_FORGET"},
      {43, "FALLOCATE"}, {44, "READDIRPLUS"}, {45, "RENAME2"}, {46, "LSEEK"},      {47, "COPY_FILE_RANGE"},
      {48, "SETUPMAPPING"}, {49, "REMOVEMAPPING"}, {50, "SYNCFS"}, {51, "TMPFILE"}, {52, "STATX"}};
  return names;
}

/// Of the INIT that is repeated; the kernel never gives it out.
constexpr std::uint64_t kRepeatedInit = 0x7fff'ffff'ffff'fff0;

/// A process that is killed while read(2) waits for one of the buffer's pages fails the request it was about to receive (EIO):
/// the pages are there before.
void keep_resident(void* buffer, std::size_t size) {
  thread_local const void* known = nullptr;
  if (known == buffer) return;
  known = buffer;
  if (::mlock(buffer, size) != 0) std::memset(buffer, 0, size);
}

void answer_error(int fd, std::uint64_t unique, int err) {
  const protocol::OutHeader out{sizeof out, -err, unique};
  if (::write(fd, &out, sizeof out) < 0 && errno != ENOENT) LOG_WARN("a request could not be answered (errno {})", errno);
}

}  // namespace

Session::Session(Operations& operations, unsigned max_threads, unsigned stack_depth, takeover::State* state)
    : operations_(operations), max_threads_(max_threads), init_(stack_depth), state_(state) {
  if (state_ != nullptr) in_flight_.emplace(*state_);
}

Result<std::unique_ptr<Session>> Session::create(UniqueFd device, Operations& operations, unsigned max_threads,
                                                 unsigned stack_depth, takeover::State* state) {
  std::unique_ptr<Session> session(new Session(operations, max_threads, stack_depth, state));
  char name[] = "sluice";
  char* arguments[] = {name, nullptr};
  fuse_args args = FUSE_ARGS_INIT(1, arguments);
  session->session_ =
      fuse_session_new(&args, &lowlevel_operations(), sizeof(fuse_lowlevel_ops), session.get());
  fuse_opt_free_args(&args);
  if (session->session_ == nullptr) return make_error(Errc::internal, "libfuse refused to create a session");
  // One /dev/fuse description for all threads (no clone_fd): a later process can take it over whole.
  static constexpr fuse_custom_io kHooks = {write_hook, read_hook, nullptr, nullptr};
  const int rc = fuse_session_custom_io(session->session_, &kHooks, device.get());
  if (rc != 0) return errno_error("attach /dev/fuse to the session", rc < 0 ? -rc : EINVAL);
  operations.set_device(device.release());  // closed by fuse_session_destroy
  return session;
}

Session::~Session() {
  std::vector<std::thread> threads;
  {
    MutexLock lock(mutex_);
    CHECK(running_ == 0);
    threads.swap(threads_);
  }
  for (auto& thread : threads) thread.join();
  if (session_ != nullptr) fuse_session_destroy(session_);
}

Result<void> Session::start(int deadline_ms) {
  if (state_ != nullptr && state_->taken_over()) TRY(take_over());
  add_worker();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  MutexLock lock(mutex_);
  while (!initialised_ && !ended_)
    if (!changed_.wait_until(mutex_, deadline)) break;
  if (!initialised_)
    return make_error(Errc::deadline, "the kernel did not start the FUSE session; see the kernel log");
  return boost::system::in_place_value;
}

// One thread only so far: nobody must read a real request before libfuse has seen an INIT.
Result<void> Session::take_over() {
  repeating_init_ = true;
  fuse_buf buffer{};
  const int n = fuse_session_receive_buf(session_, &buffer);
  if (n > 0) fuse_session_process_buf(session_, &buffer);
  std::free(buffer.mem);
  repeating_init_ = false;
  {
    MutexLock lock(mutex_);
    if (!initialised_ || init_differs_)
      return make_error(Errc::unsupported,
                        "this program would use the FUSE connection in another way than the one that began it; stop the node "
                        "and start it again");
  }
  // Whoever served before has ended: nobody executes these requests any more.
  const protocol::OutHeader resend{sizeof resend, protocol::kNotifyResend, 0};
  if (::write(fuse_session_fd(session_), &resend, sizeof resend) != static_cast<ssize_t>(sizeof resend))
    return errno_error("ask the kernel for the unanswered requests", errno);
  return boost::system::in_place_value;
}

ssize_t Session::give_saved_init(void* buffer, std::size_t size) {
  const takeover::StateHeader& saved = state_->header();
  if (saved.init_request_size > size || saved.init_request_size > saved.init_request.size()) return -1;
  std::memcpy(buffer, saved.init_request.data(), saved.init_request_size);
  static_cast<protocol::InHeader*>(buffer)->unique = kRepeatedInit;
  init_.on_request(buffer, saved.init_request_size);
  return saved.init_request_size;
}

ssize_t Session::read_hook(int fd, void* buffer, std::size_t size, void* user) {
  auto* session = static_cast<Session*>(user);
  if (session->repeating_init_) return session->give_saved_init(buffer, size);
  if (session->state_ != nullptr) keep_resident(buffer, size);
  for (;;) {
    const ssize_t n = ::read(fd, buffer, size);
    if (n < static_cast<ssize_t>(sizeof(protocol::InHeader))) return n;
    const auto& header = *static_cast<const protocol::InHeader*>(buffer);
    if (header.opcode < session->counts_.size()) session->counts_[header.opcode].fetch_add(1, std::memory_order_relaxed);
    if (header.opcode == protocol::kOpcodeInit) {
      session->init_.on_request(buffer, static_cast<std::size_t>(n));
      if (session->state_ != nullptr && static_cast<std::size_t>(n) <= session->state_->header().init_request.size()) {
        std::memcpy(session->state_->header().init_request.data(), buffer, static_cast<std::size_t>(n));
        session->state_->header().init_request_size = static_cast<std::uint32_t>(n);
      }
    } else if (session->state_ != nullptr && !session->admit(fd, header)) {
      continue;
    }
    return n;
  }
}

/// Notes the request. False: it was answered here.
bool Session::admit(int fd, const protocol::InHeader& header) {
  switch (header.opcode) {
    case protocol::kOpcodeForget:
    case protocol::kOpcodeBatchForget: return true;  // no answer, and never sent again
    case protocol::kOpcodeInterrupt:
      answer_error(fd, header.unique, ENOSYS);  // nothing is interruptible; the kernel sends no more of them
      return false;
    default: break;
  }
  const auto flight = in_flight_->take(header.unique, header.opcode);
  if (!flight) {
    answer_error(fd, header.unique, EIO);
    return false;
  }
  takeover::current_flight() = *flight;
  return true;
}

ssize_t Session::save_init_reply(int fd, const iovec* parts, int count) {
  takeover::StateHeader& saved = state_->header();
  ssize_t total = 0;
  for (int i = 0; i < count; ++i) total += static_cast<ssize_t>(parts[i].iov_len);
  const bool has_body = count >= 2 && parts[1].iov_len >= sizeof(protocol::InitOut);
  protocol::InitOut reply{};
  if (has_body) std::memcpy(&reply, parts[1].iov_base, sizeof reply);
  if (!repeating_init_) {
    std::memcpy(saved.init_reply.data(), &reply, sizeof reply);
    const ssize_t n = ::writev(fd, parts, count);
    if (n >= 0 && has_body) saved.init_reply_size = sizeof reply;
    return n;
  }
  protocol::InitOut before{};
  std::memcpy(&before, saved.init_reply.data(), sizeof before);
  reply.minor = before.minor;  // libfuse's own version
  init_differs_ = !has_body || saved.init_reply_size != sizeof reply || std::memcmp(&before, &reply, sizeof reply) != 0;
  return total;  // the kernel has its answer
}

ssize_t Session::write_hook(int fd, iovec* parts, int count, void* user) {
  auto* session = static_cast<Session*>(user);
  const bool init = session->init_.on_reply(parts, count);
  const ssize_t n =
      init && session->state_ != nullptr ? session->save_init_reply(fd, parts, count) : ::writev(fd, parts, count);
  if (init && n >= 0) session->init_answered();
  return n;
}

void Session::init_answered() {
  MutexLock lock(mutex_);
  initialised_ = true;
  changed_.notify_all();
}

void Session::add_worker() {
  MutexLock lock(mutex_);
  if (ended_ || threads_.size() >= max_threads_) return;
  ++running_;
  idle_.fetch_add(1, std::memory_order_relaxed);
  threads_.emplace_back([this] { work(); });
  pthread_setname_np(threads_.back().native_handle(), "sluice-fuse");
}

/// A worker that takes a request when no other is waiting adds one, up to the limit; workers stay until the end. With
/// everything answered at once there are two.
void Session::work() {
  sigset_t all;
  sigfillset(&all);
  pthread_sigmask(SIG_BLOCK, &all, nullptr);
  fuse_buf buffer{};  // allocated by libfuse, reused: 1 MiB of address space, resident as far as it was used
  for (;;) {
    run_.before_read();
    const int n = fuse_session_receive_buf(session_, &buffer);
    const auto* header = static_cast<const protocol::InHeader*>(n > 0 ? buffer.mem : nullptr);
    run_.received(header != nullptr ? RequestRun::part_of(header->opcode) : RequestRun::Part::other,
                  header != nullptr ? static_cast<pid_t>(header->pid) : 0);
    if (n == -EINTR || n == -EAGAIN) continue;
    if (n <= 0) break;  // unmounted or aborted
    if (idle_.fetch_sub(1, std::memory_order_relaxed) == 1) {
      run_.before_new_worker();
      add_worker();
    }
    fuse_session_process_buf(session_, &buffer);
    std::exchange(takeover::current_flight(), {}).finish();  // of what libfuse answered itself
    run_.processed();
    idle_.fetch_add(1, std::memory_order_relaxed);
  }
  run_.leave();
  std::free(buffer.mem);
  fuse_session_exit(session_);
  worker_ended();
}

void Session::worker_ended() {
  std::function<void()> callback;
  {
    MutexLock lock(mutex_);
    ended_ = true;  // no new workers; the others end the same way
    if (running_ > 1) {
      --running_;
      return;
    }
    callback = std::exchange(on_end_, nullptr);
  }
  if (callback) callback();
  MutexLock lock(mutex_);
  --running_;
  changed_.notify_all();
}

bool Session::wait_ended(int timeout_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  MutexLock lock(mutex_);
  while (running_ > 0)
    if (!changed_.wait_until(mutex_, deadline)) return running_ == 0;
  return true;
}

void Session::on_end(std::function<void()> callback) {
  {
    MutexLock lock(mutex_);
    if (!ended_ || running_ > 1) {
      on_end_ = std::move(callback);
      return;
    }
  }
  callback();
}

std::map<std::string, std::uint64_t> Session::request_counts() const {
  std::map<std::string, std::uint64_t> counts;
  for (std::size_t i = 0; i < counts_.size(); ++i) {
    const std::uint64_t n = counts_[i].load(std::memory_order_relaxed);
    if (n == 0) continue;
    const auto it = opcode_names().find(static_cast<std::uint32_t>(i));
    counts[it != opcode_names().end() ? it->second : "OPCODE_" + std::to_string(i)] = n;
  }
  return counts;
}

}  // namespace sluice::fuse
