// Encoder and decoder together: round trips, page rules, the shape of what reaches the sink.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "storage/ltx/page_packer.h"
#include "tests/unit/ltx/ltx_support.h"

namespace sluice::ltx::test {
namespace {

using testing::HasSubstr;

class LtxRoundTrip : public testing::TestWithParam<std::uint32_t> {};

TEST_P(LtxRoundTrip, Snapshot) {
  const std::uint32_t size = GetParam();
  Pages pages;
  for (std::uint32_t pgno = 1; pgno <= 7; ++pgno) pages[pgno] = make_page(size, pgno, 1);
  const Header header = make_header(size, 7, 1, 1);
  const Checksum post = database_checksum(pages);
  const auto image = encode(header, pages, post);
  ASSERT_TRUE(image.has_value()) << image.error().to_string();
  const auto decoded = decode_all(*image);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_EQ(decoded->summary.header, header);
  EXPECT_EQ(decoded->summary.trailer.post_apply_checksum, post.value());
  EXPECT_EQ(decoded->summary.pages, 7u);
  EXPECT_EQ(decoded->pages, pages);
}

TEST_P(LtxRoundTrip, ChangeSetWithCompressibleAndIncompressiblePages) {
  const std::uint32_t size = GetParam();
  Pages pages;
  pages[2] = Bytes(size);  // all zero
  pages[5] = make_page(size, 5, 3);
  pages[6] = make_page(size * 2, 6, 4);  // its second half: noise only
  pages[6].erase(pages[6].begin(), pages[6].begin() + static_cast<std::ptrdiff_t>(size));
  pages[900] = Bytes(size, std::byte{0xff});
  const Header header = make_header(size, 900, 41, 43);
  const auto image = encode(header, pages, Checksum(0x8000000000000abcu));
  ASSERT_TRUE(image.has_value()) << image.error().to_string();
  const auto decoded = decode_all(*image);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_EQ(decoded->summary.header, header);
  EXPECT_EQ(decoded->pages, pages);
}

INSTANTIATE_TEST_SUITE_P(PageSizes, LtxRoundTrip,
                         testing::Values(512, 1024, 2048, 4096, 8192, 16384, 32768, 65536));

TEST(LtxCodec, WithoutChecksums) {
  Header header = make_header(512, 3, 8, 8);
  header.flags = kFlagNoChecksum;
  header.pre_apply_checksum = 0;
  const Pages pages{{3, make_page(512, 3, 1)}};
  EXPECT_EQ(encode(header, pages, kEmptyChecksum).error().code, Errc::invalid_argument);
  const auto image = encode(header, pages, Checksum{});
  ASSERT_TRUE(image.has_value()) << image.error().to_string();
  const auto decoded = decode_all(*image);
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_EQ(decoded->summary.trailer.post_apply_checksum, 0u);
  EXPECT_EQ(decoded->pages, pages);
}

TEST(LtxCodec, SnapshotWithoutChecksumsNeedsNoPostApplyChecksum) {
  Header header = make_header(512, 1, 1, 4);
  header.flags = kFlagNoChecksum;
  const auto image = encode(header, {{1, make_page(512, 1, 1)}}, Checksum{});
  ASSERT_TRUE(image.has_value()) << image.error().to_string();
  EXPECT_TRUE(decode_all(*image).has_value());
}

TEST(LtxCodec, DeletionHasNoPagesAndTheEmptyChecksum) {
  for (const std::uint64_t txid : {1u, 12u}) {
    const Header header = make_header(4096, 0, txid, txid);
    EXPECT_EQ(encode(header, {}, Checksum(0x8000000000000001u)).error().code, Errc::invalid_argument);
    EXPECT_EQ(encode(header, {{1, Bytes(4096)}}, kEmptyChecksum).error().code, Errc::invalid_argument);
    const auto image = encode(header, {}, kEmptyChecksum);
    ASSERT_TRUE(image.has_value()) << image.error().to_string();
    EXPECT_EQ(image->size(), 100u + 6 + 1 + 8 + 16);
    const auto decoded = decode_all(*image);
    ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
    EXPECT_EQ(decoded->summary.pages, 0u);
  }
}

TEST(LtxCodec, DeletionCannotBeWrittenWithoutChecksums) {
  Header header = make_header(4096, 0, 12, 12);
  header.flags = kFlagNoChecksum;
  header.pre_apply_checksum = 0;
  EXPECT_THAT(encode(header, {}, Checksum{}).error().message, HasSubstr("deletion"));
}

TEST(LtxCodec, ChangeSetWithoutPages) {
  const auto image = encode(make_header(4096, 5, 3, 3), {}, Checksum(0x8000000000000001u));
  ASSERT_TRUE(image.has_value());
  EXPECT_TRUE(decode_all(*image).has_value());
}

Result<void> add(Encoder& encoder, std::uint32_t pgno, std::uint32_t size = 512) {
  return encoder.add_page(Pgno(pgno), make_page(size, pgno, 1));
}
Result<void> discard(ByteView) {
  return {};
}

TEST(LtxEncoder, RefusesPagesThatBreakARule) {
  Encoder encoder;
  const auto refused = [&](std::uint32_t pgno, const char* why) {
    const auto result = add(encoder, pgno);
    ASSERT_TRUE(result.has_error()) << pgno;
    EXPECT_EQ(result.error().code, Errc::invalid_argument);
    EXPECT_THAT(result.error().message, HasSubstr(why));
  };
  const Header header = make_header(512, 0xffffffffu, 2, 2);
  ASSERT_TRUE(encoder.begin(header, discard).has_value());
  refused(0, "zero");
  ASSERT_TRUE(add(encoder, 10).has_value());
  refused(10, "after page 10");
  refused(9, "after page 10");
  refused(0x40000000u / 512 + 1, "lock page");
  ASSERT_TRUE(add(encoder, 0x40000000u / 512 + 2).has_value());
  ASSERT_TRUE(encoder.begin(make_header(512, 4, 2, 2), discard).has_value());
  refused(5, "above the commit size 4");
  const auto wrong_size = add(encoder, 1, 1024);
  EXPECT_THAT(wrong_size.error().message, HasSubstr("1024 bytes, not 512"));
}

TEST(LtxEncoder, SnapshotsHaveEveryPage) {
  Encoder encoder;
  ASSERT_TRUE(encoder.begin(make_header(512, 3, 1, 1), discard).has_value());
  EXPECT_TRUE(add(encoder, 2).has_error());
  ASSERT_TRUE(encoder.begin(make_header(512, 3, 1, 1), discard).has_value());
  ASSERT_TRUE(add(encoder, 1).has_value());
  EXPECT_TRUE(add(encoder, 3).has_error());
  ASSERT_TRUE(add(encoder, 2).has_value());
  EXPECT_THAT(encoder.finish(kEmptyChecksum).error().message, HasSubstr("ends at page 2"));
}

/// A page source for images too large to keep: page `pgno` is its number, repeated.
Bytes small_page(std::uint32_t page_size, std::uint32_t pgno) {
  Bytes page(page_size, static_cast<std::byte>(pgno));
  store_be<std::uint32_t>(page.data(), pgno);
  return page;
}

TEST(LtxCodec, SnapshotPastTheLockPageSkipsIt) {
  constexpr std::uint32_t kSize = 65536;
  const std::uint32_t lock = lock_page(kSize).value();
  ASSERT_EQ(lock, 16385u);
  const std::uint32_t commit = lock + 2;
  Bytes image;
  std::size_t largest = 0;
  Encoder encoder;
  ASSERT_TRUE(encoder
                  .begin(make_header(kSize, commit, 1, 1),
                         [&](ByteView piece) -> Result<void> {
                           image.insert(image.end(), piece.begin(), piece.end());
                           largest = std::max(largest, piece.size());
                           return {};
                         })
                  .has_value());
  Checksum sum = kEmptyChecksum;
  for (std::uint32_t pgno = 1; pgno <= commit; ++pgno) {
    if (pgno == lock) continue;
    const Bytes page = small_page(kSize, pgno);
    sum = toggle(sum, page_checksum(Pgno(pgno), page));
    ASSERT_TRUE(encoder.add_page(Pgno(pgno), page).has_value());
  }
  const auto trailer = encoder.finish(sum);
  ASSERT_TRUE(trailer.has_value()) << trailer.error().to_string();
  EXPECT_EQ(encoder.bytes_written(), image.size());
  EXPECT_EQ(encoder.pages_written(), commit - 1);
  EXPECT_LE(largest, std::size_t{1} << 20);
  std::uint32_t seen = 0;
  std::size_t largest_read = 0;
  const Source memory = memory_source(image);
  const Source watched = [&](std::uint64_t offset, ByteSpan out) {
    largest_read = std::max(largest_read, out.size());
    return memory(offset, out);
  };
  const auto decoded = decode(watched, image.size(), [&](Pgno pgno, ByteView page) -> Result<void> {
    EXPECT_NE(pgno.value(), lock);
    const Bytes expected = small_page(kSize, pgno.value());
    EXPECT_TRUE(std::equal(page.begin(), page.end(), expected.begin(), expected.end())) << pgno.value();
    ++seen;
    return {};
  });
  ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
  EXPECT_EQ(seen, commit - 1);
  EXPECT_LE(largest_read, std::size_t{1} << 20);
}

TEST(LtxEncoder, ASmallChangeSetReachesTheSinkInOneCall) {
  Encoder encoder;
  int calls = 0;
  for (int round = 1; round <= 3; ++round) {
    ASSERT_TRUE(encoder
                    .begin(make_header(4096, 100, 2, 2),
                           [&](ByteView) -> Result<void> {
                             ++calls;
                             return {};
                           })
                    .has_value());
    for (std::uint32_t pgno = 1; pgno <= 100; ++pgno) ASSERT_TRUE(add(encoder, pgno, 4096).has_value());
    ASSERT_TRUE(encoder.finish(Checksum(0x8000000000000001u)).has_value());
    EXPECT_EQ(calls, round);
  }
}

TEST(LtxEncoder, ReusedObjectsWriteTheSameBytes) {
  Pages large;
  for (std::uint32_t pgno = 1; pgno <= 600; ++pgno) large[pgno] = make_page(4096, pgno, 9);
  const Pages small{{4, make_page(4096, 4, 2)}};
  const Header header = make_header(4096, 600, 2, 2);
  const Checksum post(0x8000000000000001u);
  Encoder reused;
  for (const Pages* pages : std::initializer_list<const Pages*>{&small, &large, &small, &small}) {
    Bytes image;
    ASSERT_TRUE(reused
                    .begin(header,
                           [&](ByteView piece) -> Result<void> {
                             image.insert(image.end(), piece.begin(), piece.end());
                             return {};
                           })
                    .has_value());
    for (const auto& [pgno, page] : *pages) ASSERT_TRUE(reused.add_page(Pgno(pgno), page).has_value());
    ASSERT_TRUE(reused.finish(post).has_value());
    const auto decoded = decode_all(image);
    ASSERT_TRUE(decoded.has_value()) << decoded.error().to_string();
    EXPECT_EQ(decoded->pages, *pages);
  }
}

// Whoever compresses, and whenever: the bytes are the same.
TEST(LtxEncoder, HelpersAndBlocksMadeBeforeChangeNoByte) {
  ThreadPool helpers("help", 3);
  ThreadPool stopped("stopped", 1);
  stopped.stop();
  ThreadPool busy("busy", 1);
  std::promise<void> end;
  ASSERT_TRUE(busy.post([wait = end.get_future().share()] { wait.wait(); }));
  for (const std::uint32_t page_size : {512u, 4096u, 65536u}) {
    Pages pages;
    for (std::uint32_t pgno = 1; pgno <= 700; ++pgno) pages[pgno] = make_page(page_size, pgno, 9);
    const Header header = make_header(page_size, 700, 2, 2);
    const Checksum post(0x8000000000000001u);
    const auto expected = encode(header, pages, post);
    ASSERT_TRUE(expected.has_value());
    Encoder encoder;
    for (ThreadPool* pool : {&helpers, &stopped, &busy}) {
      for (const std::uint32_t packed_before : {0u, 3u, 100u}) {
        Bytes image;
        const Sink sink = [&image](ByteView piece) -> Result<void> {
          image.insert(image.end(), piece.begin(), piece.end());
          return {};
        };
        ASSERT_TRUE(encoder.begin(header, sink, pool).has_value());
        Bytes block(packed_bound(page_size));
        for (const auto& [pgno, page] : pages) {
          const bool before = packed_before != 0 && pgno % packed_before == 0;
          const std::size_t size = before ? pack_page(page, block) : 0;
          ASSERT_TRUE(encoder.add_page(Pgno(pgno), page, ByteView(block).first(size)).has_value());
        }
        ASSERT_TRUE(encoder.finish(post).has_value());
        EXPECT_TRUE(image == *expected) << page_size << " " << packed_before;
      }
    }
  }
  end.set_value();
}

TEST(LtxEncoder, AnImageThatBreaksOffLeavesNothingForTheNext) {
  ThreadPool helpers("help", 3);
  Pages pages;
  for (std::uint32_t pgno = 1; pgno <= 2000; ++pgno) pages[pgno] = make_page(4096, pgno, 4);
  const Header header = make_header(4096, 2000, 2, 2);
  const Checksum post(0x8000000000000001u);
  const auto expected = encode(header, pages, post);
  ASSERT_TRUE(expected.has_value());
  Encoder encoder;
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(encoder.begin(header, [](ByteView) -> Result<void> { return {}; }, &helpers).has_value());
    for (std::uint32_t pgno = 1; pgno <= 100u * static_cast<std::uint32_t>(round) + 1; ++pgno)
      ASSERT_TRUE(encoder.add_page(Pgno(pgno), pages[pgno]).has_value());
  }
  Bytes image;
  const Sink sink = [&image](ByteView piece) -> Result<void> {
    image.insert(image.end(), piece.begin(), piece.end());
    return {};
  };
  ASSERT_TRUE(encoder.begin(header, sink, &helpers).has_value());
  for (const auto& [pgno, page] : pages) ASSERT_TRUE(encoder.add_page(Pgno(pgno), page).has_value());
  ASSERT_TRUE(encoder.finish(post).has_value());
  EXPECT_TRUE(image == *expected);
}

TEST(LtxEncoder, PassesTheSinksErrorOnAndCanBeginAgain) {
  Encoder encoder;
  const auto full = [](ByteView) -> Result<void> { return make_error(Errc::no_space, "full"); };
  ASSERT_TRUE(encoder.begin(make_header(512, 3, 2, 2), full).has_value());
  ASSERT_TRUE(add(encoder, 2).has_value());
  EXPECT_EQ(encoder.finish(Checksum(0x8000000000000001u)).error().code, Errc::no_space);
  ASSERT_TRUE(encoder.begin(make_header(512, 3, 2, 2), discard).has_value());
  ASSERT_TRUE(add(encoder, 1).has_value());
  EXPECT_TRUE(encoder.finish(Checksum(0x8000000000000001u)).has_value());
}

TEST(LtxDecoder, PassesTheVisitorsAndTheSourcesErrorsOn) {
  const auto image =
      encode(make_header(512, 3, 2, 2), {{1, make_page(512, 1, 1)}}, Checksum(0x8000000000000001u));
  ASSERT_TRUE(image.has_value());
  const auto stopped = decode(memory_source(*image), image->size(), [](Pgno, ByteView) -> Result<void> {
    return make_error(Errc::cancelled, "stop");
  });
  EXPECT_EQ(stopped.error().code, Errc::cancelled);
  const Source broken = [](std::uint64_t, ByteSpan) -> Result<void> {
    return make_error(Errc::io, "bad sector");
  };
  EXPECT_EQ(verify(broken, image->size()).error().code, Errc::io);
}

TEST(LtxDecoder, PeekReadsHeaderAndTrailerOnly) {
  const auto image =
      encode(make_header(512, 3, 2, 2), {{1, make_page(512, 1, 1)}}, Checksum(0x8000000000000001u));
  ASSERT_TRUE(image.has_value());
  std::size_t bytes_read = 0;
  const Source memory = memory_source(*image);
  const Source counting = [&](std::uint64_t offset, ByteSpan out) {
    bytes_read += out.size();
    return memory(offset, out);
  };
  const auto peeked = peek(counting, image->size());
  ASSERT_TRUE(peeked.has_value());
  EXPECT_EQ(peeked->header, make_header(512, 3, 2, 2));
  EXPECT_EQ(peeked->trailer.post_apply_checksum, 0x8000000000000001u);
  EXPECT_EQ(bytes_read, kHeaderSize + kTrailerSize);
  EXPECT_EQ(peek(counting, 50).error().code, Errc::corrupt);
}

}  // namespace
}  // namespace sluice::ltx::test
