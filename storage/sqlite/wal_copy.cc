#include "storage/sqlite/wal_copy.h"

#include <algorithm>
#include <array>
#include <string>

namespace sluice::sqlite {
namespace {

constexpr std::size_t kPiece = std::size_t{1} << 20;

// The frame that the index names as the last one is really there.
Result<bool> is_last_frame(const File& wal, const WalHeader& header, const WalIndexHeader& index) {
  std::array<std::byte, kWalFrameHeaderSize> bytes{};
  TRY_ASSIGN(const std::size_t n, wal.read_at(frame_offset(header.page_size, index.mx_frame), bytes));
  if (n != bytes.size()) return false;
  const FrameHeader frame = parse_frame_header(bytes);
  return frame.zero_salt || (frame.salts == index.salts && frame.checksum == index.frame_checksum);
}

}  // namespace

Result<WalCut> find_committed(const File& wal, const WalIndexHeader* index) {
  WalCut cut;
  auto header = read_wal_header(wal);
  if (header.has_error()) {
    const bool none = header.error().code == Errc::not_found || header.error().code == Errc::corrupt;
    if (!none) return header.error();
    return cut;
  }
  cut.empty = false;
  cut.header = *header;
  WalPosition start{header->salts, 0, header->checksum};
  if (index != nullptr && index->salts == header->salts) {
    cut.index_counts = true;
    if (index->mx_frame != 0) {
      TRY_ASSIGN(cut.index_counts, is_last_frame(wal, *header, *index));
    }
    if (cut.index_counts && index->mx_frame != 0) start = {header->salts, index->mx_frame, index->frame_checksum};
  }
  cut.published = start.frame;
  TRY_ASSIGN(const WalScan scan, scan_wal(wal, *header, start, [](const ScannedFrame&) -> Result<void> { return {}; }));
  cut.complete = scan.end.frame;
  return cut;
}

Result<void> copy_committed(const File& wal, const WalHeader& header, std::uint32_t frames, File& to) {
  std::array<std::byte, kWalHeaderSize> head{};
  TRY_ASSIGN(const std::size_t got, wal.read_at(0, head));
  if (got != head.size()) return make_error(Errc::corrupt, wal.path() + " ends inside its header");
  TRY(to.write_at(0, head));
  const std::size_t size = header.page_size + kWalFrameHeaderSize;
  Bytes piece(std::max(size, kPiece / size * size));
  WalChecksum theirs = header.checksum;
  WalChecksum ours = header.checksum;
  bool hole = false;        ///< some frame had neither salt nor checksum
  bool chain_lost = false;  ///< the last one had not
  for (std::uint32_t frame = 1; frame <= frames;) {
    const std::uint32_t count = std::min<std::uint32_t>(frames - frame + 1, static_cast<std::uint32_t>(piece.size() / size));
    const ByteSpan bytes(piece.data(), count * size);
    TRY_ASSIGN(const std::size_t n, wal.read_at(frame_offset(header.page_size, frame), bytes));
    if (n != bytes.size()) return make_error(Errc::corrupt, wal.path() + " ends inside frame " + std::to_string(frame + n / size));
    for (std::uint32_t i = 0; i < count; ++i) {
      const ByteSpan one = bytes.subspan(i * size, size);
      const ByteView page = one.subspan(kWalFrameHeaderSize);
      const FrameHeader was = parse_frame_header(one);
      if (was.zero_salt) {
        hole = chain_lost = true;
      } else {
        const WalChecksum chained = frame_checksum(header.big_endian_checksums, one, page, theirs);
        // The frame behind one without checksum goes on from a sum that only its writer knew.
        if (was.salts != header.salts || (chained != was.checksum && !chain_lost))
          return make_error(Errc::corrupt, wal.path() + ": frame " + std::to_string(frame + i) + " is damaged");
        theirs = was.checksum;
        chain_lost = false;
      }
      if (hole)
        ours = write_frame_header(was.pgno, was.commit, header, page, ours, one);
      else
        ours = theirs;
    }
    TRY(to.write_at(frame_offset(header.page_size, frame), bytes));
    frame += count;
  }
  return {};
}

}  // namespace sluice::sqlite
