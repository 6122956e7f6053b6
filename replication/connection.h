// One stream connection after the HTTP upgrade: frames in, buffers of frames out. Used by both sides. Everything here
// happens on the event loop's thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/async.h"
#include "base/bytes.h"
#include "base/fd.h"
#include "replication/frames.h"

namespace boost::system {
class error_code;
}

namespace sluice::replication {

/// Encoded frames; shared, because several connections may send the same ones.
using Buffer = std::shared_ptr<const Bytes>;

Buffer make_buffer(const Message& message);

class Connection : public std::enable_shared_from_this<Connection> {
 public:
  class Handler {
   public:
    virtual ~Handler() = default;
    /// May call send and close.
    virtual void on_frame(Frame& frame) = 0;
    /// Something was written: queued_bytes() went down.
    virtual void on_written() = 0;
    /// The peer broke the framing: nothing more is read. To be answered with close() or close_after().
    virtual void on_broken(const Error& error) = 0;
    /// The peer closed, or the network failed. The last call. Not called after close().
    virtual void on_closed(const Error& error) = 0;
  };

  /// `early`: bytes that were read already. The handler must outlive the connection or call close() first.
  static std::shared_ptr<Connection> create(EventLoop& loop, UniqueFd socket, Bytes early, Handler& handler);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  /// Starts reading.
  void start();
  /// Queues; written in order. Dropped after close().
  void send(Buffer buffer);
  void send(const Message& message) { send(make_buffer(message)); }
  std::size_t queued_bytes() const;
  /// Closes at once. No more calls to the handler.
  void close();
  /// The same, but lets what is queued and `last` go out first (at most a second).
  void close_after(const Message& last);

  MonotonicTime last_heard() const;
  /// How long the peer has taken nothing of what is queued; zero: nothing is.
  Duration write_stalled() const;
  std::uint64_t bytes_received() const;
  std::uint64_t bytes_sent() const;

 private:
  struct Impl;
  explicit Connection(std::unique_ptr<Impl> impl);
  void read();
  void drain(const boost::system::error_code& error);
  bool deliver();
  void write();
  void finish_if_flushed();
  void fail(Error error);

  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::replication
