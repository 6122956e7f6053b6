#include "replication/connection.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <array>
#include <boost/asio/buffer.hpp>
#include <boost/asio/completion_condition.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/write.hpp>
#include <deque>
#include <utility>

#include "base/check.h"

namespace sluice::replication {

namespace asio = boost::asio;

namespace {

constexpr std::size_t kBuffersPerWrite = 16;
constexpr auto kFlushTime = std::chrono::seconds(1);

Error closed_error(const boost::system::error_code& code) {
  if (code == asio::error::eof) return make_error(Errc::unavailable, "the peer closed the connection");
  return make_error(Errc::unavailable, "the connection failed: " + code.message());
}

// The address family only matters for asio's bookkeeping.
asio::generic::stream_protocol protocol_of(int fd) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length) != 0) address.ss_family = AF_INET;
  return {address.ss_family, SOCK_STREAM};
}

}  // namespace

Buffer make_buffer(const Message& message) {
  auto bytes = std::make_shared<Bytes>();
  append_frame(*bytes, message);
  return bytes;
}

struct Connection::Impl {
  Impl(EventLoop& event_loop, Handler& frame_handler)
      : socket(event_loop.context()), handler(&frame_handler), flush_timer(event_loop) {}

  asio::generic::stream_protocol::socket socket;
  Handler* handler;  // nullptr: closed, or only flushing
  Timer flush_timer;
  FrameReader reader;
  Bytes early;
  std::array<std::byte, 4096> scratch{};
  std::deque<Buffer> queue;
  std::size_t queued = 0;
  std::size_t writing = 0;  // buffers of the write in flight
  bool flushing = false;
  MonotonicTime heard = std::chrono::steady_clock::now();
  MonotonicTime taken = heard;  // when the peer last took something, or the queue began
  std::uint64_t received = 0;
  std::uint64_t sent = 0;
};

Connection::Connection(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Connection::~Connection() = default;

std::shared_ptr<Connection> Connection::create(EventLoop& loop, UniqueFd socket, Bytes early, Handler& handler) {
  auto impl = std::make_unique<Impl>(loop, handler);
  boost::system::error_code ignored;  // a bad descriptor fails in the first read, with a message
  const auto protocol = protocol_of(socket.get());
  impl->socket.assign(protocol, socket.get(), ignored);
  if (!ignored) socket.release();
  if (protocol.family() != AF_UNIX) impl->socket.set_option(asio::ip::tcp::no_delay(true), ignored);
  impl->socket.non_blocking(true, ignored);
  impl->early = std::move(early);
  return std::shared_ptr<Connection>(new Connection(std::move(impl)));
}

void Connection::start() {
  const auto self = shared_from_this();  // a handler may drop the last other reference
  Bytes early = std::move(impl_->early);
  ByteView rest = early;
  while (!rest.empty()) {
    const std::size_t taken = impl_->reader.feed(rest);
    impl_->received += taken;
    rest = rest.subspan(taken);
    if (!deliver()) return drain({});
  }
  read();
}

void Connection::read() {
  const ByteSpan room = impl_->reader.prepare();
  impl_->socket.async_read_some(
      asio::buffer(room.data(), room.size()),
      [self = shared_from_this()](const boost::system::error_code& error, std::size_t bytes) {
        if (self->impl_->handler == nullptr) return self->drain(error);
        if (error) return self->fail(closed_error(error));
        self->impl_->reader.commit(bytes);
        self->impl_->received += bytes;
        self->impl_->heard = std::chrono::steady_clock::now();
        if (self->deliver()) {
          self->read();
        } else {
          self->drain(error);
        }
      });
}

// While the last frames go out, what the peer still sends is thrown away: closing a socket with unread input makes the
// kernel send a reset, which can overtake them.
void Connection::drain(const boost::system::error_code& error) {
  if (!impl_->flushing) return;
  if (error) return close();
  impl_->socket.async_read_some(
      asio::buffer(impl_->scratch),
      [self = shared_from_this()](const boost::system::error_code& code, std::size_t) { self->drain(code); });
}

// Hands over all frames that are there; false when there is no more reading.
bool Connection::deliver() {
  Frame frame;
  for (;;) {
    const auto more = impl_->reader.next(frame);
    if (more.has_error()) {
      impl_->handler->on_broken(more.error());
      return false;
    }
    if (!*more) return true;
    impl_->handler->on_frame(frame);
    if (impl_->handler == nullptr) return false;
  }
}

void Connection::send(Buffer buffer) {
  if (impl_->handler == nullptr || buffer->empty()) return;
  if (impl_->queue.empty()) impl_->taken = std::chrono::steady_clock::now();
  impl_->queued += buffer->size();
  impl_->queue.push_back(std::move(buffer));
  if (impl_->writing == 0) write();
}

void Connection::write() {
  Impl& c = *impl_;
  std::array<asio::const_buffer, kBuffersPerWrite> buffers;
  c.writing = std::min(c.queue.size(), kBuffersPerWrite);
  for (std::size_t i = 0; i < c.writing; ++i) buffers[i] = asio::const_buffer(c.queue[i]->data(), c.queue[i]->size());
  const auto done = [self = shared_from_this()](const boost::system::error_code& error, std::size_t bytes) {
    Impl& impl = *self->impl_;
    if (error) {
      if (impl.handler != nullptr) self->fail(closed_error(error));
      if (impl.flushing) self->close();
      return;
    }
    impl.queue.erase(impl.queue.begin(), impl.queue.begin() + static_cast<std::ptrdiff_t>(impl.writing));
    impl.writing = 0;
    impl.queued -= bytes;
    impl.sent += bytes;
    if (!impl.queue.empty()) self->write();
    if (impl.handler != nullptr) impl.handler->on_written();
    self->finish_if_flushed();
  };
  // A slow peer takes long for all of it: what counts is that it takes anything.
  const auto progress = [self = shared_from_this()](const boost::system::error_code& error, std::size_t bytes) {
    if (bytes != 0) self->impl_->taken = std::chrono::steady_clock::now();
    return asio::transfer_all()(error, bytes);
  };
  asio::async_write(c.socket, buffers, progress, done);
}

std::size_t Connection::queued_bytes() const { return impl_->queued; }

void Connection::close() {
  impl_->handler = nullptr;
  impl_->flushing = false;
  impl_->flush_timer.cancel();
  boost::system::error_code ignored;  // nothing can be done about a socket that does not close
  impl_->socket.close(ignored);
}

void Connection::close_after(const Message& last) {
  if (impl_->handler == nullptr) return;
  send(last);
  if (impl_->handler == nullptr) return;
  impl_->handler = nullptr;
  impl_->flushing = true;
  impl_->flush_timer.start(kFlushTime, [self = shared_from_this()] { self->close(); });
  finish_if_flushed();
}

void Connection::finish_if_flushed() {
  if (!impl_->flushing || !impl_->queue.empty()) return;
  boost::system::error_code ignored;
  impl_->socket.shutdown(asio::socket_base::shutdown_send, ignored);
}

void Connection::fail(Error error) {
  Handler* const handler = std::exchange(impl_->handler, nullptr);
  close();
  if (handler != nullptr) handler->on_closed(error);
}

MonotonicTime Connection::last_heard() const { return impl_->heard; }
Duration Connection::write_stalled() const {
  return impl_->queue.empty() ? Duration::zero() : Duration(std::chrono::steady_clock::now() - impl_->taken);
}
std::uint64_t Connection::bytes_received() const { return impl_->received; }
std::uint64_t Connection::bytes_sent() const { return impl_->sent; }

}  // namespace sluice::replication
