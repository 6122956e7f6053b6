// Takes small values off the front of a fuzzer's input; zeros when it is used up.
#pragma once

#include <cstdint>

#include "base/bytes.h"

namespace sluice::fuzz {

class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : rest_(reinterpret_cast<const std::byte*>(data), size) {}

  bool empty() const { return rest_.empty(); }
  std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const auto value = std::to_integer<std::uint8_t>(rest_.front());
    rest_ = rest_.subspan(1);
    return value;
  }
  std::uint16_t word16() { return static_cast<std::uint16_t>(byte() | byte() << 8); }
  std::uint32_t word32() { return word16() | std::uint32_t{word16()} << 16; }
  ByteView rest() const { return rest_; }

 private:
  ByteView rest_;
};

}  // namespace sluice::fuzz
