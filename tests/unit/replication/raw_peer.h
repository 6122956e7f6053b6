// One end of a stream spoken by hand: to say what a well-behaved peer never would.
#pragma once

#include <optional>

#include "replication/frames.h"
#include "tests/unit/replication/test_primary.h"

namespace sluice::replication::testing {

class RawPeer {
 public:
  explicit RawPeer(UniqueFd socket) : socket_(std::move(socket)) {}
  /// Connects and asks for the upgrade, as a replica.
  static RawPeer to_primary(std::uint16_t port);

  /// Reads up to the empty line (an HTTP request or answer).
  std::string read_head();
  void send(ByteView bytes);
  void send(const Message& message, ByteView payload = {});
  /// Hello and an empty list.
  void greet(NodeId node_id = NodeId(77));
  /// The next frame but heartbeats; nullopt: closed, or nothing within the limit.
  std::optional<Message> read(std::chrono::milliseconds limit = std::chrono::seconds(10));
  /// Reads until a frame of that kind came; nullopt as above.
  template <class M>
  std::optional<M> read_until(std::chrono::milliseconds limit = std::chrono::seconds(10)) {
    while (auto message = read(limit))
      if (M* found = std::get_if<M>(&*message)) return *found;
    return std::nullopt;
  }
  /// The peer has closed.
  bool closed(std::chrono::milliseconds limit = std::chrono::seconds(10));
  Bytes& payload() { return payload_; }

 private:
  bool fill(std::chrono::milliseconds limit);

  UniqueFd socket_;
  std::unique_ptr<FrameReader> reader_ = std::make_unique<FrameReader>();
  Bytes payload_;  // of the last frame read
};

}  // namespace sluice::replication::testing
