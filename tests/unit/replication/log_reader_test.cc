#include "replication/log_reader.h"

#include <gtest/gtest.h>

#include "replication/frames.h"
#include "tests/unit/replication/test_primary.h"

namespace sluice::replication::testing {
namespace {

struct Parsed {
  std::vector<Message> messages;
  std::uint64_t cost = 0;
  std::uint64_t image_bytes = 0;
};

Parsed parse(ByteView bytes) {
  Parsed parsed;
  FrameReader reader;
  while (!bytes.empty()) {
    bytes = bytes.subspan(reader.feed(bytes));
    Frame frame;
    for (;;) {
      const auto there = reader.next(frame);
      EXPECT_TRUE(there.has_value());
      if (there.has_error() || !*there) break;
      parsed.cost += frame_cost(frame.payload.size());
      parsed.image_bytes += frame.payload.size();
      parsed.messages.push_back(frame.message);
    }
  }
  return parsed;
}

class LogReader : public ::testing::Test {
 protected:
  LogPiece read(const Cursor& cursor, std::uint64_t budget) {
    auto piece = read_log(db_.database(), 7, cursor, budget);
    EXPECT_TRUE(piece.has_value());
    return std::move(*piece);
  }
  TestPrimary primary_;
  TestDatabase& db_ = primary_.database("a.db", 512);
};

TEST_F(LogReader, BatchesSmallChangeSetsWithinTheBudget) {
  for (int i = 0; i < 50; ++i) db_.commit(4, 1);
  Cursor cursor;
  std::uint64_t expected = 1;
  int turns = 0;
  for (bool more = true; more; ++turns) {
    const LogPiece piece = read(cursor, 10'000);
    const Parsed parsed = parse(piece.frames);
    EXPECT_EQ(parsed.cost, piece.cost);
    EXPECT_LE(piece.cost, 10'000u);
    for (const Message& message : parsed.messages) {
      EXPECT_EQ(std::get<ChangeSet>(message).post.txid, Txid(expected++));
      EXPECT_EQ(std::get<ChangeSet>(message).id, 7u);
    }
    cursor = piece.cursor;
    more = piece.more;
  }
  EXPECT_EQ(expected, 51u);
  EXPECT_GT(turns, 1);
  EXPECT_LT(turns, 25);
  EXPECT_EQ(cursor.sent, db_.database().pos());
}

TEST_F(LogReader, ALargeChangeSetInPieces) {
  db_.commit(5000, 0);
  const std::uint64_t length = db_.database().log().find(Txid(1)).value().info.length;
  Cursor cursor;
  std::uint64_t bytes = 0;
  std::string kinds;
  for (bool more = true; more;) {
    const LogPiece piece = read(cursor, 300'000);
    const Parsed parsed = parse(piece.frames);
    EXPECT_LE(piece.cost, 300'000u);
    EXPECT_GT(piece.cost, 0u) << "no progress";
    bytes += parsed.image_bytes;
    for (const Message& message : parsed.messages) kinds += kind_name(message) + " ";
    cursor = piece.cursor;
    more = piece.more;
  }
  EXPECT_EQ(bytes, length);
  EXPECT_TRUE(kinds.starts_with("ChangeSet ChangeSetData ")) << kinds;
  EXPECT_TRUE(kinds.ends_with("ChangeSetData ChangeSetEnd ")) << kinds;
}

TEST_F(LogReader, StopsAtWhatIsDurable) {
  db_.commit(4, 0);
  db_.commit(4, 1, false);
  const LogPiece piece = read({}, 1 << 20);
  EXPECT_EQ(piece.cursor.sent.txid, Txid(1));
  EXPECT_FALSE(piece.more);
  EXPECT_FALSE(piece.needs_snapshot);
}

TEST_F(LogReader, SeesWhereTheLogDoesNotContinue) {
  const Pos first = db_.commit(4, 0);
  EXPECT_TRUE(can_continue(db_.database(), {}));
  EXPECT_TRUE(can_continue(db_.database(), first));
  EXPECT_FALSE(can_continue(db_.database(), {first.txid, Checksum(1)}));
  EXPECT_FALSE(can_continue(db_.database(), {Txid(9), first.checksum}));
  Cursor cursor;
  cursor.sent = {first.txid, Checksum(1)};
  EXPECT_TRUE(read(cursor, 1 << 20).needs_snapshot) << "same TXID, other content";
  db_.commit(4, 1);
  EXPECT_TRUE(read(cursor, 1 << 20).needs_snapshot);
  cursor.sent = first;
  db_.rebase();
  EXPECT_FALSE(can_continue(db_.database(), {}));
  EXPECT_TRUE(read(cursor, 1 << 20).needs_snapshot) << "fell off the log";
}

}  // namespace
}  // namespace sluice::replication::testing
