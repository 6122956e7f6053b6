// Hostile and damaged images: whatever is done to one, it is refused, and for the stated reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <lz4.h>

#include "storage/ltx/page_rules.h"
#include "tests/unit/ltx/ltx_support.h"

namespace sluice::ltx::test {
namespace {

using testing::HasSubstr;

/// Builds images that break one rule and keep every other, checksums included.
struct RawImage {
  struct Frame {
    std::uint32_t pgno = 0;
    std::uint16_t flags = kPageFlagSized;
    Bytes page;
    Bytes block;                ///< compressed form; made from `page` if empty
    std::uint32_t claimed = 0;  ///< compressed size in the head if not that of `block`
  };
  Header header;
  std::vector<Frame> frames;
  std::uint64_t post = 0x8000000000000001u;
  bool index_off_by_one = false;
  std::uint64_t index_length_delta = 0;
  Bytes after_index;

  Bytes build() const {
    Bytes out(kHeaderSize);
    write_header(header, out);
    Crc64 crc;
    crc.update(out);
    Bytes index;
    const auto append = [&](ByteView bytes) { out.insert(out.end(), bytes.begin(), bytes.end()); };
    for (const Frame& frame : frames) {
      Bytes block = frame.block;
      if (block.empty()) {
        const int size = static_cast<int>(frame.page.size());
        block.resize(static_cast<std::size_t>(LZ4_compressBound(size)));
        const int n =
            LZ4_compress_default(reinterpret_cast<const char*>(frame.page.data()),
                                 reinterpret_cast<char*>(block.data()), size, static_cast<int>(block.size()));
        block.resize(static_cast<std::size_t>(n));
      }
      std::byte head[kFrameHeadSize];
      store_be<std::uint32_t>(head, frame.pgno);
      store_be<std::uint16_t>(head + 4, frame.flags);
      store_be<std::uint32_t>(head + 6,
                              frame.claimed != 0 ? frame.claimed : static_cast<std::uint32_t>(block.size()));
      std::byte entry[kMaxIndexEntry];
      const std::size_t n = put_index_entry(entry, Pgno(frame.pgno + (index_off_by_one ? 1 : 0)), out.size(),
                                            kFrameHeadSize + block.size());
      index.insert(index.end(), entry, entry + n);
      append(head);
      append(block);
      crc.update(head);
      crc.update(frame.page);
    }
    const std::size_t tail_at = out.size();
    append(Bytes(kPageHeaderSize));
    index.push_back(std::byte{0});
    append(index);
    std::byte length[8];
    store_be<std::uint64_t>(length, index.size() + index_length_delta);
    append(length);
    append(after_index);
    std::byte trailer[kTrailerSize];
    write_trailer({post, 0}, trailer);
    append(ByteView(trailer, 8));
    crc.update(ByteView(out).subspan(tail_at));
    write_trailer({post, kEmptyChecksum.value() | crc.value()}, trailer);
    append(ByteView(trailer).subspan(8));
    return out;
  }
};

RawImage::Frame frame(std::uint32_t pgno) {
  return {.pgno = pgno, .page = make_page(512, pgno, 1), .block = {}};
}

RawImage good() {
  return {.header = make_header(512, 9, 5, 5), .frames = {frame(2), frame(7)}, .after_index = {}};
}

void expect_refused(const RawImage& raw, const char* why) {
  const auto decoded = decode_all(raw.build());
  ASSERT_TRUE(decoded.has_error()) << why;
  EXPECT_EQ(decoded.error().code, Errc::corrupt);
  EXPECT_THAT(decoded.error().message, HasSubstr(why));
}

TEST(LtxCorruption, TheUnbrokenImageIsFine) {
  const auto decoded = decode_all(good().build());
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
}

TEST(LtxCorruption, PageNumberZero) {
  RawImage raw = good();
  raw.frames[0].pgno = 0;
  expect_refused(raw, "page number zero");
}
TEST(LtxCorruption, PageOverCommit) {
  RawImage raw = good();
  raw.frames[1].pgno = 10;
  expect_refused(raw, "above the commit size 9");
}
TEST(LtxCorruption, PagesOutOfOrder) {
  RawImage raw = good();
  raw.frames[1].pgno = 1;
  expect_refused(raw, "page 1 after page 2");
}
TEST(LtxCorruption, PageTwice) {
  RawImage raw = good();
  raw.frames[1].pgno = 2;
  expect_refused(raw, "page 2 after page 2");
}
TEST(LtxCorruption, LockPage) {
  RawImage raw = good();
  raw.header.commit = 0xffffffffu;
  raw.frames[1].pgno = lock_page(512).value();
  expect_refused(raw, "lock page");
}
TEST(LtxCorruption, FrameFormOfPagesIsNotSupported) {
  RawImage raw = good();
  raw.frames[0].flags = 0;
  expect_refused(raw, "only block-compressed pages");
}
TEST(LtxCorruption, UnknownPageFlags) {
  RawImage raw = good();
  raw.frames[0].flags = 3;
  expect_refused(raw, "page flags 0x3");
}
TEST(LtxCorruption, CompressedSizeIsBounded) {
  RawImage raw = good();
  raw.frames[0].claimed = 0xffffffffu;
  expect_refused(raw, "compressed size 4294967295 for a page of 512");
}
TEST(LtxCorruption, GarbageBlock) {
  RawImage raw = good();
  raw.frames[0].block = Bytes(20, std::byte{0xff});
  expect_refused(raw, "does not hold one page");
}
TEST(LtxCorruption, BlockOfASmallerPage) {
  RawImage raw = good();
  raw.frames[0].page.resize(511);
  expect_refused(raw, "does not hold one page");
}
TEST(LtxCorruption, BlockOfALargerPage) {
  RawImage raw = good();
  raw.frames[0].page.resize(513);
  expect_refused(raw, "does not hold one page");
}
TEST(LtxCorruption, SnapshotWithAHole) {
  RawImage raw = good();
  raw.header = make_header(512, 9, 1, 5);
  raw.frames = {frame(1), frame(3)};
  expect_refused(raw, "a snapshot has page 3 after page 1");
}
TEST(LtxCorruption, SnapshotThatEndsEarly) {
  RawImage raw = good();
  raw.header = make_header(512, 3, 1, 5);
  raw.frames = {frame(1), frame(2)};
  expect_refused(raw, "a snapshot of 3 pages ends at page 2");
}
TEST(LtxCorruption, SnapshotWithAnotherPostApplyChecksum) {
  RawImage raw = good();
  raw.header = make_header(512, 1, 1, 5);
  raw.frames = {frame(1)};
  expect_refused(raw, "not that of the snapshot's pages");
}
TEST(LtxCorruption, DeletionWithAnotherPostApplyChecksum) {
  RawImage raw = good();
  raw.header.commit = 0;
  raw.frames = {};
  expect_refused(raw, "not the empty one");
}
TEST(LtxCorruption, PostApplyChecksumWithoutItsFlagBit) {
  RawImage raw = good();
  raw.post = 1;
  expect_refused(raw, "lacks its flag bit");
}
TEST(LtxCorruption, PostApplyChecksumWhereThereAreNone) {
  RawImage raw = good();
  raw.header.flags = kFlagNoChecksum;
  raw.header.pre_apply_checksum = 0;
  expect_refused(raw, "where the flags say there are none");
}
TEST(LtxCorruption, IndexOfOtherPages) {
  RawImage raw = good();
  raw.index_off_by_one = true;
  expect_refused(raw, "page index does not match");
}
TEST(LtxCorruption, IndexLength) {
  RawImage raw = good();
  raw.index_length_delta = 1;
  expect_refused(raw, "page index does not match");
}
TEST(LtxCorruption, BytesBetweenIndexAndTrailer) {
  RawImage raw = good();
  raw.after_index = Bytes(3);
  expect_refused(raw, "where index and trailer have");
}

class LtxDamage : public testing::TestWithParam<bool> {
 protected:
  static Bytes image() {
    Pages pages;
    for (std::uint32_t pgno = 1; pgno <= 3; ++pgno) pages[pgno] = make_page(512, pgno, 5);
    const bool snapshot = GetParam();
    const Header header = make_header(512, 3, snapshot ? 1 : 7, 9);
    return *encode(header, pages, database_checksum(pages));
  }
};

TEST_P(LtxDamage, CutAtAnyByteIsRefused) {
  const Bytes whole = image();
  for (std::size_t n = 0; n < whole.size(); ++n) {
    const auto decoded = decode_all(ByteView(whole).first(n));
    ASSERT_TRUE(decoded.has_error()) << n;
    ASSERT_EQ(decoded.error().code, Errc::corrupt) << n;
  }
}

TEST_P(LtxDamage, ATailIsRefused) {
  Bytes longer = image();
  longer.push_back(std::byte{0});
  EXPECT_TRUE(decode_all(longer).has_error());
}

TEST_P(LtxDamage, AnyFlippedBitIsRefusedOrHarmless) {
  const Bytes whole = image();
  const auto original = decode_all(whole);
  ASSERT_TRUE(original.has_value());
  for (std::size_t i = 0; i < whole.size(); ++i) {
    for (int bit = 0; bit < 8; ++bit) {
      Bytes damaged = whole;
      damaged[i] ^= static_cast<std::byte>(1 << bit);
      const auto decoded = decode_all(damaged);
      if (decoded.has_error()) {
        ASSERT_EQ(decoded.error().code, Errc::corrupt) << i;
        continue;
      }
      // The file checksum covers pages, not their compressed form: another LZ4 encoding of the same page is
      // the same.
      ASSERT_EQ(decoded->pages, original->pages) << i;
      ASSERT_EQ(decoded->summary.header, original->summary.header) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, LtxDamage, testing::Bool(),
                         [](const auto& kind) { return kind.param ? "Snapshot" : "ChangeSet"; });

}  // namespace
}  // namespace sluice::ltx::test
