// A history of change sets made from the input, compacted in the groups that it names: the result must be the
// database. With a damaged input: an error, never a crash.
#include <map>

#include "base/check.h"
#include "storage/ltx/compactor.h"
#include "tests/fuzz/fuzz_input.h"

using namespace sluice;

namespace {

using Pages = std::map<std::uint32_t, Bytes>;
constexpr std::uint32_t kPageSize = 512;

Checksum checksum_of(const Pages& pages) {
  Checksum sum = kEmptyChecksum;
  for (const auto& [pgno, page] : pages) sum = ltx::toggle(sum, ltx::page_checksum(Pgno(pgno), page));
  return sum;
}

Bytes encode(const ltx::Header& header, const Pages& pages, Checksum post) {
  Bytes image;
  ltx::Encoder encoder;
  const auto sink = [&](ByteView piece) -> Result<void> {
    image.insert(image.end(), piece.begin(), piece.end());
    return {};
  };
  CHECK(encoder.begin(header, sink).has_value());
  for (const auto& [pgno, page] : pages) CHECK(encoder.add_page(Pgno(pgno), page).has_value());
  CHECK(encoder.finish(post).has_value());
  return image;
}

struct History {
  std::vector<Bytes> images;
  Pages pages;
};

History make_history(fuzz::Input& in) {
  History history;
  const int count = 2 + in.byte() % 6;
  for (int txid = 1; txid <= count; ++txid) {
    const std::uint32_t commit = in.byte() % 12;
    const Checksum before = checksum_of(history.pages);
    Pages changed;
    for (auto p = static_cast<std::uint32_t>(history.pages.size()) + 1; p <= commit; ++p) {
      changed[p] = Bytes(kPageSize, static_cast<std::byte>(txid));
    }
    for (int n = in.byte() % 4; n > 0 && commit > 0; --n) {
      changed[1 + in.byte() % commit] = Bytes(kPageSize, static_cast<std::byte>(in.byte()));
    }
    for (const auto& [pgno, page] : changed) history.pages[pgno] = page;
    history.pages.erase(history.pages.upper_bound(commit), history.pages.end());
    ltx::Header header;
    header.page_size = kPageSize;
    header.commit = commit;
    header.min_txid = header.max_txid = Txid(static_cast<std::uint64_t>(txid));
    header.pre_apply_checksum = txid == 1 ? 0 : before.value();
    history.images.push_back(encode(header, changed, checksum_of(history.pages)));
  }
  return history;
}

Result<Bytes> compact(const std::vector<Bytes>& images, std::size_t from, std::size_t to, bool no_checksum) {
  std::vector<ltx::CompactorInput> inputs;
  for (std::size_t i = from; i < to; ++i) inputs.push_back({ltx::memory_source(images[i]), images[i].size()});
  Bytes out;
  TRY(ltx::compact(inputs, no_checksum, [&](ByteView piece) -> Result<void> {
    out.insert(out.end(), piece.begin(), piece.end());
    return {};
  }));
  return out;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::Input in(data, size);
  History history = make_history(in);
  const std::size_t n = history.images.size();
  const std::size_t split = 1 + in.byte() % (n - 1);
  const auto first = compact(history.images, 0, split, false);
  const auto second = compact(history.images, split, n, false);
  CHECK(first.has_value() && second.has_value());
  const auto all = compact({*first, *second}, 0, 2, false);
  CHECK(all.has_value());
  Pages result;
  const auto decoded =
      ltx::decode(ltx::memory_source(*all), all->size(), [&](Pgno pgno, ByteView page) -> Result<void> {
        result.emplace(pgno.value(), Bytes(page.begin(), page.end()));
        return {};
      });
  CHECK(decoded.has_value() && result == history.pages);

  // Two arbitrary changes to one of the inputs.
  Bytes& victim = history.images[in.byte() % n];
  for (int i = 0; i < 2; ++i) victim[in.word16() % victim.size()] ^= static_cast<std::byte>(in.byte());
  const auto damaged = compact(history.images, 0, n, in.byte() % 2 == 0);
  if (damaged.has_value()) CHECK(ltx::verify(ltx::memory_source(*damaged), damaged->size()).has_value());
  return 0;
}
