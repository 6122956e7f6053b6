// Fuzzes the wal-index over arbitrary 32 KiB blocks. Input: operations (see run()), after a length byte; then
// the block's content, repeated to its end.
#include <algorithm>
#include <memory>

#include "base/check.h"
#include "storage/sqlite/wal_index.h"
#include "tests/fuzz/fuzz_input.h"

namespace {

using namespace sluice;
using namespace sluice::sqlite;

struct alignas(4096) Block {
  std::byte bytes[kWalIndexBlockSize];
};

void check_no_entry_above(const std::byte* block, std::uint32_t limit) {
  std::uint16_t largest = 0;
  for (std::size_t at = 16384; at < kWalIndexBlockSize; at += 2) {
    largest = std::max(largest, load_le<std::uint16_t>(block + at));
  }
  CHECK(largest <= limit);
}

void run(fuzz::Input& in, std::size_t operations, std::byte* block) {
  for (; operations > 0; --operations) {
    const std::uint8_t what = in.byte();
    const std::uint32_t frame = what & 16 ? in.word32() : in.word16() + 1u;
    const std::uint32_t pgno = in.word16() + 1u;
    switch (what % 5) {
      case 0: {
        WalIndexHeader header;
        if (read_header(block, header) == HeaderState::invalid) break;
        publish_header(block, header);
        WalIndexHeader again;
        CHECK(read_header(block, again) == HeaderState::valid && again.mx_frame == header.mx_frame);
        break;
      }
      case 1:
        CHECK(frame_slot_used(block, frame) == (frame_page(block, frame) != 0));
        break;
      case 2:
        if (frame != 0 && append_frame(block, frame, pgno).has_value())
          CHECK(frame_page(block, frame) == pgno);
        break;
      case 3:
        remove_frames_above(block, frame);
        if (frame != 0) check_no_entry_above(block, frame <= 4062 ? frame : (frame - 4063) % 4096 + 1);
        break;
      default: {
        const CheckpointInfo info = read_checkpoint_info(block);
        CHECK(info.backfilled == load_backfilled(block));
        store_read_mark(block, what / 5 % 5, frame);
        CHECK(load_read_mark(block, what / 5 % 5) == frame);
      }
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input in(data, size);
  const std::size_t operations = in.byte() % 32;
  const auto block = std::make_unique<Block>();
  const ByteView content = in.rest().subspan(std::min(in.rest().size(), operations * 6));
  std::memset(block->bytes, 0, kWalIndexBlockSize);
  for (std::size_t at = 0; at < kWalIndexBlockSize && !content.empty(); at += content.size()) {
    std::memcpy(block->bytes + at, content.data(), std::min(content.size(), kWalIndexBlockSize - at));
  }
  run(in, operations, block->bytes);
  return 0;
}
