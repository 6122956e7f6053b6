#include "storage/sqlite/wal_format.h"

#include <fmt/format.h>

#include "base/check.h"

namespace sluice::sqlite {
namespace {

template <bool kSwap>
std::uint32_t load_word(const std::byte* p) {
  const auto word = load_le<std::uint32_t>(p);
  return kSwap ? byte_swap(word) : word;
}

// walChecksumBytes(). Each sum waits for the other, so the chain is two additions for every eight bytes at
// best: the word is added to the sum's own last value, which is known early, and the other sum comes last.
template <bool kSwap>
WalChecksum sum_words(const std::byte* p, const std::byte* end, WalChecksum sum) {
  std::uint32_t s0 = sum.s0;
  std::uint32_t s1 = sum.s1;
  const auto step = [&](const std::byte* words) {
    s0 = (s0 + load_word<kSwap>(words)) + s1;
    s1 = (s1 + load_word<kSwap>(words + 4)) + s0;
  };
  for (; end - p >= 32; p += 32) {
    step(p);
    step(p + 8);
    step(p + 16);
    step(p + 24);
  }
  for (; p != end; p += 8) step(p);
  return {s0, s1};
}

Error bad_header(std::string what) {
  return make_error(Errc::corrupt, "WAL header: " + std::move(what));
}

}  // namespace

WalChecksum wal_checksum(bool big_endian_words, ByteView data, WalChecksum sum) {
  CHECK(data.size() % 8 == 0);
  const std::byte* p = data.data();
  return big_endian_words ? sum_words<true>(p, p + data.size(), sum)
                          : sum_words<false>(p, p + data.size(), sum);
}

Result<WalHeader> parse_wal_header(ByteView in) {
  if (in.size() < kWalHeaderSize) return bad_header(fmt::format("only {} of 32 bytes", in.size()));
  const std::byte* p = in.data();
  const auto magic = load_be<std::uint32_t>(p);
  if (magic != kWalMagicLittle && magic != kWalMagicBig)
    return bad_header(fmt::format("magic is {:08x}", magic));

  WalHeader header;
  header.big_endian_checksums = magic == kWalMagicBig;
  header.page_size = load_be<std::uint32_t>(p + 8);
  header.checkpoint_sequence = load_be<std::uint32_t>(p + 12);
  header.salts = {load_le<std::uint32_t>(p + 16), load_le<std::uint32_t>(p + 20)};
  header.checksum = {load_be<std::uint32_t>(p + 24), load_be<std::uint32_t>(p + 28)};
  if (!valid_page_size(header.page_size)) {
    return bad_header(fmt::format("page size {} is impossible", header.page_size));
  }
  if (wal_checksum(header.big_endian_checksums, in.first(24), {}) != header.checksum) {
    return bad_header("checksum is wrong");
  }
  // After the checksum, as in walIndexRecover(): only an intact header can say that it is of another version.
  const auto version = load_be<std::uint32_t>(p + 4);
  if (version != kWalVersion) return bad_header(fmt::format("version is {}, not {}", version, kWalVersion));
  return header;
}

void write_wal_header(const WalHeader& header, ByteSpan out) {
  CHECK(out.size() >= kWalHeaderSize);
  std::byte* p = out.data();
  store_be<std::uint32_t>(p, header.big_endian_checksums ? kWalMagicBig : kWalMagicLittle);
  store_be<std::uint32_t>(p + 4, kWalVersion);
  store_be<std::uint32_t>(p + 8, header.page_size);
  store_be<std::uint32_t>(p + 12, header.checkpoint_sequence);
  store_le<std::uint32_t>(p + 16, header.salts.raw0);
  store_le<std::uint32_t>(p + 20, header.salts.raw1);
  const WalChecksum sum = wal_checksum(header.big_endian_checksums, out.first(24), {});
  store_be<std::uint32_t>(p + 24, sum.s0);
  store_be<std::uint32_t>(p + 28, sum.s1);
}

FrameHeader parse_frame_header(ByteView in) {
  CHECK(in.size() >= kWalFrameHeaderSize);
  const std::byte* p = in.data();
  FrameHeader frame;
  frame.pgno = load_be<std::uint32_t>(p);
  frame.commit = load_be<std::uint32_t>(p + 4);
  frame.salts = {load_le<std::uint32_t>(p + 8), load_le<std::uint32_t>(p + 12)};
  frame.checksum = {load_be<std::uint32_t>(p + 16), load_be<std::uint32_t>(p + 20)};
  frame.zero_salt = frame.salts == Salts{} && frame.checksum == WalChecksum{};
  return frame;
}

WalChecksum frame_checksum(bool big_endian_words, ByteView frame_header, ByteView page,
                           WalChecksum previous) {
  CHECK(frame_header.size() >= 8);
  return wal_checksum(big_endian_words, page,
                      wal_checksum(big_endian_words, frame_header.first(8), previous));
}

WalChecksum write_frame_header(std::uint32_t pgno, std::uint32_t commit, const WalHeader& wal, ByteView page,
                               WalChecksum previous, ByteSpan out) {
  CHECK(out.size() >= kWalFrameHeaderSize && page.size() == wal.page_size);
  std::byte* p = out.data();
  store_be<std::uint32_t>(p, pgno);
  store_be<std::uint32_t>(p + 4, commit);
  store_le<std::uint32_t>(p + 8, wal.salts.raw0);
  store_le<std::uint32_t>(p + 12, wal.salts.raw1);
  const WalChecksum sum = frame_checksum(wal.big_endian_checksums, out, page, previous);
  store_be<std::uint32_t>(p + 16, sum.s0);
  store_be<std::uint32_t>(p + 20, sum.s1);
  return sum;
}

}  // namespace sluice::sqlite
