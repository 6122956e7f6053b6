#include "storage/sqlite/wal_index.h"

#include <gtest/gtest.h>

#include <atomic>
#include <deque>
#include <map>
#include <thread>

#include "tests/unit/sqlite/builders.h"

namespace sluice::sqlite {
namespace {

// One 32 KiB block at a page boundary, as mmap gives it.
struct alignas(4096) Block {
  std::array<std::byte, kWalIndexBlockSize> bytes{};
  std::byte* data() { return bytes.data(); }
  const std::byte* data() const { return bytes.data(); }
};

// A wal-index that grows by blocks, with SQLite's lookup (sqlite3WalFindFrame()) written down once more.
class Index {
 public:
  std::byte* block(std::uint32_t frame) {
    while (blocks_.size() <= block_of(frame)) blocks_.emplace_back();
    return blocks_[block_of(frame)].data();
  }
  std::byte* header() { return block(1); }
  Result<void> append(std::uint32_t frame, std::uint32_t pgno) {
    return append_frame(block(frame), frame, pgno);
  }

  std::uint32_t find(std::uint32_t pgno, std::uint32_t mx_frame) {
    for (std::uint32_t b = block_of(mx_frame) + 1; b-- > 0;) {
      const std::byte* p = blocks_[b].data();
      const std::uint32_t zero = b == 0 ? 0 : 4062 + (b - 1) * 4096;
      const std::byte* pages = b == 0 ? p + 136 : p;
      std::uint32_t found = 0;
      for (std::uint32_t key = pgno * 383 & 8191;; key = (key + 1) & 8191) {
        const std::uint32_t entry = load_le<std::uint16_t>(p + 16384 + key * 2);
        if (entry == 0) break;
        if (entry + zero <= mx_frame && load_le<std::uint32_t>(pages + (entry - 1) * 4) == pgno)
          found = entry + zero;
      }
      if (found != 0) return found;
    }
    return 0;
  }

 private:
  std::deque<Block> blocks_;
};

TEST(WalIndexBlocks, FrameToBlock) {
  EXPECT_EQ(block_of(1), 0u);
  EXPECT_EQ(block_of(4062), 0u);
  EXPECT_EQ(block_of(4063), 1u);
  EXPECT_EQ(block_of(4062 + 4096), 1u);
  EXPECT_EQ(block_of(4062 + 4096 + 1), 2u);
  EXPECT_EQ(block_of(4062 + 3 * 4096), 3u);
  EXPECT_EQ(block_of(4062 + 3 * 4096 + 1), 4u);
}

TEST(WalIndexHeader, PageSizeCode) {
  for (std::uint32_t size = 512; size <= 65536; size *= 2) {
    WalIndexHeader header;
    header.page_size_code = encode_page_size(size);
    EXPECT_EQ(header.page_size(), size);
  }
  EXPECT_EQ(encode_page_size(65536), 1);
}

WalIndexHeader sample_header(std::uint32_t n) {
  WalIndexHeader header;
  header.change = n;
  header.page_size_code = encode_page_size(4096);
  header.mx_frame = n * 3;
  header.page_count = n * 5;
  header.frame_checksum = {n * 7, n * 11};
  header.salts = {n * 13, n * 17};
  return header;
}

TEST(WalIndexHeader, PublishedHeaderIsReadBack) {
  Block block;
  publish_header(block.data(), sample_header(9));
  WalIndexHeader got;
  ASSERT_EQ(read_header(block.data(), got), HeaderState::valid);
  EXPECT_EQ(got.version, 3007000u);
  EXPECT_EQ(got.is_init, 1);
  EXPECT_EQ(got.change, 9u);
  EXPECT_EQ(got.mx_frame, 27u);
  EXPECT_EQ(got.page_count, 45u);
  EXPECT_EQ(got.frame_checksum, (WalChecksum{63, 99}));
  EXPECT_EQ(got.salts, (Salts{117, 153}));
  // wal.c's layout
  EXPECT_EQ(load_le<std::uint32_t>(block.data() + 16), 27u);
  EXPECT_EQ(std::memcmp(block.data(), block.data() + 48, 48), 0);
  EXPECT_EQ(
      wal_checksum(false, ByteView(block.bytes).first(40), {}),
      (WalChecksum{load_le<std::uint32_t>(block.data() + 40), load_le<std::uint32_t>(block.data() + 44)}));
}

TEST(WalIndexHeader, ZeroOrDamagedIsInvalid) {
  Block block;
  WalIndexHeader got;
  EXPECT_EQ(read_header(block.data(), got), HeaderState::invalid);
  publish_header(block.data(), sample_header(9));
  for (std::size_t at = 0; at < 48; ++at) {
    Block bad = block;
    bad.bytes[at] ^= std::byte{0x10};
    bad.bytes[at + 48] ^= std::byte{0x10};
    EXPECT_EQ(read_header(bad.data(), got), HeaderState::invalid) << at;
  }
  Block uninitialised = block;
  uninitialised.bytes[12] = uninitialised.bytes[60] = std::byte{0};
  EXPECT_EQ(read_header(uninitialised.data(), got), HeaderState::invalid);
}

TEST(WalIndexHeader, TornHeaderGivesTheIntactCopy) {
  Block older;
  Block newer;
  publish_header(older.data(), sample_header(1));
  publish_header(newer.data(), sample_header(2));
  WalIndexHeader got;

  // The writer died between the copies: [1] new, [0] old.
  Block block = older;
  std::memcpy(block.data() + 48, newer.data() + 48, 48);
  EXPECT_EQ(read_header(block.data(), got), HeaderState::torn);
  EXPECT_EQ(got.change, 1u);

  // It died in the middle of [1], then in the middle of [0].
  for (std::size_t n = 4; n < 48; n += 4) {
    block = older;
    std::memcpy(block.data() + 48, newer.data() + 48, n);
    const bool differs = std::memcmp(block.data(), block.data() + 48, 48) != 0;
    EXPECT_EQ(read_header(block.data(), got), differs ? HeaderState::torn : HeaderState::valid) << n;
    EXPECT_EQ(got.change, 1u);
    block = newer;
    std::memcpy(block.data(), older.data(), 48);
    std::memcpy(block.data(), newer.data(), n);
    const HeaderState state = read_header(block.data(), got);
    EXPECT_EQ(state, HeaderState::torn) << n;
    EXPECT_EQ(got.change, n >= 12 && std::memcmp(block.data(), newer.data(), 48) == 0 ? 2u : got.change);
    EXPECT_TRUE(got.change == 1 || got.change == 2);
    EXPECT_EQ(got.mx_frame, got.change * 3);
  }
  block = older;
  block.bytes[20] ^= std::byte{1};
  block.bytes[48 + 24] ^= std::byte{1};
  EXPECT_EQ(read_header(block.data(), got), HeaderState::invalid);
}

TEST(WalIndexHeader, CheckpointInfo) {
  Block block;
  store_backfilled(block.data(), 5);
  store_backfill_attempted(block.data(), 8);
  for (unsigned i = 0; i < 5; ++i) store_read_mark(block.data(), i, 100 + i);
  EXPECT_EQ(load_backfilled(block.data()), 5u);
  EXPECT_EQ(load_read_mark(block.data(), 3), 103u);
  const CheckpointInfo info = read_checkpoint_info(block.data());
  EXPECT_EQ(info.backfilled, 5u);
  EXPECT_EQ(info.backfill_attempted, 8u);
  EXPECT_EQ(info.read_marks, (std::array<std::uint32_t, 5>{100, 101, 102, 103, 104}));
  // offsets in the file
  EXPECT_EQ(load_le<std::uint32_t>(block.data() + 96), 5u);
  EXPECT_EQ(load_le<std::uint32_t>(block.data() + 100), 100u);
  EXPECT_EQ(load_le<std::uint32_t>(block.data() + 128), 8u);
}

// Threads stand for processes here: a writer that goes on publishing and readers that must never see a
// mixture.
TEST(WalIndexHeader, ConcurrentReadersSeeWholeHeaders) {
  Block block;
  publish_header(block.data(), sample_header(1));
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::atomic<int> seen{0};
  std::vector<std::thread> readers;
  for (int r = 0; r < 2; ++r) {
    readers.emplace_back([&] {
      std::uint32_t last = 0;
      while (!stop.load()) {
        WalIndexHeader got;
        if (read_header(block.data(), got) == HeaderState::invalid) ++wrong;
        if (got.mx_frame != got.change * 3 || got.salts.raw1 != got.change * 17 || got.change < last) ++wrong;
        if (frame_page(block.data(), got.change % 4000 + 1) == 0 && got.change > 8000) ++wrong;
        last = got.change;
        ++seen;
      }
    });
  }
  std::uint32_t n = 1;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while ((n < 20000 || seen.load() < 1000) && std::chrono::steady_clock::now() < deadline) {
    ++n;
    if (n <= 4062) {
      ASSERT_TRUE(append_frame(block.data(), n - 1, n).has_value());
    }
    publish_header(block.data(), sample_header(n));
  }
  stop = true;
  for (auto& t : readers) t.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_GE(seen.load(), 1000);
}

TEST(WalIndexFrames, LookupFindsTheLastVersion) {
  Index index;
  std::map<std::uint32_t, std::uint32_t> expected;
  const std::uint32_t frames = 4062 + 2 * 4096 + 500;
  for (std::uint32_t frame = 1; frame <= frames; ++frame) {
    const std::uint32_t pgno = frame * 2654435761u % 3000 + 1;
    ASSERT_TRUE(index.append(frame, pgno).has_value()) << frame;
    expected[pgno] = frame;
    ASSERT_EQ(frame_page(index.block(frame), frame), pgno);
    ASSERT_TRUE(frame_slot_used(index.block(frame), frame));
  }
  for (const auto& [pgno, frame] : expected) EXPECT_EQ(index.find(pgno, frames), frame) << pgno;
  EXPECT_EQ(index.find(4000, frames), 0u);
}

TEST(WalIndexFrames, EveryPageTheSame) {
  Index index;
  for (std::uint32_t frame = 1; frame <= 4062 + 4096; ++frame)
    ASSERT_TRUE(index.append(frame, 1).has_value()) << frame;
  EXPECT_EQ(index.find(1, 4062 + 4096), 4062u + 4096u);
  EXPECT_EQ(index.find(1, 4062), 4062u);
  EXPECT_EQ(index.find(1, 17), 17u);
}

TEST(WalIndexFrames, FirstEntryOfABlockZeroesItButNotTheHeader) {
  Block first;
  std::memset(first.data(), 0xee, first.bytes.size());
  ASSERT_TRUE(append_frame(first.data(), 1, 42).has_value());
  EXPECT_EQ(first.bytes[135], std::byte{0xee});
  EXPECT_EQ(load_le<std::uint32_t>(first.data() + 136), 42u);
  EXPECT_TRUE(all_zero(ByteView(first.bytes).subspan(140, 16384 - 140)));
  EXPECT_EQ(load_le<std::uint16_t>(first.data() + 16384 + 42 * 383 % 8192 * 2), 1u);

  Block second;
  std::memset(second.data(), 0xee, second.bytes.size());
  ASSERT_TRUE(append_frame(second.data(), 4063, 7).has_value());
  EXPECT_EQ(load_le<std::uint32_t>(second.data()), 7u);
  EXPECT_TRUE(all_zero(ByteView(second.bytes).subspan(4, 16384 - 4)));
  EXPECT_EQ(load_le<std::uint16_t>(second.data() + 16384 + 7 * 383 % 8192 * 2), 1u);
}

TEST(WalIndexFrames, LeftoversOfADeadWriterAreRemoved) {
  for (const std::uint32_t committed : {1u, 30u, 4061u, 4062u, 4063u, 4062u + 4095u}) {
    Index clean;
    Index dirty;
    for (std::uint32_t frame = 1; frame <= committed; ++frame) {
      ASSERT_TRUE(clean.append(frame, frame % 50 + 1).has_value());
      ASSERT_TRUE(dirty.append(frame, frame % 50 + 1).has_value());
    }
    const std::uint32_t end_of_block = committed <= 4062 ? 4062 : 4062 + 4096;
    const std::uint32_t last = std::min(committed + 700, end_of_block);
    for (std::uint32_t frame = committed + 1; frame <= last; ++frame) {
      ASSERT_TRUE(dirty.append(frame, frame % 60 + 1).has_value());
    }
    if (last > committed) {
      EXPECT_TRUE(frame_slot_used(dirty.block(committed + 1), committed + 1));
      if (block_of(committed + 1) == block_of(committed) && committed + 1 != 4063) {
        EXPECT_EQ(dirty.append(committed + 1, 5).error().code, Errc::corrupt)
            << "leftovers are not written over";
      }
    }
    remove_frames_above(dirty.block(committed), committed);
    EXPECT_EQ(std::memcmp(clean.block(committed) + (committed <= 4062 ? 136 : 0),
                          dirty.block(committed) + (committed <= 4062 ? 136 : 0),
                          kWalIndexBlockSize - (committed <= 4062 ? 136 : 0)),
              0)
        << committed;
  }
}

TEST(WalIndexFrames, RemoveAboveZeroLeavesTheBlockToItsFirstEntry) {
  Index index;
  ASSERT_TRUE(index.append(1, 9).has_value());
  remove_frames_above(index.block(1), 0);
  EXPECT_EQ(frame_page(index.block(1), 1), 9u);
  ASSERT_TRUE(index.append(1, 10).has_value());
  EXPECT_EQ(index.find(9, 1), 0u);
  EXPECT_EQ(index.find(10, 1), 1u);
}

TEST(WalIndexFrames, FullHashTableIsAnErrorNotALoop) {
  Block block;
  ASSERT_TRUE(append_frame(block.data(), 1, 1).has_value());
  std::memset(block.data() + 16384, 0xff, 16384);
  EXPECT_EQ(append_frame(block.data(), 2, 3).error().code, Errc::corrupt);
}

TEST(WalIndexFrames, FrameZeroHasNoPage) {
  Block block;
  std::memset(block.data(), 0xff, block.bytes.size());
  EXPECT_EQ(frame_page(block.data(), 0), 0u);
}

}  // namespace
}  // namespace sluice::sqlite
