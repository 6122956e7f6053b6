#include "storage/ltx/compactor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/ltx/ltx_support.h"

namespace sluice::ltx::test {
namespace {

using testing::HasSubstr;

/// A database that changes, and the change sets it leaves: what compaction must agree with.
class History {
 public:
  explicit History(std::uint32_t page_size) : page_size_(page_size) {}

  /// Writes `changed`, then sets the size to `commit` pages, adding the pages that growing leaves out (hole
  /// rule).
  void commit(std::uint32_t commit, std::vector<std::uint32_t> changed, bool no_checksum = false) {
    const Checksum before = database_checksum(pages_);
    const auto old_size = static_cast<std::uint32_t>(pages_.size());
    for (std::uint32_t pgno = old_size + 1; pgno <= commit; ++pgno) changed.push_back(pgno);
    ++txid_;
    Pages written;
    for (const std::uint32_t pgno : changed) {
      if (pgno <= commit) written[pgno] = pages_[pgno] = make_page(page_size_, pgno, txid_);
    }
    pages_.erase(pages_.upper_bound(commit), pages_.end());
    Header header = make_header(page_size_, commit, txid_, txid_);
    header.timestamp_ms += static_cast<std::int64_t>(txid_);
    header.wal_offset = 32;
    header.wal_size = 100;
    header.flags = no_checksum ? kFlagNoChecksum : 0;
    header.pre_apply_checksum = txid_ == 1 || no_checksum ? 0 : before.value();
    const auto image = encode(header, written, no_checksum ? Checksum{} : database_checksum(pages_));
    ASSERT_TRUE(image.has_value()) << image.error().to_string();
    images_.push_back(*image);
  }

  /// Compacts change sets first…last (from 1).
  Result<Bytes> compacted(std::size_t first, std::size_t last, bool no_checksum = false) const {
    std::vector<CompactorInput> inputs;
    for (std::size_t i = first; i <= last; ++i) {
      inputs.push_back({memory_source(images_[i - 1]), images_[i - 1].size()});
    }
    return run(inputs, no_checksum);
  }

  static Result<Bytes> run(const std::vector<CompactorInput>& inputs, bool no_checksum) {
    Bytes out;
    TRY(compact(inputs, no_checksum, [&](ByteView piece) -> Result<void> {
      out.insert(out.end(), piece.begin(), piece.end());
      return {};
    }));
    return out;
  }

  const Pages& pages() const { return pages_; }
  Bytes& image(std::size_t txid) { return images_[txid - 1]; }

 private:
  std::uint32_t page_size_;
  std::uint64_t txid_ = 0;
  Pages pages_;
  std::vector<Bytes> images_;
};

TEST(LtxCompactor, ChangeSetsFromTheFirstBecomeASnapshot) {
  History history(512);
  history.commit(5, {1});
  history.commit(5, {2, 4});
  history.commit(9, {4});
  history.commit(6, {6, 1});
  const auto merged = history.compacted(1, 4);
  ASSERT_TRUE(merged.has_value()) << merged.error().to_string();
  const auto decoded = decode_all(*merged);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_EQ(decoded->pages, history.pages());
  const Header& header = decoded->summary.header;
  EXPECT_EQ(header.min_txid, Txid(1));
  EXPECT_EQ(header.max_txid, Txid(4));
  EXPECT_EQ(header.commit, 6u);
  EXPECT_EQ(header.timestamp_ms, 1'700'000'000'123 + 4);
  EXPECT_EQ(header.pre_apply_checksum, 0u);
  EXPECT_EQ(header.wal_offset, 0);
  EXPECT_EQ(header.wal_size, 0);
  EXPECT_EQ(header.node_id, 0u);
}

TEST(LtxCompactor, KeepsTheNewestVersionAndDropsPagesOverTheLastCommit) {
  History history(4096);
  history.commit(10, {});
  history.commit(10, {2, 9, 10});
  history.commit(10, {2, 3});
  history.commit(9, {3});
  const auto merged = history.compacted(2, 4);
  ASSERT_TRUE(merged.has_value()) << merged.error().to_string();
  const auto decoded = decode_all(*merged);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  Pages expected;
  for (const std::uint32_t pgno : {2u, 3u, 9u}) expected[pgno] = history.pages().at(pgno);
  EXPECT_EQ(decoded->pages, expected);
  EXPECT_EQ(decoded->summary.header.pre_apply_checksum,
            decode_all(history.image(2))->summary.header.pre_apply_checksum);
}

TEST(LtxCompactor, CompactionOfCompactionsIsTheSame) {
  History history(1024);
  for (std::uint32_t i = 0; i < 12; ++i) history.commit(20 + i % 5, {1 + i, 3, 17});
  const Bytes a = *history.compacted(1, 4);
  const Bytes b = *history.compacted(5, 9);
  const Bytes c = *history.compacted(10, 12);
  const auto twice = History::run(
      {{memory_source(a), a.size()}, {memory_source(b), b.size()}, {memory_source(c), c.size()}}, false);
  ASSERT_TRUE(twice.has_value()) << twice.error().to_string();
  EXPECT_EQ(*twice, *history.compacted(1, 12));
}

TEST(LtxCompactor, OverlappingInputsAreAllowed) {
  History history(512);
  for (int i = 0; i < 6; ++i) history.commit(4, {2});
  const Bytes a = *history.compacted(1, 4);
  const Bytes b = *history.compacted(3, 6);
  const auto merged = History::run({{memory_source(a), a.size()}, {memory_source(b), b.size()}}, false);
  ASSERT_TRUE(merged.has_value()) << merged.error().to_string();
  EXPECT_EQ(*merged, *history.compacted(1, 6));
}

TEST(LtxCompactor, DeletionAndRecreation) {
  History history(512);
  history.commit(5, {});
  history.commit(0, {});
  history.commit(3, {});
  const auto merged = history.compacted(1, 3);
  ASSERT_TRUE(merged.has_value()) << merged.error().to_string();
  EXPECT_EQ(decode_all(*merged)->pages, history.pages());
  const auto deleted = history.compacted(1, 2);
  ASSERT_TRUE(deleted.has_value()) << deleted.error().to_string();
  EXPECT_EQ(decode_all(*deleted)->summary.header.commit, 0u);
  EXPECT_EQ(history.compacted(1, 2, true).error().code, Errc::invalid_argument);
}

TEST(LtxCompactor, WithoutChecksums) {
  History history(512);
  history.commit(3, {});
  history.commit(3, {2});
  history.commit(3, {3}, true);
  const auto merged = history.compacted(1, 3, true);
  ASSERT_TRUE(merged.has_value()) << merged.error().to_string();
  const auto decoded = decode_all(*merged);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_TRUE(decoded->summary.header.no_checksum());
  EXPECT_EQ(decoded->summary.trailer.post_apply_checksum, 0u);
  EXPECT_EQ(decoded->pages, history.pages());
  EXPECT_EQ(history.compacted(1, 3, false).error().code, Errc::invalid_argument);
}

TEST(LtxCompactor, RefusesGapsOrderAndForeignInputs) {
  History history(512);
  for (int i = 0; i < 4; ++i) history.commit(4, {2});
  const auto refused = [&](const Bytes& a, const Bytes& b, const char* why) {
    const auto merged = History::run({{memory_source(a), a.size()}, {memory_source(b), b.size()}}, false);
    ASSERT_TRUE(merged.has_error()) << why;
    EXPECT_EQ(merged.error().code, Errc::invalid_argument);
    EXPECT_THAT(merged.error().message, HasSubstr(why));
  };
  refused(history.image(1), history.image(3), "do not follow");
  refused(history.image(2), history.image(1), "do not follow");
  refused(history.image(2), history.image(2), "do not follow");
  History other_size(1024);
  other_size.commit(4, {});
  other_size.commit(4, {1});
  refused(history.image(1), other_size.image(2), "page size");
  History other(512);
  other.commit(4, {});
  other.commit(5, {1});
  other.commit(5, {1});
  refused(history.image(2), other.image(3), "predecessor's post-apply checksum");
  EXPECT_EQ(History::run({}, false).error().code, Errc::invalid_argument);
}

TEST(LtxCompactor, RefusesADamagedInput) {
  History history(512);
  history.commit(4, {});
  history.commit(4, {2});
  history.image(2)[history.image(2).size() - 1] ^= std::byte{1};
  EXPECT_EQ(history.compacted(1, 2).error().code, Errc::corrupt);
}

TEST(LtxCompactor, ASnapshotThatDoesNotAddUpIsRefused) {
  // The second change set claims a post-apply checksum that its pages do not have.
  History history(512);
  history.commit(2, {});
  const auto first = decode_all(history.image(1));
  ASSERT_TRUE(first.has_value());
  Header header = make_header(512, 2, 2, 2);
  header.pre_apply_checksum = first->summary.trailer.post_apply_checksum;
  const auto lying = encode(header, {{1, make_page(512, 1, 77)}}, Checksum(0x8000000000000005u));
  ASSERT_TRUE(lying.has_value());
  const auto merged = History::run(
      {{memory_source(history.image(1)), history.image(1).size()}, {memory_source(*lying), lying->size()}},
      false);
  EXPECT_EQ(merged.error().code, Errc::corrupt);
}

TEST(LtxCompactor, ManyPagesReadTheIndexInPieces) {
  History history(512);
  history.commit(150'000, {});
  history.commit(150'000, {149'999});
  ASSERT_GT(decode_all(history.image(1))->summary.pages * 8, std::uint32_t{1} << 20);
  const auto merged = history.compacted(1, 2);
  ASSERT_TRUE(merged.has_value()) << merged.error().to_string();
  EXPECT_EQ(decode_all(*merged)->pages, history.pages());
}

}  // namespace
}  // namespace sluice::ltx::test
