// The strong types of the domain: TXID, page number, checksum, position, epoch, node.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "base/strong_int.h"

namespace sluice {

/// Number of a change set of one database, from 1 without gaps; 0 = none yet.
using Txid = StrongInt<struct TxidTag, std::uint64_t>;
/// SQLite page number, from 1.
using Pgno = StrongInt<struct PgnoTag, std::uint32_t>;
/// Number of a primary's reign, strictly growing: the fencing token.
using Epoch = StrongInt<struct EpochTag, std::uint64_t>;
/// Random number of a data directory, never 0.
using NodeId = StrongInt<struct NodeIdTag, std::uint64_t>;
/// LTX checksum: bit 63 set, CRC-64/ISO below; 0 = unknown. Combined over pages by XOR (see storage/ltx/checksum.h).
using Checksum = StrongInt<struct ChecksumTag, std::uint64_t>;

/// Checksum of a database without pages (LTX specification: only the flag bit).
inline constexpr Checksum kEmptyChecksum{std::uint64_t{1} << 63};

/// The exact content of a database: the change set that led to it and the checksum over all its pages.
struct Pos {
  Txid txid;
  Checksum checksum = kEmptyChecksum;
  auto operator<=>(const Pos&) const = default;
};

/// 16 lower-case hex digits, as LTX file names and LiteFS's -pos files use.
std::string to_hex(std::uint64_t value);
/// Exactly 16 hex digits, else nothing.
std::optional<std::uint64_t> parse_hex(std::string_view text);

/// First page number of SQLite's lock page (the page that holds byte 0x40000000); it has no content and is never
/// captured, sent or checksummed.
constexpr Pgno lock_page(std::uint32_t page_size) { return Pgno(0x40000000u / page_size + 1); }
/// Power of two, 512…65536.
constexpr bool valid_page_size(std::uint32_t n) { return n >= 512 && n <= 65536 && (n & (n - 1)) == 0; }

}  // namespace sluice

template <>
struct fmt::formatter<sluice::Txid> : fmt::formatter<std::string> {
  auto format(sluice::Txid v, format_context& ctx) const {
    return fmt::formatter<std::string>::format(sluice::to_hex(v.value()), ctx);
  }
};
template <>
struct fmt::formatter<sluice::Pos> : fmt::formatter<std::string> {
  auto format(const sluice::Pos& v, format_context& ctx) const {
    return fmt::formatter<std::string>::format(
        sluice::to_hex(v.txid.value()) + "/" + sluice::to_hex(v.checksum.value()), ctx);
  }
};
template <>
struct fmt::formatter<sluice::Pgno> : fmt::formatter<std::uint32_t> {
  auto format(sluice::Pgno v, format_context& ctx) const {
    return fmt::formatter<std::uint32_t>::format(v.value(), ctx);
  }
};
template <>
struct fmt::formatter<sluice::Epoch> : fmt::formatter<std::uint64_t> {
  auto format(sluice::Epoch v, format_context& ctx) const {
    return fmt::formatter<std::uint64_t>::format(v.value(), ctx);
  }
};
