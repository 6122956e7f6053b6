#include "tests/unit/replication/raw_peer.h"

#include <poll.h>
#include <sys/socket.h>

#include "base/check.h"

namespace sluice::replication::testing {

RawPeer RawPeer::to_primary(std::uint16_t port) {
  RawPeer peer(connect_to(port));
  peer.send(as_bytes("GET /v1/stream HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: sluice\r\n\r\n"));
  CHECK(peer.read_head().starts_with("HTTP/1.1 101"));
  return peer;
}

std::string RawPeer::read_head() {
  std::string head;
  while (!head.ends_with("\r\n\r\n")) {
    pollfd ready{socket_.get(), POLLIN, 0};
    if (::poll(&ready, 1, 5000) <= 0) break;
    char c = 0;
    if (::recv(socket_.get(), &c, 1, 0) != 1) break;
    head += c;
  }
  return head;
}

void RawPeer::send(ByteView bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (n <= 0) return;
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void RawPeer::send(const Message& message, ByteView payload) {
  Bytes frame;
  append_frame(frame, message, payload);
  send(ByteView(frame));
}

void RawPeer::greet(NodeId node_id) {
  Hello hello;
  hello.node_id = node_id;
  hello.hostname = "raw";
  send(hello);
  Positions none;
  none.last = true;
  send(none);
}

bool RawPeer::fill(std::chrono::milliseconds limit) {
  pollfd ready{socket_.get(), POLLIN, 0};
  if (::poll(&ready, 1, static_cast<int>(limit.count())) <= 0) return false;
  const ByteSpan room = reader_->prepare();
  const ssize_t n = ::recv(socket_.get(), room.data(), room.size(), 0);
  if (n <= 0) return false;
  reader_->commit(static_cast<std::size_t>(n));
  return true;
}

std::optional<Message> RawPeer::read(std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  for (;;) {
    Frame frame;
    const auto there = reader_->next(frame);
    if (there.has_error()) return std::nullopt;
    if (*there) {
      if (std::holds_alternative<Heartbeat>(frame.message)) continue;
      payload_.assign(frame.payload.begin(), frame.payload.end());
      return std::move(frame.message);
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    if (left.count() <= 0 || !fill(left)) return std::nullopt;
  }
}

bool RawPeer::closed(std::chrono::milliseconds limit) {
  const auto deadline = std::chrono::steady_clock::now() + limit;
  std::byte buffer[4096];
  for (;;) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now());
    pollfd ready{socket_.get(), POLLIN, 0};
    if (left.count() <= 0 || ::poll(&ready, 1, static_cast<int>(left.count())) <= 0) return false;
    if (::recv(socket_.get(), buffer, sizeof buffer, 0) <= 0) return true;
  }
}

}  // namespace sluice::replication::testing
