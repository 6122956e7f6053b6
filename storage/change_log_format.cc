#include "storage/change_log_format.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "storage/ltx/checksum.h"

namespace sluice::storage::log_format {
namespace {

constexpr std::string_view kSegmentMagic = "SLUICLOG";
constexpr std::uint32_t kRecordMagic = 0x44524353;  // "SCRD"
constexpr std::uint32_t kSegmentStartsWithBase = 1;
constexpr std::uint32_t kSegmentHasPrevious = 2;
constexpr std::uint32_t kInfoBase = 1;

// Segment header.
constexpr std::size_t kVersionAt = 8;
constexpr std::size_t kFlagsAt = 12;
constexpr std::size_t kGenerationAt = 16;
constexpr std::size_t kSaltAt = 24;
constexpr std::size_t kFirstAt = 32;
constexpr std::size_t kPreviousFirstAt = 40;
constexpr std::size_t kPreviousEndAt = 48;
constexpr std::size_t kPreviousInfoAt = 56;
constexpr std::size_t kSegmentCrcAt = kSegmentHeaderSize - 8;

// Record header.
constexpr std::size_t kInfoAt = 8;
constexpr std::size_t kInfoSize = 96;
constexpr std::size_t kImageCrcAt = kInfoAt + kInfoSize;
constexpr std::size_t kDurableOffsetAt = kImageCrcAt + 8;
constexpr std::size_t kRecordCrcAt = kDurableOffsetAt + 8;
static_assert(kRecordCrcAt + 8 == kRecordHeaderSize);
static_assert(kPreviousInfoAt + kInfoSize <= kSegmentCrcAt);

void write_info(const RecordInfo& info, std::byte* p) {
  store_le<std::uint64_t>(p, info.length);
  store_le<std::uint64_t>(p + 8, info.epoch.value());
  store_le<std::uint64_t>(p + 16, info.pre.txid.value());
  store_le<std::uint64_t>(p + 24, info.pre.checksum.value());
  store_le<std::uint64_t>(p + 32, info.min_txid.value());
  store_le<std::uint64_t>(p + 40, info.post.txid.value());
  store_le<std::uint64_t>(p + 48, info.post.checksum.value());
  store_le<std::int64_t>(p + 56, info.timestamp_ms);
  store_le<std::uint32_t>(p + 64, info.page_size);
  store_le<std::uint32_t>(p + 68, info.commit);
  store_le<std::uint32_t>(p + 72, info.base ? kInfoBase : 0);
  store_le<std::uint32_t>(p + 76, info.wal.frame);
  store_le<std::uint32_t>(p + 80, info.wal.salts.raw0);
  store_le<std::uint32_t>(p + 84, info.wal.salts.raw1);
  store_le<std::uint32_t>(p + 88, info.wal.checksum.s0);
  store_le<std::uint32_t>(p + 92, info.wal.checksum.s1);
}

RecordInfo parse_info(const std::byte* p) {
  RecordInfo info;
  info.length = load_le<std::uint64_t>(p);
  info.epoch = Epoch(load_le<std::uint64_t>(p + 8));
  info.pre = {Txid(load_le<std::uint64_t>(p + 16)), Checksum(load_le<std::uint64_t>(p + 24))};
  info.min_txid = Txid(load_le<std::uint64_t>(p + 32));
  info.post = {Txid(load_le<std::uint64_t>(p + 40)), Checksum(load_le<std::uint64_t>(p + 48))};
  info.timestamp_ms = load_le<std::int64_t>(p + 56);
  info.page_size = load_le<std::uint32_t>(p + 64);
  info.commit = load_le<std::uint32_t>(p + 68);
  info.base = (load_le<std::uint32_t>(p + 72) & kInfoBase) != 0;
  info.wal.frame = load_le<std::uint32_t>(p + 76);
  info.wal.salts = {load_le<std::uint32_t>(p + 80), load_le<std::uint32_t>(p + 84)};
  info.wal.checksum = {load_le<std::uint32_t>(p + 88), load_le<std::uint32_t>(p + 92)};
  return info;
}

std::uint64_t crc64(ByteView data) {
  ltx::Crc64 crc;
  crc.update(data);
  return crc.value();
}

std::uint64_t record_crc(ByteView head, std::uint64_t salt, std::uint64_t offset) {
  std::byte place[16];
  store_le<std::uint64_t>(place, salt);
  store_le<std::uint64_t>(place + 8, offset);
  ltx::Crc64 crc;
  crc.update(place);
  crc.update(head);
  return crc.value();
}

}  // namespace

void write_segment_header(const SegmentHeader& header, ByteSpan out) {
  CHECK(out.size() == kSegmentHeaderSize);
  std::fill(out.begin(), out.end(), std::byte{0});
  std::byte* p = out.data();
  std::memcpy(p, kSegmentMagic.data(), kSegmentMagic.size());
  store_le<std::uint32_t>(p + kVersionAt, kVersion);
  store_le<std::uint32_t>(p + kFlagsAt, (header.starts_with_base ? kSegmentStartsWithBase : 0) |
                                            (header.previous ? kSegmentHasPrevious : 0));
  store_le<std::uint64_t>(p + kGenerationAt, header.generation);
  store_le<std::uint64_t>(p + kSaltAt, header.salt);
  store_le<std::uint64_t>(p + kFirstAt, header.first.value());
  if (header.previous) {
    store_le<std::uint64_t>(p + kPreviousFirstAt, header.previous->first.value());
    store_le<std::uint64_t>(p + kPreviousEndAt, header.previous->end);
    write_info(header.previous->last, p + kPreviousInfoAt);
  }
  store_le<std::uint64_t>(p + kSegmentCrcAt, crc64(out.first(kSegmentCrcAt)));
}

Result<SegmentHeader> parse_segment_header(ByteView in) {
  if (in.size() < kSegmentHeaderSize) return make_error(Errc::corrupt, "the segment header is cut short");
  const std::byte* p = in.data();
  if (as_text(in.first(kSegmentMagic.size())) != kSegmentMagic) {
    return make_error(Errc::corrupt, "not a change log segment (wrong magic)");
  }
  const auto version = load_le<std::uint32_t>(p + kVersionAt);
  if (version != kVersion) {
    return make_error(Errc::unsupported,
                      fmt::format("change log format {} is not known to this version of Sluice", version));
  }
  if (load_le<std::uint64_t>(p + kSegmentCrcAt) != crc64(in.first(kSegmentCrcAt))) {
    return make_error(Errc::corrupt, "the segment header's checksum does not match");
  }
  const auto flags = load_le<std::uint32_t>(p + kFlagsAt);
  SegmentHeader header;
  header.generation = load_le<std::uint64_t>(p + kGenerationAt);
  header.salt = load_le<std::uint64_t>(p + kSaltAt);
  header.first = Txid(load_le<std::uint64_t>(p + kFirstAt));
  header.starts_with_base = (flags & kSegmentStartsWithBase) != 0;
  if ((flags & kSegmentHasPrevious) != 0) {
    header.previous =
        SegmentHeader::Previous{Txid(load_le<std::uint64_t>(p + kPreviousFirstAt)),
                                load_le<std::uint64_t>(p + kPreviousEndAt), parse_info(p + kPreviousInfoAt)};
  }
  return header;
}

void write_record_header(const RecordHeader& header, std::uint64_t salt, std::uint64_t offset, ByteSpan out) {
  CHECK(out.size() == kRecordHeaderSize);
  std::byte* p = out.data();
  store_le<std::uint32_t>(p, kRecordMagic);
  store_le<std::uint32_t>(p + 4, 0);
  write_info(header.info, p + kInfoAt);
  store_le<std::uint64_t>(p + kImageCrcAt, header.image_crc);
  store_le<std::uint64_t>(p + kDurableOffsetAt, header.durable_offset);
  store_le<std::uint64_t>(p + kRecordCrcAt, record_crc(out.first(kRecordCrcAt), salt, offset));
}

std::optional<RecordHeader> parse_record_header(ByteView in, std::uint64_t salt, std::uint64_t offset) {
  if (in.size() < kRecordHeaderSize) return std::nullopt;
  const std::byte* p = in.data();
  if (load_le<std::uint32_t>(p) != kRecordMagic) return std::nullopt;
  if (load_le<std::uint64_t>(p + kRecordCrcAt) != record_crc(in.first(kRecordCrcAt), salt, offset)) {
    return std::nullopt;
  }
  RecordHeader header;
  header.info = parse_info(p + kInfoAt);
  header.image_crc = load_le<std::uint64_t>(p + kImageCrcAt);
  header.durable_offset = load_le<std::uint64_t>(p + kDurableOffsetAt);
  return header;
}

std::string segment_name(Txid first) {
  return to_hex(first.value()) + ".seg";
}

std::optional<Txid> parse_segment_name(std::string_view name) {
  constexpr std::string_view kSuffix = ".seg";
  if (name.size() != 16 + kSuffix.size() || !name.ends_with(kSuffix)) return std::nullopt;
  const auto value = parse_hex(name.substr(0, 16));
  if (!value || to_hex(*value) != name.substr(0, 16)) return std::nullopt;
  return Txid(*value);
}

}  // namespace sluice::storage::log_format
