#include "storage/ltx/format.h"

#include <algorithm>

#include "base/check.h"

namespace sluice::ltx {
namespace {

constexpr std::string_view kMagic = "LTX1";

// Offsets of the header's fields; docs/FORMATS.md has the table.
constexpr std::size_t kFlagsAt = 4;
constexpr std::size_t kPageSizeAt = 8;
constexpr std::size_t kCommitAt = 12;
constexpr std::size_t kMinTxidAt = 16;
constexpr std::size_t kMaxTxidAt = 24;
constexpr std::size_t kTimestampAt = 32;
constexpr std::size_t kPreApplyAt = 40;
constexpr std::size_t kWalOffsetAt = 48;
constexpr std::size_t kWalSizeAt = 56;
constexpr std::size_t kWalSalt1At = 64;
constexpr std::size_t kWalSalt2At = 68;
constexpr std::size_t kNodeIdAt = 72;
constexpr std::size_t kReservedAt = 80;

Error broken(const std::string& rule) {
  return make_error(Errc::corrupt, "LTX header: " + rule);
}

Result<void> validate_wal_fields(const Header& h) {
  if (h.wal_offset < 0) return broken("WAL offset is negative");
  if (h.wal_size < 0) return broken("WAL size is negative");
  if ((h.wal_salt1 != 0 || h.wal_salt2 != 0) && h.wal_offset == 0)
    return broken("WAL salts without a WAL offset");
  if (h.wal_size != 0 && h.wal_offset == 0) return broken("WAL size without a WAL offset");
  return {};
}

}  // namespace

Result<void> validate(const Header& h) {
  if ((h.flags & ~kFlagNoChecksum) != 0) return broken(fmt::format("unknown flags {:#x}", h.flags));
  if (!valid_page_size(h.page_size))
    return broken(fmt::format("page size {} is not a power of two in 512…65536", h.page_size));
  if (h.min_txid == Txid(0)) return broken("minimum TXID is zero");
  if (h.max_txid < h.min_txid) return broken("maximum TXID is below the minimum");
  TRY(validate_wal_fields(h));
  if (h.is_snapshot()) {
    if (h.pre_apply_checksum != 0) return broken("a snapshot has a pre-apply checksum");
  } else if (h.no_checksum()) {
    if (h.pre_apply_checksum != 0) return broken("a pre-apply checksum where the flags say there are none");
  } else if ((h.pre_apply_checksum & kEmptyChecksum.value()) == 0) {
    return broken("the pre-apply checksum is missing or lacks its flag bit");
  }
  return {};
}

void write_header(const Header& h, ByteSpan out) {
  CHECK(out.size() == kHeaderSize);
  std::byte* p = out.data();
  std::memcpy(p, kMagic.data(), kMagic.size());
  store_be<std::uint32_t>(p + kFlagsAt, h.flags);
  store_be<std::uint32_t>(p + kPageSizeAt, h.page_size);
  store_be<std::uint32_t>(p + kCommitAt, h.commit);
  store_be<std::uint64_t>(p + kMinTxidAt, h.min_txid.value());
  store_be<std::uint64_t>(p + kMaxTxidAt, h.max_txid.value());
  store_be<std::uint64_t>(p + kTimestampAt, static_cast<std::uint64_t>(h.timestamp_ms));
  store_be<std::uint64_t>(p + kPreApplyAt, h.pre_apply_checksum);
  store_be<std::uint64_t>(p + kWalOffsetAt, static_cast<std::uint64_t>(h.wal_offset));
  store_be<std::uint64_t>(p + kWalSizeAt, static_cast<std::uint64_t>(h.wal_size));
  store_be<std::uint32_t>(p + kWalSalt1At, h.wal_salt1);
  store_be<std::uint32_t>(p + kWalSalt2At, h.wal_salt2);
  store_be<std::uint64_t>(p + kNodeIdAt, h.node_id);
  std::fill(out.begin() + kReservedAt, out.end(), std::byte{0});
}

Result<Header> parse_header(ByteView in) {
  if (in.size() < kHeaderSize) {
    return make_error(Errc::corrupt,
                      fmt::format("LTX header: {} bytes where {} are needed", in.size(), kHeaderSize));
  }
  const std::byte* p = in.data();
  if (as_text(in.first(kMagic.size())) != kMagic) return broken("the magic is not LTX1");
  if (!all_zero(in.subspan(kReservedAt, kHeaderSize - kReservedAt)))
    return broken("reserved bytes are not zero");
  Header h;
  h.flags = load_be<std::uint32_t>(p + kFlagsAt);
  h.page_size = load_be<std::uint32_t>(p + kPageSizeAt);
  h.commit = load_be<std::uint32_t>(p + kCommitAt);
  h.min_txid = Txid(load_be<std::uint64_t>(p + kMinTxidAt));
  h.max_txid = Txid(load_be<std::uint64_t>(p + kMaxTxidAt));
  h.timestamp_ms = static_cast<std::int64_t>(load_be<std::uint64_t>(p + kTimestampAt));
  h.pre_apply_checksum = load_be<std::uint64_t>(p + kPreApplyAt);
  h.wal_offset = static_cast<std::int64_t>(load_be<std::uint64_t>(p + kWalOffsetAt));
  h.wal_size = static_cast<std::int64_t>(load_be<std::uint64_t>(p + kWalSizeAt));
  h.wal_salt1 = load_be<std::uint32_t>(p + kWalSalt1At);
  h.wal_salt2 = load_be<std::uint32_t>(p + kWalSalt2At);
  h.node_id = load_be<std::uint64_t>(p + kNodeIdAt);
  TRY(validate(h));
  return h;
}

void write_trailer(const Trailer& trailer, ByteSpan out) {
  CHECK(out.size() == kTrailerSize);
  store_be<std::uint64_t>(out.data(), trailer.post_apply_checksum);
  store_be<std::uint64_t>(out.data() + 8, trailer.file_checksum);
}

Trailer parse_trailer(ByteView in) {
  CHECK(in.size() >= kTrailerSize);
  return {load_be<std::uint64_t>(in.data()), load_be<std::uint64_t>(in.data() + 8)};
}

std::string file_name(Txid min, Txid max) {
  return to_hex(min.value()) + "-" + to_hex(max.value()) + ".ltx";
}

}  // namespace sluice::ltx
