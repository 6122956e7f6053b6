#include "storage/apply/index_helper.h"

#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "base/log.h"

namespace sluice::storage::apply {
namespace {

// A helper that waits for a page of the mount waits for one of our workers.
constexpr int kReplyDeadline_ms = 30'000;
constexpr int kAttempts = 3;

void add_stores(IndexRequest& request, std::span<const IndexStore> stores) {
  for (const IndexStore& store : stores) {
    request.words.at(2 * request.stores) = static_cast<std::uint32_t>(store.word);
    request.words.at(2 * request.stores + 1) = store.value;
    ++request.stores;
  }
}

}  // namespace

IndexHelper::~IndexHelper() {
  MutexLock lock(mutex_);
  stop(false);
}

std::uint32_t IndexHelper::add(int fd) {
  MutexLock lock(mutex_);
  files_[next_] = Registered{fd, 0, false};
  return next_++;
}

void IndexHelper::remove(std::uint32_t file) {
  MutexLock lock(mutex_);
  const auto it = files_.find(file);
  if (it == files_.end()) return;
  const bool known = it->second.known;
  files_.erase(it);
  if (!known || !process_.socket) return;
  // A helper that does not answer is no reason to start another: with it the mappings are gone, too.
  const Result<void> forgotten = call_once({.op = IndexOp::forget, .file = file, .words = {}, .header = {}}, {}, -1);
  if (forgotten.has_error()) stop(true);
}

Result<void> IndexHelper::map(std::uint32_t file, std::uint32_t blocks) {
  MutexLock lock(mutex_);
  Registered& registered = files_.at(file);
  registered.blocks = std::max(registered.blocks, blocks);
  return call({.op = IndexOp::map, .file = file, .count = registered.blocks, .words = {}, .header = {}}, {});
}

Result<void> IndexHelper::publish(std::uint32_t file, std::uint32_t first, std::span<const std::uint32_t> pages,
                                  const sqlite::WalIndexHeader& header, std::span<const IndexStore> stores) {
  MutexLock lock(mutex_);
  while (pages.size() > kIndexPagesAtOnce) {
    const auto part = pages.first(kIndexPagesAtOnce);
    TRY(call({.op = IndexOp::append, .file = file, .first = first, .count = kIndexPagesAtOnce, .words = {}, .header = {}}, part));
    pages = pages.subspan(part.size());
    first += kIndexPagesAtOnce;
  }
  IndexRequest request{.op = IndexOp::publish, .file = file, .first = first, .words = {}, .header = header};
  request.count = static_cast<std::uint32_t>(pages.size());
  add_stores(request, stores);
  return call(request, pages);
}

Result<void> IndexHelper::store(std::uint32_t file, std::span<const IndexStore> stores) {
  MutexLock lock(mutex_);
  IndexRequest request{.op = IndexOp::store, .file = file, .words = {}, .header = {}};
  add_stores(request, stores);
  return call(request, {});
}

Result<void> IndexHelper::erase_header(std::uint32_t file) {
  MutexLock lock(mutex_);
  return call({.op = IndexOp::erase, .file = file, .words = {}, .header = {}}, {});
}

int IndexHelper::pid() const {
  MutexLock lock(mutex_);
  return process_.pid;
}

Result<void> IndexHelper::call(const IndexRequest& request, std::span<const std::uint32_t> pages) {
  Result<void> done;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    lost_ = false;
    done = process_.socket ? Result<void>() : start();
    if (done.has_error()) return done;
    Registered& file = files_.at(request.file);
    const bool maps = request.op == IndexOp::map;
    if (maps || !file.known) done = map_now(request.file, file);
    if (!done.has_error() && !maps) done = call_once(request, pages, -1);
    if (!done.has_error() || !lost_) return done;
    LOG_WARN("the process that maps the wal-indexes is gone or stuck ({}); starting another", done.error().message);
    stop(true);
  }
  return done;
}

/// The descriptor goes along once; later blocks are mapped from it.
Result<void> IndexHelper::map_now(std::uint32_t file, Registered& registered) {
  IndexRequest request{.op = IndexOp::map, .file = file, .words = {}, .header = {}};
  request.count = registered.blocks;
  TRY(call_once(request, {}, registered.known ? -1 : registered.fd));
  registered.known = true;
  return {};
}

Result<void> IndexHelper::call_once(const IndexRequest& request, std::span<const std::uint32_t> pages, int fd) {
  TRY(send(request, pages, fd));
  pollfd wait{process_.socket.get(), POLLIN, 0};
  int ready = 0;
  do {
    ready = ::poll(&wait, 1, kReplyDeadline_ms);
  } while (ready < 0 && errno == EINTR);
  IndexReply reply;
  const ssize_t n = ready > 0 ? ::recv(process_.socket.get(), &reply, sizeof reply, MSG_DONTWAIT) : 0;
  if (n != static_cast<ssize_t>(sizeof reply)) {
    lost_ = true;
    return make_error(Errc::unavailable, ready == 0 ? "no answer in time" : "it has ended");
  }
  if (reply.code == kIndexDone) return {};
  reply.message.back() = '\0';
  return make_error(static_cast<Errc>(reply.code), reply.message.data());
}

Result<void> IndexHelper::send(const IndexRequest& request, std::span<const std::uint32_t> pages, int fd) {
  std::array<iovec, 2> parts{{{const_cast<IndexRequest*>(&request), sizeof request},
                              {const_cast<std::uint32_t*>(pages.data()), pages.size_bytes()}}};
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = pages.empty() ? 1 : 2;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = SCM_RIGHTS;
    head->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(head), &fd, sizeof fd);
  }
  ssize_t n = 0;
  do {
    n = ::sendmsg(process_.socket.get(), &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  if (n >= 0) return {};
  lost_ = true;
  return errno_error("ask the process that maps the wal-indexes", errno);
}

Result<void> IndexHelper::start() {
  TRY_ASSIGN(process_, start_());
  for (auto& [file, registered] : files_) registered.known = false;
  return {};
}

void IndexHelper::stop(bool kill) {
  process_.socket.reset();  // which ends it
  const int pid = std::exchange(process_.pid, -1);
  if (pid <= 0) return;
  if (kill) ::kill(pid, SIGKILL);
  // It gives its mappings back, which our workers must still serve. Bounded: a helper that does not end is left behind.
  constexpr int kPatience_ms = 5'000;
  for (int waited = 0; waited < kPatience_ms; ++waited) {
    int status = 0;
    const pid_t ended = ::waitpid(pid, &status, WNOHANG);
    if (ended == pid || (ended < 0 && errno != EINTR)) return;
    ::poll(nullptr, 0, 1);  // nothing announces it here
  }
  LOG_WARN("the process that maps the wal-indexes ({}) does not end", pid);
}

}  // namespace sluice::storage::apply
