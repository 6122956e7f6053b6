#include "storage/ltx/encoder.h"

#include <cstring>
#include <optional>
#include <vector>

#include "base/check.h"
#include "storage/ltx/page_packer.h"
#include "storage/ltx/page_rules.h"

namespace sluice::ltx {
namespace {

/// Larger buffers than these are given back at the end of an image, so that an idle database costs little
/// memory.
constexpr std::size_t kKeepIndexBytes = 64 * 1024;
constexpr std::uint64_t kKeepBufferBytes = 256 * 1024;


Error refused(const std::string& rule) {
  return make_error(Errc::invalid_argument, "LTX encoder: " + rule);
}

}  // namespace

struct Encoder::State {
  PagePacker packer;
  std::unique_ptr<std::byte[]>
      buffer;  ///< kPieceSize bytes, left uninitialised so that small images touch little of it
  std::size_t used = 0;
  std::vector<std::byte> index;

  bool open = false;
  Header header;
  Sink sink;
  std::optional<PageRules> rules;
  Crc64 crc;
  std::uint64_t flushed = 0;
  std::uint32_t pages = 0;

  std::uint64_t position() const { return flushed + used; }

  Result<void> flush() {
    if (used == 0) return {};
    TRY(sink(ByteView(buffer.get(), used)));
    flushed += used;
    used = 0;
    return {};
  }

  Result<void> make_room(std::size_t n) {
    if (used + n > kPieceSize) return flush();
    return {};
  }

  /// Appends and adds to the file checksum.
  Result<void> put(ByteView data) {
    crc.update(data);
    while (!data.empty()) {
      if (used == kPieceSize) TRY(flush());
      const std::size_t n = std::min(data.size(), kPieceSize - used);
      std::memcpy(buffer.get() + used, data.data(), n);
      used += n;
      data = data.subspan(n);
    }
    return {};
  }

  void release_large_buffers() {
    packer.reset();
    if (index.capacity() > kKeepIndexBytes) index = {};
    if (position() > kKeepBufferBytes) buffer.reset();
    sink = nullptr;
    open = false;
  }

  Result<void> put_page(Pgno pgno, ByteView page, ByteView block) {
    TRY(make_room(kFrameHeadSize + block.size()));
    const std::uint64_t offset = position();
    std::byte* const head = buffer.get() + used;
    store_be<std::uint32_t>(head, pgno.value());
    store_be<std::uint16_t>(head + 4, kPageFlagSized);
    store_be<std::uint32_t>(head + kPageHeaderSize, static_cast<std::uint32_t>(block.size()));
    std::memcpy(head + kFrameHeadSize, block.data(), block.size());
    crc.update(ByteView(head, kFrameHeadSize));
    crc.update(page);
    const std::size_t length = kFrameHeadSize + block.size();
    used += length;

    std::byte entry[kMaxIndexEntry];
    const std::size_t n = put_index_entry(entry, pgno, offset, length);
    index.insert(index.end(), entry, entry + n);
    return {};
  }
};

Encoder::Encoder() : state_(std::make_unique<State>()) {}
Encoder::~Encoder() = default;

Result<void> Encoder::begin(const Header& header, Sink sink, ThreadPool* helpers) {
  State& s = *state_;
  s.open = false;
  s.packer.reset();
  if (auto valid = validate(header); valid.has_error()) return refused(valid.error().message);
  if (!s.buffer) s.buffer = std::make_unique_for_overwrite<std::byte[]>(kPieceSize);
  s.used = 0;
  s.index.clear();
  s.header = header;
  s.sink = std::move(sink);
  s.rules.emplace(header);
  s.crc = {};
  s.flushed = 0;
  s.pages = 0;
  std::byte head[kHeaderSize];
  write_header(header, head);
  TRY(s.put(head));
  s.packer.begin(header.page_size, helpers);
  s.open = true;
  return {};
}

Result<void> Encoder::add_page(Pgno pgno, ByteView page, ByteView block) {
  State& s = *state_;
  CHECK(s.open);
  if (page.size() != s.header.page_size) {
    return refused(fmt::format("page {} has {} bytes, not {}", pgno, page.size(), s.header.page_size));
  }
  if (const std::string wrong = s.rules->next(pgno); !wrong.empty()) return refused(wrong);

  ++s.pages;
  return s.packer.add(pgno, page, block, [&s](Pgno number, ByteView content, ByteView packed) {
    return s.put_page(number, content, packed);
  });
}

Result<Trailer> Encoder::finish(Checksum post_apply) {
  State& s = *state_;
  CHECK(s.open);
  if (const std::string wrong = s.rules->end(); !wrong.empty()) return refused(wrong);
  if (const std::string wrong = check_post_apply(s.header, post_apply.value()); !wrong.empty())
    return refused(wrong);

  TRY(s.packer.finish(
      [&s](Pgno number, ByteView content, ByteView block) { return s.put_page(number, content, block); }));
  const std::byte terminator[kPageHeaderSize] = {};
  TRY(s.put(terminator));
  s.index.push_back(std::byte{0});
  TRY(s.put(s.index));
  std::byte tail[8 + kTrailerSize];
  store_be<std::uint64_t>(tail, s.index.size());
  TRY(s.put(ByteView(tail, 8)));

  Trailer trailer;
  trailer.post_apply_checksum = post_apply.value();
  write_trailer(trailer, ByteSpan(tail).subspan(8));
  s.crc.update(ByteView(tail).subspan(8, 8));
  trailer.file_checksum = kEmptyChecksum.value() | s.crc.value();
  write_trailer(trailer, ByteSpan(tail).subspan(8));
  TRY(s.put(ByteView(tail).subspan(8)));  // its own checksum no longer matters
  TRY(s.flush());
  s.release_large_buffers();
  return trailer;
}

std::uint64_t Encoder::bytes_written() const {
  return state_->position();
}
std::uint32_t Encoder::pages_written() const {
  return state_->pages;
}

}  // namespace sluice::ltx
