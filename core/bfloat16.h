// bf16: the upper half of an f32, 8 significant bits and f32's range. Only stored: arithmetic is done in f32 or f64.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace sg {

struct BFloat16 {
  std::uint16_t bits = 0;

  BFloat16() = default;
  explicit BFloat16(float x) : bits(round_bits(x)) {}
  explicit BFloat16(double x) : bits(round_bits(to_odd(x))) {}
  explicit operator float() const { return std::bit_cast<float>(std::uint32_t{bits} << 16); }
  explicit operator double() const { return static_cast<double>(static_cast<float>(*this)); }
  bool operator==(const BFloat16& other) const { return static_cast<float>(*this) == static_cast<float>(other); }

 private:
  // To nearest, ties to even; beyond the range to infinity; a NaN stays one, made quiet.
  static std::uint16_t round_bits(float x) {
    const auto u = std::bit_cast<std::uint32_t>(x);
    if (std::isnan(x)) return static_cast<std::uint16_t>(u >> 16 | 0x40u);
    return static_cast<std::uint16_t>((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
  }
  // Towards zero, the last bit set where digits were lost: rounding that to bf16 is rounding x once.
  static float to_odd(double x) {
    const auto f = static_cast<float>(x);
    if (std::isnan(x) || static_cast<double>(f) == x) return f;
    const auto u = std::bit_cast<std::uint32_t>(f);
    return std::bit_cast<float>((std::fabs(static_cast<double>(f)) > std::fabs(x) ? u - 1 : u) | 1u);
  }
};
static_assert(sizeof(BFloat16) == 2);

}  // namespace sg
