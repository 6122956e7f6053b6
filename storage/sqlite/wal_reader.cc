#include "storage/sqlite/wal_reader.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <vector>

namespace sluice::sqlite {
namespace {

constexpr std::size_t kFirstPiece = std::size_t{64}
                                    << 10;  // a tail is usually short: do not read a whole MiB for it
constexpr std::size_t kLargestPiece = std::size_t{1} << 20;

// Walks the chain; collects the open transaction's page numbers until its commit frame was seen.
class ChainWalker {
 public:
  ChainWalker(const WalHeader& header, const WalPosition& start,
              FunctionRef<Result<void>(const ScannedFrame&)> visit)
      : header_(header), at_(start), scan_{start, 0, start.frame}, visit_(visit) {}

  std::uint32_t frame() const { return at_.frame; }
  const WalScan& scan() const { return scan_; }

  /// False: this frame does not continue the chain, which ends before it.
  Result<bool> step(ByteView frame) {
    const FrameHeader head = parse_frame_header(frame);
    // walDecodeFrame()
    if (head.salts != header_.salts || head.pgno == 0) return false;
    const ByteView page = frame.subspan(kWalFrameHeaderSize);
    const WalChecksum sum = frame_checksum(header_.big_endian_checksums, frame, page, at_.checksum);
    if (sum != head.checksum) return false;

    at_.checksum = sum;
    scan_.valid_frames = ++at_.frame;
    open_.push_back(head.pgno);
    if (head.commit != 0) TRY(commit(head.commit));
    return true;
  }

 private:
  Result<void> commit(std::uint32_t pages) {
    std::uint32_t frame = scan_.end.frame;
    for (const std::uint32_t pgno : open_) {
      ++frame;
      TRY(visit_({frame, pgno, frame == at_.frame ? pages : 0}));
    }
    open_.clear();
    scan_.end = at_;
    scan_.commit = pages;
    return {};
  }

  const WalHeader& header_;
  WalPosition at_;
  WalScan scan_;
  FunctionRef<Result<void>(const ScannedFrame&)> visit_;
  std::vector<std::uint32_t>
      open_;  // four bytes for each valid frame in the file: bounded by what is really there
};

}  // namespace

Result<WalHeader> read_wal_header(const File& wal) {
  std::array<std::byte, kWalHeaderSize> bytes{};
  TRY_ASSIGN(const std::size_t n, wal.read_at(0, bytes));
  if (n < bytes.size() || all_zero(bytes)) {
    return make_error(Errc::not_found, wal.path() + ": the WAL is empty");
  }
  auto header = parse_wal_header(bytes);
  if (header.has_error()) return with_context(wal.path(), std::move(header).error());
  return header;
}

Result<WalScan> scan_wal(const File& wal, const WalHeader& header, const WalPosition& start,
                         FunctionRef<Result<void>(const ScannedFrame&)> visit) {
  if (!valid_page_size(header.page_size) || start.salts != header.salts) {
    return make_error(Errc::position, wal.path() + ": the position is not of this generation of the WAL");
  }
  const std::size_t frame_size = kWalFrameHeaderSize + header.page_size;
  ChainWalker walker(header, start, visit);
  std::unique_ptr<std::byte[]> buffer;
  std::size_t buffer_size = 0;
  for (std::size_t piece = kFirstPiece;; piece = std::min(piece * 4, kLargestPiece)) {
    const std::size_t frames = std::max<std::size_t>(piece / frame_size, 1);
    if (frames * frame_size > buffer_size) {
      buffer_size = frames * frame_size;
      buffer = std::make_unique_for_overwrite<std::byte[]>(buffer_size);
    }
    const ByteSpan wanted(buffer.get(), frames * frame_size);
    if (walker.frame() == std::numeric_limits<std::uint32_t>::max()) return walker.scan();
    TRY_ASSIGN(const std::size_t n, wal.read_at(frame_offset(header.page_size, walker.frame() + 1), wanted));
    for (std::size_t at = 0; at + frame_size <= n; at += frame_size) {
      TRY_ASSIGN(const bool valid, walker.step(ByteView(wanted).subspan(at, frame_size)));
      if (!valid || walker.frame() == std::numeric_limits<std::uint32_t>::max()) return walker.scan();
    }
    if (n < wanted.size()) return walker.scan();
  }
}

}  // namespace sluice::sqlite
