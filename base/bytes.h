// Byte spans and fixed-width integers in big, little and native byte order.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>
#include <vector>

namespace sluice {

using ByteView = std::span<const std::byte>;
using ByteSpan = std::span<std::byte>;
using Bytes = std::vector<std::byte>;

static_assert(std::endian::native == std::endian::little, "Sluice is built and tested for little-endian machines");

constexpr std::uint16_t byte_swap(std::uint16_t v) { return __builtin_bswap16(v); }
constexpr std::uint32_t byte_swap(std::uint32_t v) { return __builtin_bswap32(v); }
constexpr std::uint64_t byte_swap(std::uint64_t v) { return __builtin_bswap64(v); }

/// Reads a little-endian (native) integer at `p`; no alignment needed. The caller has checked the bounds.
template <class T>
T load_le(const std::byte* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
T load_be(const std::byte* p) {
  return byte_swap(load_le<T>(p));
}
template <class T>
void store_le(std::byte* p, T v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
void store_be(std::byte* p, T v) {
  store_le<T>(p, byte_swap(v));
}

inline ByteView as_bytes(std::string_view s) { return std::as_bytes(std::span(s.data(), s.size())); }
inline std::string_view as_text(ByteView b) { return {reinterpret_cast<const char*>(b.data()), b.size()}; }

/// True when every byte is zero.
inline bool all_zero(ByteView b) {
  for (std::byte v : b)
    if (v != std::byte{0}) return false;
  return true;
}

}  // namespace sluice
