#include "storage/ltx/compactor.h"

#include <lz4.h>

#include <algorithm>

#include "storage/ltx/page_rules.h"

namespace sluice::ltx {
namespace {

Error refused(std::size_t input, const std::string& what) {
  return make_error(Errc::invalid_argument, fmt::format("compaction: input {}: {}", input + 1, what));
}

/// Where the newest version of a page is.
struct Location {
  std::uint64_t offset;  ///< of the frame in its image
  Pgno pgno;
  std::uint32_t input;
};

class Compactor {
 public:
  explicit Compactor(const std::vector<CompactorInput>& inputs) : inputs_(inputs) {}

  Result<Decoded> run(bool no_checksum, Sink sink) {
    if (inputs_.empty()) return make_error(Errc::invalid_argument, "compaction: no inputs");
    for (std::size_t i = 0; i < inputs_.size(); ++i) TRY(add_input(i));
    drop_older_versions();
    return write(no_checksum, std::move(sink));
  }

 private:
  Result<void> add_input(std::size_t i) {
    TRY_ASSIGN(const Decoded image, verify(inputs_[i].source, inputs_[i].size));
    if (i == 0) {
      first_ = image;
    } else {
      TRY(check_follows(i, image));
    }
    all_checksums_ = all_checksums_ && !image.header.no_checksum();
    last_ = image;
    TRY(read_index(i, image.pages));
    if (pages_.size() > merge_at_) drop_older_versions();
    return {};
  }

  Result<void> check_follows(std::size_t i, const Decoded& image) const {
    const Header& previous = last_.header;
    const Header& header = image.header;
    if (header.page_size != previous.page_size) {
      return refused(i, fmt::format("page size {} after {}", header.page_size, previous.page_size));
    }
    if (header.min_txid > previous.max_txid.next() || header.max_txid <= previous.max_txid) {
      return refused(i, fmt::format("TXIDs {}-{} do not follow {}", header.min_txid, header.max_txid,
                                    previous.max_txid));
    }
    const bool joins = header.min_txid == previous.max_txid.next();
    if (joins && !header.no_checksum() && !previous.no_checksum() &&
        header.pre_apply_checksum != last_.trailer.post_apply_checksum) {
      return refused(i, "its pre-apply checksum is not its predecessor's post-apply checksum");
    }
    return {};
  }

  /// verify() has shown that the index matches the frames.
  Result<void> read_index(std::size_t i, std::uint32_t count) {
    const CompactorInput& input = inputs_[i];
    const std::uint64_t end = input.size - kTrailerSize - 8;
    std::byte length_field[8];
    TRY(input.source(end, length_field));
    std::uint64_t at = end - load_be<std::uint64_t>(length_field);
    Bytes piece;
    for (std::uint32_t done = 0; done < count;) {
      piece.resize(static_cast<std::size_t>(std::min<std::uint64_t>(kPieceSize, end - at)));
      TRY(input.source(at, piece));
      std::size_t used = 0;
      // A whole element is there, or the index's end is.
      while (done < count && (piece.size() - used >= kMaxIndexEntry || at + piece.size() == end)) {
        const auto pgno = static_cast<std::uint32_t>(take_uvarint(piece, used));
        const std::uint64_t offset = take_uvarint(piece, used);
        take_uvarint(piece, used);
        pages_.push_back({offset, Pgno(pgno), static_cast<std::uint32_t>(i)});
        ++done;
      }
      if (used == 0) return refused(i, "its page index changed while it was read");
      at += used;
    }
    return {};
  }

  /// 0 past the end, which verify() has excluded for an image that does not change.
  static std::uint64_t take_uvarint(ByteView in, std::size_t& at) {
    std::uint64_t value = 0;
    for (unsigned shift = 0; at < in.size() && shift < 64; shift += 7) {
      const auto byte = static_cast<std::uint64_t>(in[at++]);
      value |= (byte & 0x7f) << shift;
      if (byte < 0x80) break;
    }
    return value;
  }

  void drop_older_versions() {
    std::sort(pages_.begin(), pages_.end(), [](const Location& a, const Location& b) {
      return a.pgno != b.pgno ? a.pgno < b.pgno : a.input > b.input;
    });
    const auto same_page = [](const Location& a, const Location& b) { return a.pgno == b.pgno; };
    pages_.erase(std::unique(pages_.begin(), pages_.end(), same_page), pages_.end());
    merge_at_ = std::max<std::size_t>(2 * pages_.size(), 65536);
  }

  Header merged_header(bool no_checksum) const {
    Header header;
    header.flags = no_checksum ? kFlagNoChecksum : 0;
    header.page_size = first_.header.page_size;
    header.commit = last_.header.commit;
    header.min_txid = first_.header.min_txid;
    header.max_txid = last_.header.max_txid;
    header.timestamp_ms = last_.header.timestamp_ms;
    header.pre_apply_checksum = no_checksum ? 0 : first_.header.pre_apply_checksum;
    return header;
  }

  Result<Decoded> write(bool no_checksum, Sink sink) {
    if (!no_checksum && !all_checksums_) {
      return make_error(Errc::invalid_argument,
                        "compaction: checksums asked for, but not every input has them");
    }
    Decoded result;
    result.header = merged_header(no_checksum);
    const bool provable = result.header.is_snapshot() && !last_.header.no_checksum();
    Checksum database = kEmptyChecksum;
    Encoder encoder;
    TRY(encoder.begin(result.header, std::move(sink)));
    Bytes frame;
    Bytes page(result.header.page_size);
    for (const Location& location : pages_) {
      if (location.pgno.value() > result.header.commit) break;
      TRY(read_page(location, frame, page));
      if (provable) database = toggle(database, page_checksum(location.pgno, page));
      TRY(encoder.add_page(location.pgno, page));
    }
    if (provable && database.value() != last_.trailer.post_apply_checksum) {
      return make_error(Errc::corrupt,
                        "compaction: the merged pages do not have the last input's post-apply checksum");
    }
    const std::uint64_t post = no_checksum ? 0 : last_.trailer.post_apply_checksum;
    TRY_ASSIGN(result.trailer, encoder.finish(Checksum(post)));
    result.pages = encoder.pages_written();
    return result;
  }

  Result<void> read_page(const Location& location, Bytes& frame, ByteSpan page) const {
    const Source& source = inputs_[location.input].source;
    const int size = static_cast<int>(page.size());
    std::byte head[kFrameHeadSize];
    TRY(source(location.offset, head));
    const auto packed = load_be<std::uint32_t>(head + kPageHeaderSize);
    if (load_be<std::uint32_t>(head) != location.pgno.value() ||
        packed > static_cast<std::uint32_t>(LZ4_compressBound(size))) {
      return refused(location.input, "it changed while it was read");
    }
    frame.resize(packed);
    TRY(source(location.offset + kFrameHeadSize, frame));
    const int got = LZ4_decompress_safe(reinterpret_cast<const char*>(frame.data()),
                                        reinterpret_cast<char*>(page.data()), static_cast<int>(packed), size);
    if (got != size) return refused(location.input, "it changed while it was read");
    return {};
  }

  const std::vector<CompactorInput>& inputs_;
  Decoded first_;
  Decoded last_;
  bool all_checksums_ = true;
  std::vector<Location> pages_;
  std::size_t merge_at_ = 65536;
};

}  // namespace

Result<Decoded> compact(const std::vector<CompactorInput>& inputs, bool no_checksum, Sink sink) {
  return Compactor(inputs).run(no_checksum, std::move(sink));
}

}  // namespace sluice::ltx
