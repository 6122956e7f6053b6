// The frame codec: everything survives the way, and nothing hostile gets past it.
#include "replication/frames.h"

#include <gtest/gtest.h>

#include <random>

namespace sluice::replication {
namespace {

Bytes encode(const Message& message, ByteView payload = {}) {
  Bytes out;
  append_frame(out, message, payload);
  return out;
}

void feed(FrameReader& reader, ByteView bytes) {
  while (!bytes.empty()) bytes = bytes.subspan(reader.feed(bytes));
}

// One frame, given whole.
Result<Frame> read_one(FrameReader& reader, ByteView bytes) {
  Frame frame;
  for (;;) {
    bytes = bytes.subspan(reader.feed(bytes));
    TRY_ASSIGN(const bool there, reader.next(frame));
    if (there) return frame;
    if (bytes.empty()) return make_error(Errc::not_found, "incomplete");
  }
}

Errc error_of(const Message& message, ByteView payload = {}) {
  FrameReader reader;
  const auto frame = read_one(reader, encode(message, payload));
  return frame.has_error() ? frame.error().code : Errc::exists;
}

ChangeSet good_change_set(bool whole, std::uint64_t length) {
  ChangeSet m;
  m.id = 3;
  m.whole = whole;
  m.epoch = Epoch(9);
  m.pre = {Txid(4), Checksum(5)};
  m.post = {Txid(6), Checksum(7)};
  m.page_size = 4096;
  m.commit = 17;
  m.timestamp_ms = -5;
  m.length = length;
  return m;
}

TEST(Frames, ChangeSetSurvives) {
  const Bytes payload(1000, std::byte{42});
  FrameReader reader;
  const auto frame = read_one(reader, encode(good_change_set(true, payload.size()), payload));
  ASSERT_TRUE(frame.has_value()) << frame.error().message;
  const auto& m = std::get<ChangeSet>(frame->message);
  EXPECT_TRUE(m.whole);
  EXPECT_EQ(m.id, 3u);
  EXPECT_EQ(m.epoch, Epoch(9));
  EXPECT_EQ(m.pre, (Pos{Txid(4), Checksum(5)}));
  EXPECT_EQ(m.post, (Pos{Txid(6), Checksum(7)}));
  EXPECT_EQ(m.page_size, 4096u);
  EXPECT_EQ(m.commit, 17u);
  EXPECT_EQ(m.timestamp_ms, -5);
  EXPECT_EQ(Bytes(frame->payload.begin(), frame->payload.end()), payload);
  EXPECT_TRUE(frame->payload_intact);
}

// File names are bytes, and messages quote them: one of them must not make a frame unreadable.
TEST(Frames, TextsNeedNotBeUtf8) {
  const std::string odd = "caf\xe9 \xff\xfe.db";
  const Positions positions{{{odd, {Txid(1), Checksum(2)}, Epoch(3), false}}, true};
  const std::vector<Message> all = {positions,
                                    Hello{1, 1, NodeId(5), odd},
                                    Welcome{1, NodeId(6), odd, Epoch(1), 4096},
                                    DatabaseStart{1, odd, 0, {}, false, {}},
                                    DatabaseUnknown{odd},
                                    SnapshotAbort{1, odd},
                                    ResyncRequest{odd, 1, {}, false, odd},
                                    ErrorFrame{WireError::internal, odd},
                                    Goodbye{odd}};
  for (const Message& message : all) {
    FrameReader reader;
    const auto frame = read_one(reader, encode(message));
    ASSERT_TRUE(frame.has_value()) << kind_name(message) << ": " << frame.error().message;
    EXPECT_EQ(kind_name(frame->message), kind_name(message));
  }
  FrameReader reader;
  const auto frame = read_one(reader, encode(DatabaseUnknown{odd}));
  EXPECT_EQ(std::get<DatabaseUnknown>(frame->message).name, odd);
}

TEST(Frames, EveryKindSurvives) {
  const Positions positions{{{"a/b.db", {Txid(1), Checksum(2)}, Epoch(3), true}}, true};
  const std::vector<Message> all = {
      Hello{1, 1, NodeId(7), "host"},
      positions,
      Welcome{1, NodeId(8), "primary", Epoch(2), 1 << 20},
      DatabaseStart{1, "a.db", 2, {Txid(3), Checksum(4)}, true, {Txid(5), Checksum(6)}},
      DatabaseUnknown{"x.db"},
      good_change_set(false, 10'000'000'000),
      ChangeSetEnd{1, Txid(9)},
      SnapshotBegin{1, 512, 10, true, 3},
      OfferRequest{1},
      PageSumsRequest{1, Pgno(257), 65536},
      Offer{1, 2, 0, 0, 256},
      SnapshotDone{1, {Txid(1), Checksum(2)}, Epoch(3), 512, 10, 77},
      SnapshotAbort{1, "why"},
      Ready{},
      Ack{1, 2, Txid(3), Txid(4), 5},
      ResyncRequest{"a.db", 1, {Txid(3), Checksum(4)}, true, "why"},
      Heartbeat{123, 456},
      ErrorFrame{WireError::stale_epoch, "text"},
      Goodbye{"bye"},
  };
  for (const Message& message : all) {
    FrameReader reader;
    const auto frame = read_one(reader, encode(message));
    ASSERT_TRUE(frame.has_value()) << kind_name(message) << ": " << frame.error().message;
    EXPECT_EQ(frame->message.index(), message.index()) << kind_name(message);
    // Encoding again gives the same bytes: no field was lost.
    EXPECT_EQ(encode(frame->message), encode(message)) << kind_name(message);
  }
}

TEST(Frames, SumsSurvive) {
  const std::vector<std::uint64_t> sums = {1, 0, ~std::uint64_t{0}, 0x8000000000000007u};
  EXPECT_EQ(decode_sums(encode_sums(sums)), sums);
  FrameReader reader;
  const auto offer = read_one(reader, encode(Offer{3, 4, 512, 1000, 256}, encode_sums(sums)));
  ASSERT_TRUE(offer.has_value()) << offer.error().message;
  EXPECT_EQ(decode_sums(offer->payload), sums);
  const auto pages = read_one(reader, encode(PageSums{3, 4, Pgno(257)}, encode_sums(sums)));
  ASSERT_TRUE(pages.has_value()) << pages.error().message;
  EXPECT_EQ(std::get<PageSums>(pages->message).first, Pgno(257));
}

TEST(Frames, OffersAndSumsAreBounded) {
  EXPECT_EQ(error_of(Offer{1, 0, 4096, 1000, 256}, Bytes(24)), Errc::protocol) << "a block is missing";
  EXPECT_EQ(error_of(Offer{1, 0, 4096, 1000, 256}, Bytes(33)), Errc::protocol);
  EXPECT_EQ(error_of(Offer{1, 0, 4096, 0, 256}, Bytes(8)), Errc::protocol);
  EXPECT_EQ(error_of(Offer{1, 0, 4096, 1000, 128}, Bytes(64)), Errc::protocol) << "small blocks";
  EXPECT_EQ(error_of(Offer{1, 0, 4096, 1000, 0}, Bytes(32)), Errc::protocol);
  EXPECT_EQ(error_of(Offer{1, 0, 5000, 1000, 256}, Bytes(32)), Errc::protocol);
  EXPECT_EQ(error_of(Offer{0, 0, 4096, 1000, 256}, Bytes(32)), Errc::protocol);
  EXPECT_EQ(error_of(Offer{1, 0, 4096, 256 * 65537, 256}, Bytes(65537 * 8)), Errc::protocol);
  EXPECT_EQ(error_of(PageSumsRequest{1, Pgno(1), 65537}), Errc::protocol);
  EXPECT_EQ(error_of(PageSumsRequest{1, Pgno(1), 0}), Errc::protocol);
  EXPECT_EQ(error_of(PageSumsRequest{1, Pgno(0), 1}), Errc::protocol);
  EXPECT_EQ(error_of(PageSumsRequest{1, Pgno(0xffffffff), 2}), Errc::protocol);
  EXPECT_EQ(error_of(PageSums{1, 0, Pgno(1)}, Bytes(12)), Errc::protocol);
  EXPECT_EQ(error_of(PageSums{1, 0, Pgno(1)}), Errc::protocol);
  EXPECT_EQ(error_of(PageSums{1, 0, Pgno(0)}, Bytes(8)), Errc::protocol);
  EXPECT_EQ(error_of(PageSums{1, 0, Pgno(1)}, Bytes(65537 * 8)), Errc::protocol);
}

// The worked example of docs/FORMATS.md.
TEST(Frames, BytesOfTheDocumentedExample) {
  const unsigned char expected[] = {0, 0, 0, 5, 0x96, 0xe2, 0x86, 0x6d, 0x92, 0x03, 0x02, 0x08, 0x01};
  const Bytes frame = encode(Heartbeat{1, 0});
  ASSERT_EQ(frame.size(), sizeof expected);
  EXPECT_EQ(std::memcmp(frame.data(), expected, sizeof expected), 0);
}

TEST(Frames, ArriveInPiecesOfAnySize) {
  std::mt19937 random(1);
  Bytes stream;
  for (std::uint64_t i = 0; i < 200; ++i) {
    const Bytes payload(random() % 5000 + 1, std::byte(i));
    append_frame(stream, ChangeSetData{1, i}, payload);
  }
  append_frame(stream, ChangeSetData{1, 200}, Bytes(kMaxPayload, std::byte{1}));
  FrameReader reader;
  ByteView rest = stream;
  std::uint64_t next = 0;
  while (!rest.empty()) {
    const std::size_t size = std::min<std::size_t>(rest.size(), random() % 9000 + 1);
    std::size_t taken = 0;
    while (taken < size) {
      taken += reader.feed(rest.subspan(taken, size - taken));
      Frame frame;
      for (;;) {
        const auto there = reader.next(frame);
        ASSERT_TRUE(there.has_value()) << there.error().message;
        if (!*there) break;
        EXPECT_EQ(std::get<ChangeSetData>(frame.message).offset, next++);
        EXPECT_TRUE(frame.payload_intact);
      }
    }
    rest = rest.subspan(size);
  }
  EXPECT_EQ(next, 201u);
}

TEST(Frames, AFlippedBitAnywhereIsSeen) {
  const Bytes payload(64, std::byte{9});
  const Bytes good = encode(good_change_set(true, payload.size()), payload);
  for (std::size_t bit = 0; bit < good.size() * 8; ++bit) {
    Bytes bad = good;
    bad[bit / 8] ^= std::byte{static_cast<unsigned char>(1 << (bit % 8))};
    FrameReader reader;
    const auto frame = read_one(reader, bad);
    if (frame.has_error()) continue;  // damaged, too large, or a length that waits for more
    EXPECT_GE(bit / 8, good.size() - payload.size()) << "bit " << bit << " of the message passed";
    EXPECT_FALSE(frame->payload_intact) << bit;
  }
}

TEST(Frames, OversizedLengthsAreRefusedBeforeTheyAreBuffered) {
  Bytes header(kFrameHeader);
  store_be<std::uint32_t>(header.data(), kMaxMessage + 1);
  FrameReader reader;
  EXPECT_EQ(read_one(reader, header).error().code, Errc::too_large);

  FrameReader garbage;
  EXPECT_TRUE(read_one(garbage, as_bytes("GET / HTTP/1.1\r\n\r\n")).has_error());
}

TEST(Frames, UnknownKindsAreSkippedWithTheirPayload) {
  // Field 200, varint 1: a kind of a later version; payload_length 3.
  Bytes message = {std::byte{0x0d}, std::byte{3}, std::byte{0}, std::byte{0}, std::byte{0},
                   std::byte{0xc0}, std::byte{0x0c}, std::byte{1}};
  // CRC-32C, written out: a second implementation.
  Bytes stream(kFrameHeader + message.size() + 3);
  store_be<std::uint32_t>(stream.data(), static_cast<std::uint32_t>(message.size()));
  std::uint32_t crc = ~0u;
  for (const std::byte b : message) {
    crc ^= static_cast<std::uint32_t>(b);
    for (int i = 0; i < 8; ++i) crc = (crc >> 1) ^ ((crc & 1) != 0 ? 0x82f63b78u : 0u);
  }
  store_be<std::uint32_t>(stream.data() + 4, ~crc);
  std::copy(message.begin(), message.end(), stream.begin() + kFrameHeader);
  append_frame(stream, Ready{});
  FrameReader reader;
  const auto first = read_one(reader, stream);
  ASSERT_TRUE(first.has_value()) << first.error().message;
  EXPECT_TRUE(std::holds_alternative<Unknown>(first->message));
  EXPECT_EQ(first->payload.size(), 3u);
  Frame second;
  const auto there = reader.next(second);
  ASSERT_TRUE(there.has_value() && *there);
  EXPECT_TRUE(std::holds_alternative<Ready>(second.message));
}

TEST(Frames, ImpossibleContentIsRefused) {
  const Bytes payload(100);
  auto change_set = good_change_set(true, 100);
  EXPECT_EQ(error_of(change_set, payload), Errc::exists);
  change_set.id = 0;
  EXPECT_EQ(error_of(change_set, payload), Errc::protocol);
  change_set = good_change_set(true, 99);
  EXPECT_EQ(error_of(change_set, payload), Errc::protocol) << "length is not the payload's";
  change_set = good_change_set(true, 100);
  change_set.page_size = 4095;
  EXPECT_EQ(error_of(change_set, payload), Errc::protocol);
  change_set = good_change_set(true, 100);
  change_set.post.txid = change_set.pre.txid;
  EXPECT_EQ(error_of(change_set, payload), Errc::protocol);
  EXPECT_EQ(error_of(good_change_set(false, 100), payload), Errc::protocol) << "Begin has no payload";
  EXPECT_EQ(error_of(ChangeSetData{1, 0}), Errc::protocol) << "no data";
  EXPECT_EQ(error_of(DatabaseStart{1, "", 0, {}, false, {}}), Errc::protocol);
  EXPECT_EQ(error_of(DatabaseUnknown{std::string(1025, 'x')}), Errc::protocol);
  EXPECT_EQ(error_of(SnapshotBegin{1, 1000, 5}), Errc::protocol);
  EXPECT_EQ(error_of(SnapshotPages{1, false, 100, {Pgno(0)}}, payload), Errc::protocol);
  EXPECT_EQ(error_of(SnapshotPages{1, false, 100, {}}, payload), Errc::protocol);
  EXPECT_EQ(error_of(SnapshotPages{1, false, 99, {Pgno(1)}}, payload), Errc::protocol);
  EXPECT_EQ(error_of(SnapshotPages{1, true, 2 << 20, {Pgno(1)}}, payload), Errc::protocol) << "decoded size over the limit";
  EXPECT_EQ(error_of(Hello{1, 1, NodeId(1), std::string(kMaxText + 1, 'h')}), Errc::protocol);
}

TEST(Frames, GarbageNeverCrashes) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    Bytes stream = encode(good_change_set(true, 100), Bytes(100));
    append_frame(stream, Positions{{{"a", {}, Epoch(1), false}}, true});
    for (unsigned i = 0; i < random() % 4 + 1; ++i) stream[random() % stream.size()] = std::byte(random());
    stream.resize(random() % (stream.size() + 1));
    FrameReader reader;
    feed(reader, stream);
    Frame frame;
    for (int i = 0; i < 10; ++i) {
      const auto there = reader.next(frame);
      if (there.has_error() || !*there) break;
    }
  }
}

}  // namespace
}  // namespace sluice::replication
