// Fuzzes read_wal_header and scan_wal. First byte even: the rest is the file. Odd: a program that builds a
// WAL with right checksums and then damages it, since no mutation finds a checksum. The result is compared
// with a naive scan.
#include "base/check.h"
#include "storage/sqlite/wal_reader.h"
#include "tests/fuzz/fuzz_input.h"
#include "tests/unit/sqlite/builders.h"
#include "tests/unit/sqlite/memory_file.h"

namespace {

using namespace sluice;
using namespace sluice::sqlite;

Bytes build(fuzz::Input in) {
  const std::uint8_t kind = in.byte();
  const std::uint32_t page_size = 512u << (kind & 1);
  test::WalBuilder wal(page_size, (kind & 2) != 0, in.word16(), in.word16());
  for (std::uint8_t frames = in.byte() % 24; frames > 0; --frames) {
    const std::uint8_t pgno = in.byte();
    wal.frame(pgno, in.byte() % 4 == 0 ? pgno : 0);
  }
  while (!in.empty()) {
    const std::size_t at = in.word16() % wal.bytes.size();
    const auto what = in.byte();
    if (what == 0) {
      wal.bytes.resize(at + 1);
    } else {
      wal.bytes[at] ^= static_cast<std::byte>(what);
    }
  }
  return std::move(wal.bytes);
}

// wal.c's rules, frame by frame, over the whole file in memory.
struct Naive {
  std::uint32_t committed = 0;
  std::uint32_t valid = 0;
};
Naive naive_scan(const Bytes& bytes, const WalHeader& header) {
  Naive out;
  std::uint32_t s0 = header.checksum.s0;
  std::uint32_t s1 = header.checksum.s1;
  const auto add = [&](ByteView data) {
    for (std::size_t i = 0; i + 8 <= data.size(); i += 8) {
      const auto load = header.big_endian_checksums ? load_be<std::uint32_t> : load_le<std::uint32_t>;
      s0 += load(&data[i]) + s1;
      s1 += load(&data[i + 4]) + s0;
    }
  };
  const std::size_t frame_size = 24 + std::size_t{header.page_size};
  for (std::size_t at = 32; at + frame_size <= bytes.size(); at += frame_size) {
    const ByteView frame = ByteView(bytes).subspan(at, frame_size);
    add(frame.first(8));
    add(frame.subspan(24));
    if (std::memcmp(&frame[8], &bytes[16], 8) != 0 || load_be<std::uint32_t>(&frame[0]) == 0 ||
        load_be<std::uint32_t>(&frame[16]) != s0 || load_be<std::uint32_t>(&frame[20]) != s1) {
      break;
    }
    ++out.valid;
    if (load_be<std::uint32_t>(&frame[4]) != 0) out.committed = out.valid;
  }
  return out;
}

void check_scan(const Bytes& bytes) {
  const test::MemoryFile file(bytes);
  const auto header = read_wal_header(file);
  if (header.has_error()) {
    CHECK(header.error().code == Errc::corrupt || header.error().code == Errc::not_found);
    return;
  }
  std::uint32_t visited = 0;
  std::uint32_t last_commit = 0;
  const WalPosition begin{header->salts, 0, header->checksum};
  const auto visit = [&](const ScannedFrame& frame) -> Result<void> {
    CHECK(frame.frame == ++visited && frame.pgno != 0);
    last_commit = frame.commit;
    return {};
  };
  const auto scan = scan_wal(file, *header, begin, visit);
  CHECK(scan.has_value());
  const Naive naive = naive_scan(bytes, *header);
  CHECK(scan->end.frame == naive.committed && scan->valid_frames == naive.valid);
  CHECK(scan->end.frame == visited && scan->commit == last_commit);
  const auto again = scan_wal(file, *header, scan->end, visit);
  CHECK(again.has_value() && again->end == scan->end && visited == scan->end.frame);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input in(data, size);
  if ((in.byte() & 1) != 0) {
    check_scan(build(in));
  } else {
    check_scan(Bytes(in.rest().begin(), in.rest().end()));
  }
  return 0;
}
