// The frames of the replication stream as plain structs, and their codec. Layout, order and limits: docs/FORMATS.md;
// wire messages: proto/stream.proto. Bytes in, bytes out: no sockets, no threads.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "base/bytes.h"
#include "base/errors.h"
#include "replication/chain.h"
#include "storage/ids.h"

namespace sluice::replication {

inline constexpr std::uint32_t kMinVersion = 1;
inline constexpr std::uint32_t kMaxVersion = 2;
inline constexpr std::uint32_t kOfferVersion = 2;  ///< from here on a snapshot begins with an OfferRequest

inline constexpr std::size_t kFrameHeader = 8;             ///< u32 message length, u32 CRC-32C of the message
inline constexpr std::size_t kMaxMessage = 1 << 20;        ///< bytes of a frame's message
inline constexpr std::size_t kMaxPayload = 1 << 20;        ///< bytes behind it
inline constexpr std::uint64_t kFrameCost = 128;           ///< what a frame counts in the window, besides its payload
inline constexpr std::uint64_t kMaxWindow = 64u << 20;     ///< largest window a replica accepts
inline constexpr std::size_t kMaxText = 4096;              ///< host names, reasons
inline constexpr std::size_t kMaxDatabases = 1'000'000;    ///< per connection
inline constexpr std::size_t kPositionsPerFrame = 512;       ///< what is sent
inline constexpr std::size_t kMaxPositionsPerFrame = 4096;   ///< what is accepted

struct Hello {
  std::uint32_t min_version = kMinVersion;
  std::uint32_t max_version = kMaxVersion;
  NodeId node_id;
  std::string hostname;
};
struct Positions {
  struct Entry {
    std::string name;
    Pos pos;
    Epoch epoch;
    bool busy = false;
  };
  std::vector<Entry> databases;
  bool last = false;
};
struct Welcome {
  std::uint32_t version = 0;
  NodeId node_id;
  std::string hostname;
  Epoch epoch;
  std::uint64_t window_bytes = 0;
  std::string primary_hostname{};  ///< empty: the sender is the primary
  NodePath path{};                 ///< up to the sender
};
struct DatabaseStart {
  std::uint32_t id = 0;
  std::string name;
  std::uint32_t attempt = 0;
  Pos from;
  bool snapshot = false;
  Pos newest;
};
struct DatabaseUnknown {
  std::string name;
};
/// With `whole`: the payload is the image. Else ChangeSetData and ChangeSetEnd follow.
struct ChangeSet {
  std::uint32_t id = 0;
  bool whole = false;
  Epoch epoch;
  Pos pre;
  Pos post;
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;
  std::int64_t timestamp_ms = 0;
  std::uint64_t length = 0;
};
struct ChangeSetData {
  std::uint32_t id = 0;
  std::uint64_t offset = 0;
};
struct ChangeSetEnd {
  std::uint32_t id = 0;
  Txid txid;
};
struct SnapshotBegin {
  std::uint32_t id = 0;
  std::uint32_t page_size = 0;
  std::uint32_t pages = 0;
  bool compared = false;
  std::uint32_t differing = 0;
};
struct SnapshotPages {
  std::uint32_t id = 0;
  bool lz4 = false;
  std::uint32_t raw_length = 0;
  std::vector<Pgno> pgnos;
};
struct SnapshotDone {
  std::uint32_t id = 0;
  Pos pos;
  Epoch epoch;
  std::uint32_t page_size = 0;
  std::uint32_t commit = 0;
  std::int64_t timestamp_ms = 0;
};
struct SnapshotAbort {
  std::uint32_t id = 0;
  std::string reason;
};
struct Ready {};
struct Ack {
  std::uint32_t id = 0;
  std::uint32_t attempt = 0;
  Txid durable;
  Txid applied;
  std::uint64_t consumed = 0;
};
struct ResyncRequest {
  std::string name;
  std::uint32_t attempt = 0;
  Pos pos;
  bool snapshot = false;
  std::string reason;
};
struct OfferRequest {
  std::uint32_t id = 0;
};
struct PageSumsRequest {
  std::uint32_t id = 0;
  Pgno first;
  std::uint32_t count = 0;
};
/// Payload: block sums, u64 big-endian each.
struct Offer {
  std::uint32_t id = 0;
  std::uint32_t attempt = 0;
  std::uint32_t page_size = 0;
  std::uint32_t pages = 0;
  std::uint32_t block_pages = 0;
};
/// Payload: page checksums, u64 big-endian each.
struct PageSums {
  std::uint32_t id = 0;
  std::uint32_t attempt = 0;
  Pgno first;
};
struct Heartbeat {
  std::int64_t wall_ms = 0;
  std::uint64_t behind_ms = 0;
  std::string primary_hostname{};  ///< from the node above only; as in Welcome
  NodePath path{};
};
enum class WireError { internal, protocol, version, stale_epoch, self, too_large, busy };
struct ErrorFrame {
  WireError code = WireError::internal;
  std::string text;
};
struct Goodbye {
  std::string reason;
};
/// A kind this version does not know: skipped (proto/README.md, rule 3).
struct Unknown {};

using Message = std::variant<Unknown, Hello, Positions, Welcome, DatabaseStart, DatabaseUnknown, ChangeSet, ChangeSetData,
                             ChangeSetEnd, SnapshotBegin, SnapshotPages, SnapshotDone, SnapshotAbort, Ready, Ack,
                             ResyncRequest, OfferRequest, PageSumsRequest, Offer, PageSums, Heartbeat, ErrorFrame, Goodbye>;

struct Frame {
  Message message;
  ByteView payload;          ///< valid until the reader is used again
  bool payload_intact = true;  ///< its CRC fits; when not, the frame's own fields can still be trusted
};

/// Name of the message's kind, for errors.
std::string kind_name(const Message& message);
/// The database number a frame is about, if it is about one (primary to replica).
std::uint32_t database_id(const Message& message);  ///< 0: none
/// Sums as payload, and back.
Bytes encode_sums(std::span<const std::uint64_t> sums);
std::vector<std::uint64_t> decode_sums(ByteView payload);
/// What a frame counts in the window of its database.
inline std::uint64_t frame_cost(std::size_t payload) { return payload + kFrameCost; }

/// Appends one frame. CHECKs the limits: only call with what keeps them.
void append_frame(Bytes& out, const Message& message, ByteView payload = {});

/// Frames an encoded message as it is, whatever it holds: for tests and fuzzing.
void append_raw_frame(Bytes& out, ByteView message);

/// Cuts a byte stream into frames and checks each by itself. Input is hostile; memory is bounded by the limits.
class FrameReader {
 public:
  FrameReader();
  ~FrameReader();
  FrameReader(const FrameReader&) = delete;
  FrameReader& operator=(const FrameReader&) = delete;

  /// Room to read into, not empty; then say how much came.
  ByteSpan prepare();
  void commit(std::size_t bytes);
  /// prepare and commit in one: takes as much of `bytes` as there is room for (something, when next() said false).
  std::size_t feed(ByteView bytes);
  /// The next frame, or false: more bytes are needed. Errc::protocol, Errc::too_large, Errc::corrupt: the stream cannot be
  /// read any further.
  Result<bool> next(Frame& out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace sluice::replication
