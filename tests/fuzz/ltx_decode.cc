// Any bytes as an LTX image. What is accepted must survive being encoded and decoded again.
#include "base/check.h"
#include "storage/ltx/decoder.h"
#include "storage/ltx/encoder.h"

using namespace sluice;

namespace {

struct Page {
  Pgno pgno;
  Bytes content;
};

/// The decoder looks at the file checksum last; a wrong one is corrected, so that the rules behind it are
/// reached too.
Bytes with_file_checksum(ByteView image) {
  Bytes fixed(image.begin(), image.end());
  ltx::Crc64 crc;
  std::uint64_t at = ltx::kHeaderSize;
  crc.update(image.first(ltx::kHeaderSize));
  // decode() reports every page before it reports the checksum.
  (void)ltx::decode(ltx::memory_source(image), image.size(), [&](Pgno, ByteView page) -> Result<void> {
    const auto packed = load_be<std::uint32_t>(image.data() + at + ltx::kPageHeaderSize);
    crc.update(image.subspan(at, ltx::kPageHeaderSize + 4));
    crc.update(page);
    at += ltx::kPageHeaderSize + 4 + packed;
    return {};
  });
  crc.update(image.subspan(at, image.size() - 8 - at));
  store_be<std::uint64_t>(fixed.data() + fixed.size() - 8, kEmptyChecksum.value() | crc.value());
  return fixed;
}

void check_round_trip(ByteView image) {
  std::vector<Page> pages;
  std::size_t bytes = 0;
  const auto decoded =
      ltx::decode(ltx::memory_source(image), image.size(), [&](Pgno pgno, ByteView page) -> Result<void> {
        bytes += page.size();
        if (bytes > (8u << 20)) return make_error(Errc::too_large, "enough");
        pages.push_back({pgno, Bytes(page.begin(), page.end())});
        return {};
      });
  if (decoded.has_error()) {
    CHECK(decoded.error().code == Errc::corrupt || decoded.error().code == Errc::too_large);
    return;
  }
  CHECK(decoded->pages == pages.size());
  const auto peeked = ltx::peek(ltx::memory_source(image), image.size());
  CHECK(peeked.has_value() && peeked->header == decoded->header);
  Bytes again;
  ltx::Encoder encoder;
  const auto sink = [&](ByteView piece) -> Result<void> {
    again.insert(again.end(), piece.begin(), piece.end());
    return {};
  };
  CHECK(encoder.begin(decoded->header, sink).has_value());
  for (const Page& page : pages) CHECK(encoder.add_page(page.pgno, page.content).has_value());
  CHECK(encoder.finish(Checksum(decoded->trailer.post_apply_checksum)).has_value());
  std::size_t next = 0;
  const auto second =
      ltx::decode(ltx::memory_source(again), again.size(), [&](Pgno pgno, ByteView page) -> Result<void> {
        CHECK(pgno == pages[next].pgno && std::equal(page.begin(), page.end(), pages[next].content.begin()));
        ++next;
        return {};
      });
  CHECK(second.has_value() && next == pages.size() && second->header == decoded->header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView image(reinterpret_cast<const std::byte*>(data), size);
  check_round_trip(image);
  if (size >= ltx::kHeaderSize + ltx::kTrailerSize) check_round_trip(with_file_checksum(image));
  return 0;
}
