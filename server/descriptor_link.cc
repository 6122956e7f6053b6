#include "server/descriptor_link.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <sstream>
#include <string_view>

#include "base/log.h"

namespace sluice::server {
namespace {

std::optional<std::string> take_variable(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  std::string text = value;
  ::unsetenv(name);
  return text;
}

std::optional<int> parse_number(std::string_view text) {
  int number = -1;
  const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
  if (parsed.ec != std::errc() || parsed.ptr != text.data() + text.size() || number < 0) return std::nullopt;
  return number;
}

UniqueFd own(int fd) {
  ::fcntl(fd, F_SETFD, FD_CLOEXEC);
  return UniqueFd(fd);
}

}  // namespace

std::unique_ptr<DescriptorLink> DescriptorLink::from_environment() {
  if (const auto text = take_variable(kGuardianVariable)) {
    const std::size_t colon = text->find(':');
    const auto socket = parse_number(std::string_view(*text).substr(0, colon));
    const auto list = colon == std::string::npos ? std::nullopt : parse_number(std::string_view(*text).substr(colon + 1));
    if (!socket || !list) return nullptr;
    std::unique_ptr<DescriptorLink> link(new DescriptorLink);
    link->socket_ = own(*socket);
    link->take_list(own(*list).get());
    return link;
  }
  return nullptr;
}

void DescriptorLink::take_list(int list_fd) {
  std::string text;
  std::array<char, 65536> buffer{};
  for (off_t at = 0;;) {
    const ssize_t n = ::pread(list_fd, buffer.data(), buffer.size(), at);
    if (n <= 0) break;
    text.append(buffer.data(), static_cast<std::size_t>(n));
    at += n;
  }
  std::istringstream lines(text);
  int fd = -1;
  std::string name;
  MutexLock lock(mutex_);
  while (lines >> fd >> name) left_[name] = own(fd);
}

bool DescriptorLink::has(const std::string& name) const {
  MutexLock lock(mutex_);
  return left_.contains(name);
}

UniqueFd DescriptorLink::take(const std::string& name) {
  MutexLock lock(mutex_);
  const auto it = left_.find(name);
  if (it == left_.end()) return {};
  UniqueFd fd = std::move(it->second);
  left_.erase(it);
  return fd;
}

Result<void> DescriptorLink::keep(const std::string& name, int fd) {
  TRY(send("FDSTOREREMOVE=1\nFDNAME=" + name, -1));
  return send("FDSTORE=1\nFDNAME=" + name, fd);
}

void DescriptorLink::drop(const std::string& name) {
  const auto sent = send("FDSTOREREMOVE=1\nFDNAME=" + name, -1);
  if (sent.has_error()) LOG_WARN("{}", sent.error().message);
}

Result<void> DescriptorLink::tell(const std::string& text) const { return send(text, -1); }

Result<void> DescriptorLink::send(const std::string& text, int fd) const {
  iovec data{const_cast<char*>(text.data()), text.size()};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  alignas(cmsghdr) std::array<char, CMSG_SPACE(sizeof(int))> control{};
  if (fd >= 0) {
    message.msg_control = control.data();
    message.msg_controllen = control.size();
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  }
  ssize_t sent = 0;
  do {
    sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent != static_cast<ssize_t>(text.size()))
    return errno_error("tell '" + text.substr(0, text.find('\n')) + "' to the guardian", errno);
  return {};
}

}  // namespace sluice::server
