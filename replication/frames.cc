#include "replication/frames.h"

#include <fmt/format.h>
#include <isa-l/crc.h>

#include <algorithm>
#include <utility>

#include "base/check.h"
#include "proto/stream.pb.h"
#include "storage/resync.h"

namespace sluice::replication {
namespace {

constexpr std::size_t kInitialBuffer = 64 * 1024;
constexpr std::size_t kGrownBuffer = 512 * 1024;

std::uint32_t crc32c(ByteView data) {
  // ISA-L takes a non-const pointer but only reads.
  auto* bytes = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(data.data()));
  return ~crc32_iscsi(bytes, static_cast<int>(data.size()), ~0u);
}

Pos from_wire(const stream::Pos& pos) { return {Txid(pos.txid()), Checksum(pos.checksum())}; }
void to_wire(const Pos& pos, stream::Pos* out) {
  out->set_txid(pos.txid.value());
  out->set_checksum(pos.checksum.value());
}

// --- encoding: one overload a message ---

void put(const Unknown&, stream::Frame&) { CHECK(false); }
void put(const Hello& m, stream::Frame& f) {
  auto* out = f.mutable_hello();
  out->set_min_version(m.min_version);
  out->set_max_version(m.max_version);
  out->set_node_id(m.node_id.value());
  out->set_hostname(m.hostname);
}
void put(const Positions& m, stream::Frame& f) {
  auto* out = f.mutable_positions();
  out->set_last(m.last);
  for (const auto& entry : m.databases) {
    auto* e = out->add_databases();
    e->set_name(entry.name);
    to_wire(entry.pos, e->mutable_pos());
    e->set_epoch(entry.epoch.value());
    e->set_busy(entry.busy);
  }
}
void put(const Welcome& m, stream::Frame& f) {
  auto* out = f.mutable_welcome();
  out->set_version(m.version);
  out->set_node_id(m.node_id.value());
  out->set_hostname(m.hostname);
  out->set_epoch(m.epoch.value());
  out->set_window_bytes(m.window_bytes);
  out->set_primary_hostname(m.primary_hostname);
  for (const NodeId node : m.path) out->add_path(node.value());
}
void put(const DatabaseStart& m, stream::Frame& f) {
  auto* out = f.mutable_database_start();
  out->set_id(m.id);
  out->set_name(m.name);
  out->set_attempt(m.attempt);
  to_wire(m.from, out->mutable_from());
  out->set_snapshot(m.snapshot);
  to_wire(m.newest, out->mutable_newest());
}
void put(const DatabaseUnknown& m, stream::Frame& f) { f.mutable_database_unknown()->set_name(m.name); }
void put(const ChangeSet& m, stream::Frame& f) {
  auto* out = m.whole ? f.mutable_change_set() : f.mutable_change_set_begin();
  out->set_id(m.id);
  out->set_epoch(m.epoch.value());
  to_wire(m.pre, out->mutable_pre());
  to_wire(m.post, out->mutable_post());
  out->set_page_size(m.page_size);
  out->set_commit(m.commit);
  out->set_timestamp_ms(m.timestamp_ms);
  out->set_length(m.length);
}
void put(const ChangeSetData& m, stream::Frame& f) {
  f.mutable_change_set_data()->set_id(m.id);
  f.mutable_change_set_data()->set_offset(m.offset);
}
void put(const ChangeSetEnd& m, stream::Frame& f) {
  f.mutable_change_set_end()->set_id(m.id);
  f.mutable_change_set_end()->set_txid(m.txid.value());
}
void put(const SnapshotBegin& m, stream::Frame& f) {
  auto* out = f.mutable_snapshot_begin();
  out->set_id(m.id);
  out->set_page_size(m.page_size);
  out->set_pages(m.pages);
  out->set_compared(m.compared);
  out->set_differing(m.differing);
}
void put(const SnapshotPages& m, stream::Frame& f) {
  auto* out = f.mutable_snapshot_pages();
  out->set_id(m.id);
  out->set_encoding(m.lz4 ? stream::ENCODING_LZ4_BLOCK : stream::ENCODING_RAW);
  out->set_raw_length(m.raw_length);
  for (const Pgno pgno : m.pgnos) out->add_pgnos(pgno.value());
}
void put(const SnapshotDone& m, stream::Frame& f) {
  auto* out = f.mutable_snapshot_end();
  out->set_id(m.id);
  to_wire(m.pos, out->mutable_pos());
  out->set_epoch(m.epoch.value());
  out->set_page_size(m.page_size);
  out->set_commit(m.commit);
  out->set_timestamp_ms(m.timestamp_ms);
}
void put(const SnapshotAbort& m, stream::Frame& f) {
  f.mutable_snapshot_abort()->set_id(m.id);
  f.mutable_snapshot_abort()->set_reason(m.reason);
}
void put(const Ready&, stream::Frame& f) { f.mutable_ready(); }
void put(const Ack& m, stream::Frame& f) {
  auto* out = f.mutable_ack();
  out->set_id(m.id);
  out->set_attempt(m.attempt);
  out->set_durable(m.durable.value());
  out->set_applied(m.applied.value());
  out->set_consumed(m.consumed);
}
void put(const ResyncRequest& m, stream::Frame& f) {
  auto* out = f.mutable_resync_request();
  out->set_name(m.name);
  out->set_attempt(m.attempt);
  to_wire(m.pos, out->mutable_pos());
  out->set_snapshot(m.snapshot);
  out->set_reason(m.reason);
}
void put(const OfferRequest& m, stream::Frame& f) { f.mutable_offer_request()->set_id(m.id); }
void put(const PageSumsRequest& m, stream::Frame& f) {
  auto* out = f.mutable_page_sums_request();
  out->set_id(m.id);
  out->set_first(m.first.value());
  out->set_count(m.count);
}
void put(const Offer& m, stream::Frame& f) {
  auto* out = f.mutable_offer();
  out->set_id(m.id);
  out->set_attempt(m.attempt);
  out->set_page_size(m.page_size);
  out->set_pages(m.pages);
  out->set_block_pages(m.block_pages);
}
void put(const PageSums& m, stream::Frame& f) {
  auto* out = f.mutable_page_sums();
  out->set_id(m.id);
  out->set_attempt(m.attempt);
  out->set_first(m.first.value());
}
void put(const Heartbeat& m, stream::Frame& f) {
  f.mutable_heartbeat()->set_wall_ms(m.wall_ms);
  f.mutable_heartbeat()->set_behind_ms(m.behind_ms);
  f.mutable_heartbeat()->set_primary_hostname(m.primary_hostname);
  for (const NodeId node : m.path) f.mutable_heartbeat()->add_path(node.value());
}
void put(const ErrorFrame& m, stream::Frame& f) {
  f.mutable_error()->set_code(static_cast<stream::ErrorCode>(m.code));
  f.mutable_error()->set_text(m.text);
}
void put(const Goodbye& m, stream::Frame& f) { f.mutable_goodbye()->set_reason(m.reason); }

// --- decoding ---

Error bad(std::string what) { return make_error(Errc::protocol, "peer broke the protocol: " + std::move(what)); }

template <class Ids>
Result<NodePath> path_from_wire(const Ids& ids) {
  if (static_cast<std::size_t>(ids.size()) > kMaxPath) return bad("a path of too many nodes");
  NodePath path;
  for (const auto id : ids) path.emplace_back(id);
  return path;
}

Result<void> check_text(const std::string& text, std::string_view what, std::size_t limit = kMaxText) {
  if (text.size() > limit) return bad(fmt::format("{} of {} bytes, at most {} are allowed", what, text.size(), limit));
  return {};
}

// Lengths only; storage checks what a name may be.
Result<void> check_name(const std::string& name) {
  if (name.empty()) return bad("an empty database name");
  return check_text(name, "a database name", 1024);
}

Result<void> check_id(std::uint32_t id) {
  if (id == 0) return bad("database number 0");
  return {};
}

Result<Message> decode_positions(const stream::Positions& m) {
  if (static_cast<std::size_t>(m.databases_size()) > kMaxPositionsPerFrame) return bad("too many positions in a frame");
  Positions out;
  out.last = m.last();
  out.databases.reserve(static_cast<std::size_t>(m.databases_size()));
  for (const auto& e : m.databases()) {
    TRY(check_name(e.name()));
    out.databases.push_back({e.name(), from_wire(e.pos()), Epoch(e.epoch()), e.busy()});
  }
  return Message(std::move(out));
}

Result<Message> decode_change_set(const stream::ChangeSet& m, bool whole, std::size_t payload) {
  TRY(check_id(m.id()));
  ChangeSet out{m.id(),           whole,           Epoch(m.epoch()), from_wire(m.pre()), from_wire(m.post()),
                m.page_size(),    m.commit(),      m.timestamp_ms(), m.length()};
  if (!valid_page_size(out.page_size)) return bad(fmt::format("a change set with page size {}", out.page_size));
  if (out.length == 0) return bad("a change set without an image");
  if (out.post.txid <= out.pre.txid) return bad("a change set whose position does not go forward");
  if (whole && out.length != payload) return bad("a change set whose length is not its payload's");
  if (!whole && payload != 0) return bad("the beginning of a change set with a payload");
  return Message(out);
}

Result<Message> decode_pages(const stream::SnapshotPages& m, std::size_t payload) {
  TRY(check_id(m.id()));
  if (m.raw_length() == 0 || m.raw_length() > kMaxPayload) return bad("snapshot pages of a wrong length");
  if (m.pgnos_size() == 0 || static_cast<std::size_t>(m.pgnos_size()) > kMaxPayload / 512) {
    return bad("a wrong number of snapshot pages");
  }
  SnapshotPages out;
  out.id = m.id();
  switch (m.encoding()) {
    case stream::ENCODING_RAW: break;
    case stream::ENCODING_LZ4_BLOCK: out.lz4 = true; break;
    default: return bad("snapshot pages in an encoding this node does not know");
  }
  if (!out.lz4 && payload != m.raw_length()) return bad("snapshot pages whose length is not their payload's");
  out.raw_length = m.raw_length();
  if (out.raw_length % static_cast<std::uint32_t>(m.pgnos_size()) != 0) return bad("snapshot pages of a broken size");
  out.pgnos.reserve(static_cast<std::size_t>(m.pgnos_size()));
  for (const std::uint32_t pgno : m.pgnos()) {
    if (pgno == 0) return bad("snapshot page number 0");
    out.pgnos.push_back(Pgno(pgno));
  }
  return Message(std::move(out));
}

Result<Message> decode_database(const stream::DatabaseStart& m) {
  TRY(check_id(m.id()));
  TRY(check_name(m.name()));
  return Message(DatabaseStart{m.id(), m.name(), m.attempt(), from_wire(m.from()), m.snapshot(),
                               from_wire(m.newest())});
}

Result<Message> decode_snapshot_end(const stream::SnapshotEnd& m) {
  TRY(check_id(m.id()));
  if (m.commit() != 0 && !valid_page_size(m.page_size())) return bad("a snapshot with a broken page size");
  return Message(SnapshotDone{m.id(), from_wire(m.pos()), Epoch(m.epoch()), m.page_size(), m.commit(),
                              m.timestamp_ms()});
}

Result<Message> decode_sums_request(const stream::PageSumsRequest& m) {
  TRY(check_id(m.id()));
  const bool fits = m.first() != 0 && m.count() != 0 && m.count() <= storage::kMaxPageSums &&
                    std::uint64_t{m.first()} + m.count() - 1 <= 0xffffffffu;
  if (!fits) return bad(fmt::format("asks for the checksums of {} pages from {} on", m.count(), m.first()));
  return Message(PageSumsRequest{m.id(), Pgno(m.first()), m.count()});
}

Result<Message> decode_offer(const stream::Offer& m, std::size_t payload) {
  TRY(check_id(m.id()));
  const Offer out{m.id(), m.attempt(), m.page_size(), m.pages(), m.block_pages()};
  if (out.pages == 0) {
    if (payload != 0) return bad("an offer of nothing with a payload");
    return Message(out);
  }
  if (!valid_page_size(out.page_size)) return bad(fmt::format("an offer with page size {}", out.page_size));
  if (!storage::valid_block_pages(out.block_pages)) return bad(fmt::format("an offer with blocks of {}", out.block_pages));
  const std::uint64_t blocks = storage::PageOffer::block_count(out.pages, out.block_pages);
  if (blocks > storage::kMaxOfferBlocks || payload != blocks * 8) {
    return bad(fmt::format("an offer of {} blocks in {} bytes", blocks, payload));
  }
  return Message(out);
}

Result<Message> decode_page_sums(const stream::PageSums& m, std::size_t payload) {
  TRY(check_id(m.id()));
  if (m.first() == 0 || payload == 0 || payload % 8 != 0 || payload / 8 > storage::kMaxPageSums) {
    return bad(fmt::format("page checksums from {} on in {} bytes", m.first(), payload));
  }
  return Message(PageSums{m.id(), m.attempt(), Pgno(m.first())});
}

WireError wire_error(stream::ErrorCode code) {
  return code >= stream::ERROR_INTERNAL && code <= stream::ERROR_BUSY ? static_cast<WireError>(code)
                                                                      : WireError::internal;
}

// Frames that are not about the content of one database.
Result<Message> decode_general(const stream::Frame& f) {
  switch (f.kind_case()) {
    case stream::Frame::kHello: {
      TRY(check_text(f.hello().hostname(), "a host name"));
      return Message(Hello{f.hello().min_version(), f.hello().max_version(), NodeId(f.hello().node_id()),
                           f.hello().hostname()});
    }
    case stream::Frame::kPositions: return decode_positions(f.positions());
    case stream::Frame::kWelcome: {
      const auto& m = f.welcome();
      TRY(check_text(m.hostname(), "a host name"));
      TRY(check_text(m.primary_hostname(), "a host name"));
      TRY_ASSIGN(NodePath path, path_from_wire(m.path()));
      return Message(Welcome{m.version(), NodeId(m.node_id()), m.hostname(), Epoch(m.epoch()), m.window_bytes(),
                             m.primary_hostname(), std::move(path)});
    }
    case stream::Frame::kReady: return Message(Ready{});
    case stream::Frame::kAck: {
      const auto& m = f.ack();
      return Message(Ack{m.id(), m.attempt(), Txid(m.durable()), Txid(m.applied()), m.consumed()});
    }
    case stream::Frame::kResyncRequest: {
      const auto& m = f.resync_request();
      TRY(check_name(m.name()));
      TRY(check_text(m.reason(), "a reason"));
      return Message(ResyncRequest{m.name(), m.attempt(), from_wire(m.pos()), m.snapshot(), m.reason()});
    }
    case stream::Frame::kHeartbeat: {
      const auto& m = f.heartbeat();
      TRY(check_text(m.primary_hostname(), "a host name"));
      TRY_ASSIGN(NodePath path, path_from_wire(m.path()));
      return Message(Heartbeat{m.wall_ms(), m.behind_ms(), m.primary_hostname(), std::move(path)});
    }
    case stream::Frame::kError: {
      TRY(check_text(f.error().text(), "an error text"));
      return Message(ErrorFrame{wire_error(f.error().code()), f.error().text()});
    }
    case stream::Frame::kGoodbye: {
      TRY(check_text(f.goodbye().reason(), "a reason"));
      return Message(Goodbye{f.goodbye().reason()});
    }
    default: return Message(Unknown{});
  }
}

Result<Message> decode(const stream::Frame& f) {
  const std::size_t payload = f.payload_length();
  switch (f.kind_case()) {
    case stream::Frame::kDatabaseStart: return decode_database(f.database_start());
    case stream::Frame::kDatabaseUnknown: {
      TRY(check_name(f.database_unknown().name()));
      return Message(DatabaseUnknown{f.database_unknown().name()});
    }
    case stream::Frame::kChangeSet: return decode_change_set(f.change_set(), true, payload);
    case stream::Frame::kChangeSetBegin: return decode_change_set(f.change_set_begin(), false, payload);
    case stream::Frame::kChangeSetData: {
      TRY(check_id(f.change_set_data().id()));
      if (payload == 0) return bad("an empty piece of a change set");
      return Message(ChangeSetData{f.change_set_data().id(), f.change_set_data().offset()});
    }
    case stream::Frame::kChangeSetEnd: {
      TRY(check_id(f.change_set_end().id()));
      return Message(ChangeSetEnd{f.change_set_end().id(), Txid(f.change_set_end().txid())});
    }
    case stream::Frame::kSnapshotBegin: {
      const auto& m = f.snapshot_begin();
      TRY(check_id(m.id()));
      if (m.pages() != 0 && !valid_page_size(m.page_size())) return bad("a snapshot with a broken page size");
      return Message(SnapshotBegin{m.id(), m.page_size(), m.pages(), m.compared(), m.differing()});
    }
    case stream::Frame::kSnapshotPages: return decode_pages(f.snapshot_pages(), payload);
    case stream::Frame::kOfferRequest: {
      TRY(check_id(f.offer_request().id()));
      return Message(OfferRequest{f.offer_request().id()});
    }
    case stream::Frame::kPageSumsRequest: return decode_sums_request(f.page_sums_request());
    case stream::Frame::kOffer: return decode_offer(f.offer(), payload);
    case stream::Frame::kPageSums: return decode_page_sums(f.page_sums(), payload);
    case stream::Frame::kSnapshotEnd: return decode_snapshot_end(f.snapshot_end());
    case stream::Frame::kSnapshotAbort: {
      TRY(check_id(f.snapshot_abort().id()));
      TRY(check_text(f.snapshot_abort().reason(), "a reason"));
      return Message(SnapshotAbort{f.snapshot_abort().id(), f.snapshot_abort().reason()});
    }
    default: return decode_general(f);
  }
}

}  // namespace

std::string kind_name(const Message& message) {
  static constexpr const char* kNames[] = {
      "Unknown",      "Hello",         "Positions",     "Welcome",      "DatabaseStart", "DatabaseUnknown", "ChangeSet",
      "ChangeSetData", "ChangeSetEnd", "SnapshotBegin", "SnapshotPages", "SnapshotEnd",  "SnapshotAbort",   "Ready",
      "Ack",          "ResyncRequest", "OfferRequest",  "PageSumsRequest", "Offer",     "PageSums",        "Heartbeat",     "Error",        "Goodbye"};
  static_assert(std::size(kNames) == std::variant_size_v<Message>);
  return kNames[message.index()];
}

std::uint32_t database_id(const Message& message) {
  return std::visit(
      [](const auto& m) -> std::uint32_t {
        if constexpr (requires { m.id; }) {
          return m.id;
        } else {
          return 0;
        }
      },
      message);
}

Bytes encode_sums(std::span<const std::uint64_t> sums) {
  Bytes out(sums.size() * 8);
  for (std::size_t i = 0; i < sums.size(); ++i) store_be<std::uint64_t>(out.data() + 8 * i, sums[i]);
  return out;
}

std::vector<std::uint64_t> decode_sums(ByteView payload) {
  std::vector<std::uint64_t> sums(payload.size() / 8);
  for (std::size_t i = 0; i < sums.size(); ++i) sums[i] = load_be<std::uint64_t>(payload.data() + 8 * i);
  return sums;
}

void append_frame(Bytes& out, const Message& message, ByteView payload) {
  CHECK(payload.size() <= kMaxPayload);
  thread_local stream::Frame frame;  // keeps its allocations
  frame.Clear();
  frame.set_payload_length(static_cast<std::uint32_t>(payload.size()));
  if (!payload.empty()) frame.set_payload_crc(crc32c(payload));
  std::visit([](const auto& m) { put(m, frame); }, message);
  const std::size_t length = frame.ByteSizeLong();
  CHECK(length <= kMaxMessage);
  const std::size_t start = out.size();
  out.resize(start + kFrameHeader + length);
  std::byte* const header = out.data() + start;
  frame.SerializeWithCachedSizesToArray(reinterpret_cast<std::uint8_t*>(header + kFrameHeader));
  store_be<std::uint32_t>(header, static_cast<std::uint32_t>(length));
  store_be<std::uint32_t>(header + 4, crc32c({header + kFrameHeader, length}));
  out.insert(out.end(), payload.begin(), payload.end());
}

void append_raw_frame(Bytes& out, ByteView message) {
  std::byte header[kFrameHeader];
  store_be<std::uint32_t>(header, static_cast<std::uint32_t>(message.size()));
  store_be<std::uint32_t>(header + 4, crc32c(message));
  out.insert(out.end(), std::begin(header), std::end(header));
  out.insert(out.end(), message.begin(), message.end());
}

struct FrameReader::Impl {
  Bytes buffer = Bytes(kInitialBuffer);
  std::size_t begin = 0;
  std::size_t end = 0;
  std::size_t parsed = 0;   // bytes of header and message of the frame in `frame`; 0: not parsed yet
  std::size_t needed = kFrameHeader;  // bytes from `begin` until the next step
  stream::Frame frame;
};

FrameReader::FrameReader() : impl_(std::make_unique<Impl>()) {}
FrameReader::~FrameReader() = default;

ByteSpan FrameReader::prepare() {
  Impl& r = *impl_;
  if (r.begin == r.end) r.begin = r.end = 0;
  if (r.buffer.size() - r.begin < r.needed || r.end == r.buffer.size()) {
    std::copy(r.buffer.begin() + static_cast<std::ptrdiff_t>(r.begin),
              r.buffer.begin() + static_cast<std::ptrdiff_t>(r.end), r.buffer.begin());
    r.end -= r.begin;
    r.begin = 0;
    if (r.buffer.size() <= r.needed) r.buffer.resize(std::max(r.needed + kFrameHeader, kGrownBuffer));
  }
  return ByteSpan(r.buffer).subspan(r.end);
}

void FrameReader::commit(std::size_t bytes) {
  CHECK(bytes <= impl_->buffer.size() - impl_->end);
  impl_->end += bytes;
}

std::size_t FrameReader::feed(ByteView bytes) {
  const ByteSpan room = prepare();
  const std::size_t n = std::min(room.size(), bytes.size());
  std::copy_n(bytes.begin(), n, room.begin());
  commit(n);
  return n;
}

Result<bool> FrameReader::next(Frame& out) {
  Impl& r = *impl_;
  const std::byte* const data = r.buffer.data() + r.begin;
  const std::size_t available = r.end - r.begin;
  if (available < r.needed) return false;
  if (r.parsed == 0) {
    const std::size_t length = load_be<std::uint32_t>(data);
    if (length > kMaxMessage) {
      return make_error(Errc::too_large, fmt::format("peer sent a message of {} bytes, at most {} are allowed", length,
                                                     kMaxMessage));
    }
    r.needed = kFrameHeader + length;
    if (available < r.needed) return false;
    if (crc32c({data + kFrameHeader, length}) != load_be<std::uint32_t>(data + 4)) {
      return make_error(Errc::corrupt, "a message arrived damaged (its CRC does not fit)");
    }
    if (!r.frame.ParseFromArray(data + kFrameHeader, static_cast<int>(length))) return bad("a message does not parse");
    if (r.frame.payload_length() > kMaxPayload) {
      return make_error(Errc::too_large, fmt::format("peer sent a payload of {} bytes, at most {} are allowed",
                                                     r.frame.payload_length(), kMaxPayload));
    }
    r.parsed = r.needed;
    r.needed += r.frame.payload_length();
    if (available < r.needed) return false;
  }
  out.payload = ByteView(data + r.parsed, r.frame.payload_length());
  out.payload_intact = out.payload.empty() || crc32c(out.payload) == r.frame.payload_crc();
  TRY_ASSIGN(out.message, decode(r.frame));
  r.begin += r.needed;
  r.parsed = 0;
  r.needed = kFrameHeader;
  return true;
}

}  // namespace sluice::replication
