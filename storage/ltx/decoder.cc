#include "storage/ltx/decoder.h"

#include <lz4.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "storage/ltx/page_rules.h"

namespace sluice::ltx {
namespace {

/// The least an image can have: header, terminator, empty index with its length, trailer.
constexpr std::uint64_t kMinImageSize = kHeaderSize + kPageHeaderSize + 1 + 8 + kTrailerSize;

Error corrupt(std::uint64_t offset, const std::string& what) {
  return make_error(Errc::corrupt, fmt::format("LTX image at byte {}: {}", offset, what));
}

/// Reads an image front to back through a window of at most kPieceSize bytes.
class Reader {
 public:
  Reader(const Source& source, std::uint64_t size) : source_(source), size_(size) {}

  std::uint64_t position() const { return window_at_ + used_; }
  std::uint64_t left() const { return size_ - position(); }

  /// The next `n` (<= kPieceSize) bytes; valid until the next call.
  Result<ByteView> take(std::size_t n) {
    if (n > left()) return corrupt(position(), "the image ends too early");
    if (n > filled_ - used_) TRY(refill(n));
    const ByteView view(window_.data() + used_, n);
    used_ += n;
    return view;
  }

 private:
  Result<void> refill(std::size_t need) {
    const std::size_t kept = filled_ - used_;
    const std::uint64_t from = window_at_ + filled_;
    const std::size_t want =
        static_cast<std::size_t>(std::min<std::uint64_t>(std::max(need, kPieceSize), size_ - from + kept));
    if (window_.size() < want) {
      Bytes larger(want);
      if (kept > 0) std::memcpy(larger.data(), window_.data() + used_, kept);
      window_ = std::move(larger);
    } else if (kept > 0) {
      std::memmove(window_.data(), window_.data() + used_, kept);
    }
    window_at_ += used_;
    used_ = 0;
    filled_ = kept;
    TRY(source_(from, ByteSpan(window_).subspan(kept, want - kept)));
    filled_ = want;
    return {};
  }

  const Source& source_;
  const std::uint64_t size_;
  Bytes window_;
  std::uint64_t window_at_ = 0;  ///< offset in the image of window_[0]
  std::size_t used_ = 0;
  std::size_t filled_ = 0;
};

class ImageDecoder {
 public:
  ImageDecoder(const Source& source, std::uint64_t size, PageVisitor visit)
      : reader_(source, size), size_(size), visit_(visit) {}

  Result<Decoded> run() {
    if (size_ < kMinImageSize) return corrupt(0, fmt::format("{} bytes are too few for an image", size_));
    TRY_ASSIGN(const ByteView head, take_summed(kHeaderSize));
    TRY_ASSIGN(result_.header, parse_header(head));
    TRY(read_pages());
    TRY(read_index());
    TRY(read_trailer());
    return result_;
  }

 private:
  Result<ByteView> take_summed(std::size_t n) {
    TRY_ASSIGN(const ByteView view, reader_.take(n));
    crc_.update(view);
    return view;
  }

  Result<void> read_pages() {
    const Header& header = result_.header;
    PageRules rules(header);
    Bytes page(header.page_size);
    for (;;) {
      const std::uint64_t offset = reader_.position();
      TRY_ASSIGN(const ByteView head, take_summed(kPageHeaderSize));
      if (all_zero(head)) break;
      const Pgno pgno(load_be<std::uint32_t>(head.data()));
      const auto flags = load_be<std::uint16_t>(head.data() + 4);
      if (flags != kPageFlagSized) {
        return corrupt(
            offset, fmt::format("page flags {:#x}; only block-compressed pages ({:#x}) are supported", flags,
                                kPageFlagSized));
      }
      if (const std::string wrong = rules.next(pgno); !wrong.empty()) return corrupt(offset, wrong);
      TRY(read_content(page));
      const Checksum sum = page_sum(pgno, page);
      if (sum != Checksum{}) database_ = toggle(database_, sum);
      note_indexed(pgno, offset);
      ++result_.pages;
      TRY(visit_(pgno, page));
    }
    if (const std::string wrong = rules.end(); !wrong.empty()) return corrupt(reader_.position(), wrong);
    return {};
  }

  Result<void> read_content(ByteSpan page) {
    const std::uint64_t offset = reader_.position();
    TRY_ASSIGN(const ByteView field, take_summed(4));
    const auto packed = load_be<std::uint32_t>(field.data());
    const int size = static_cast<int>(page.size());
    if (packed == 0 || packed > static_cast<std::uint32_t>(LZ4_compressBound(size))) {
      return corrupt(offset, fmt::format("compressed size {} for a page of {}", packed, size));
    }
    TRY_ASSIGN(const ByteView block, reader_.take(packed));
    const int got = LZ4_decompress_safe(reinterpret_cast<const char*>(block.data()),
                                        reinterpret_cast<char*>(page.data()), static_cast<int>(packed), size);
    if (got != size) return corrupt(offset, "the LZ4 block does not hold one page");
    crc_.update(page);
    return {};
  }

  /// Only snapshots need it: their post-apply checksum is that of their own pages.
  Checksum page_sum(Pgno pgno, ByteView page) const {
    const Header& header = result_.header;
    return header.is_snapshot() && !header.no_checksum() ? page_checksum(pgno, page) : Checksum{};
  }

  void note_indexed(Pgno pgno, std::uint64_t offset) {
    std::byte entry[kMaxIndexEntry];
    const std::size_t n = put_index_entry(entry, pgno, offset, reader_.position() - offset);
    index_crc_.update(ByteView(entry, n));
    index_size_ += n;
  }

  /// The index must be the one that the pages call for. Comparing length and CRC-64 keeps memory constant,
  /// and is as strong as the file checksum.
  Result<void> read_index() {
    const std::uint64_t offset = reader_.position();
    const std::byte end_mark[1] = {};
    index_crc_.update(end_mark);
    index_size_ += sizeof end_mark;
    if (reader_.left() != index_size_ + 8 + kTrailerSize) {
      return corrupt(offset, fmt::format("{} bytes follow the pages where index and trailer have {}",
                                         reader_.left(), index_size_ + 8 + kTrailerSize));
    }
    Crc64 actual;
    for (std::uint64_t left = index_size_; left > 0;) {
      const std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(left, kPieceSize));
      TRY_ASSIGN(const ByteView piece, take_summed(n));
      actual.update(piece);
      left -= n;
    }
    TRY_ASSIGN(const ByteView length, take_summed(8));
    if (actual.value() != index_crc_.value() || load_be<std::uint64_t>(length.data()) != index_size_) {
      return corrupt(offset, "the page index does not match the pages");
    }
    return {};
  }

  Result<void> read_trailer() {
    const std::uint64_t offset = reader_.position();
    TRY_ASSIGN(const ByteView tail, reader_.take(kTrailerSize));
    crc_.update(tail.first(8));
    const Trailer trailer = parse_trailer(tail);
    if (trailer.file_checksum != (kEmptyChecksum.value() | crc_.value())) {
      return corrupt(offset, "the file checksum does not match");
    }
    const Header& header = result_.header;
    if (const std::string wrong = check_post_apply(header, trailer.post_apply_checksum); !wrong.empty()) {
      return corrupt(offset, wrong);
    }
    if (header.is_snapshot() && !header.no_checksum() && trailer.post_apply_checksum != database_.value()) {
      return corrupt(offset, "the post-apply checksum is not that of the snapshot's pages");
    }
    result_.trailer = trailer;
    return {};
  }

  Reader reader_;
  const std::uint64_t size_;
  PageVisitor visit_;
  Decoded result_;
  Crc64 crc_;
  Checksum database_ = kEmptyChecksum;
  Crc64 index_crc_;
  std::uint64_t index_size_ = 0;
};

}  // namespace

Source memory_source(ByteView image) {
  return [image](std::uint64_t offset, ByteSpan out) -> Result<void> {
    if (offset > image.size() || out.size() > image.size() - offset)
      return corrupt(offset, "the image ends too early");
    if (!out.empty()) std::memcpy(out.data(), image.data() + offset, out.size());
    return {};
  };
}

Result<Decoded> decode(const Source& source, std::uint64_t size, PageVisitor visit) {
  return ImageDecoder(source, size, visit).run();
}

Result<Decoded> verify(const Source& source, std::uint64_t size) {
  return decode(source, size, [](Pgno, ByteView) -> Result<void> { return {}; });
}

Result<Decoded> peek(const Source& source, std::uint64_t size) {
  if (size < kMinImageSize) return corrupt(0, fmt::format("{} bytes are too few for an image", size));
  std::byte head[kHeaderSize];
  TRY(source(0, head));
  std::byte tail[kTrailerSize];
  TRY(source(size - kTrailerSize, tail));
  Decoded result;
  TRY_ASSIGN(result.header, parse_header(head));
  result.trailer = parse_trailer(tail);
  return result;
}

}  // namespace sluice::ltx
