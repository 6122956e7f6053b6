#include "tests/unit/replication/test_proxy.h"

#include <poll.h>
#include <sys/socket.h>

namespace sluice::replication::testing {

TestProxy::TestProxy(std::uint16_t target) : target_(target) {
  listener_ = std::make_unique<Listener>([this](UniqueFd replica) {
    UniqueFd primary = connect_to(target_);
    if (!primary) return;
    ++connections_;
    MutexLock lock(mutex_);
    Link& link = links_.emplace_back();
    link.replica = std::move(replica);
    link.primary = std::move(primary);
    link.thread = std::thread([this, &link] { pump(link); });
  });
}

TestProxy::~TestProxy() {
  stopping_ = true;
  listener_->stop();
  cut();
  MutexLock lock(mutex_);
  for (Link& link : links_) link.thread.join();
}

void TestProxy::cut() {
  MutexLock lock(mutex_);
  for (Link& link : links_) {
    ::shutdown(link.replica.get(), SHUT_RDWR);
    ::shutdown(link.primary.get(), SHUT_RDWR);
  }
}

void TestProxy::pump(Link& link) {
  std::uint64_t down = 0;
  std::uint64_t up = 0;
  while (!stopping_) {
    if (frozen_) {
      ::poll(nullptr, 0, 5);
      continue;
    }
    pollfd fds[2] = {{link.replica.get(), POLLIN, 0}, {link.primary.get(), POLLIN, 0}};
    if (::poll(fds, 2, 20) < 0) break;
    if (frozen_) continue;
    if (fds[1].revents != 0 && !forward(link.primary.get(), link.replica.get(), true, down)) break;
    if (fds[0].revents != 0 && !forward(link.replica.get(), link.primary.get(), false, up)) break;
  }
  ::shutdown(link.replica.get(), SHUT_RDWR);
  ::shutdown(link.primary.get(), SHUT_RDWR);
}

bool TestProxy::forward(int from, int to, bool downstream, std::uint64_t& done) {
  std::byte buffer[16 * 1024];
  std::size_t limit = sizeof buffer;
  const std::uint64_t cut = cut_after_;
  if (downstream && cut != 0) {
    if (done >= cut) return false;
    limit = std::min<std::size_t>(limit, cut - done);
  }
  const ssize_t n = ::recv(from, buffer, limit, 0);
  if (n <= 0) return false;
  const auto size = static_cast<std::uint64_t>(n);
  if (const std::uint64_t flip = flip_at_; downstream && flip != 0 && flip >= done && flip < done + size) {
    buffer[flip - done] ^= std::byte{0x10};
    flip_at_ = 0;
    flipped_ = true;
  }
  done += size;
  return ::send(to, buffer, size, MSG_NOSIGNAL) == n;
}

}  // namespace sluice::replication::testing
