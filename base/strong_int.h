// StrongInt<Tag, Rep>: an integer that does not mix with others. Explicit in, explicit out, ordered, hashable.
#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace sluice {

template <class Tag, class Rep>
class StrongInt {
 public:
  using rep = Rep;
  constexpr StrongInt() = default;
  constexpr explicit StrongInt(Rep value) : value_(value) {}
  constexpr Rep value() const { return value_; }
  constexpr auto operator<=>(const StrongInt&) const = default;
  constexpr StrongInt next() const { return StrongInt(static_cast<Rep>(value_ + 1)); }

 private:
  Rep value_ = 0;
};

}  // namespace sluice

template <class Tag, class Rep>
struct std::hash<sluice::StrongInt<Tag, Rep>> {
  std::size_t operator()(const sluice::StrongInt<Tag, Rep>& v) const noexcept { return std::hash<Rep>{}(v.value()); }
};
