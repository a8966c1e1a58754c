// Conversions between binary floating point formats with one rounding, by definition rather than by table.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace sg::ptx {

enum class Round : std::uint8_t { nearest, zero, down, up };

struct Format {
  int fraction = 0;  // stored bits of the significand
  int min_exponent = 0, max_exponent = 0;
};
inline constexpr Format kHalfFormat{10, -14, 15}, kBfloatFormat{7, -126, 127};

// x rounded to a format, as a double. Overflow gives infinity or the largest number, as the direction has it.
inline double rounded(double x, const Format& to, Round how) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), to.min_exponent);
  const double scaled = std::ldexp(std::fabs(x), to.fraction - exponent);  // exact: its integer part is what is kept
  double kept = std::floor(scaled);
  const double rest = scaled - kept;
  const bool negative = std::signbit(x);
  bool up = false;
  switch (how) {
    case Round::nearest:
      up = rest > 0.5 || (rest == 0.5 && std::fmod(kept, 2.0) != 0);
      break;
    case Round::zero:
      break;
    case Round::down:
      up = negative && rest > 0;
      break;
    case Round::up:
      up = !negative && rest > 0;
      break;
  }
  if (up) kept += 1;
  double r = std::ldexp(kept, exponent - to.fraction);
  const double largest = std::ldexp(2.0 - std::ldexp(1.0, -to.fraction), to.max_exponent);
  if (r > largest) {
    const bool keep = how == Round::zero || (how == Round::down && !negative) || (how == Round::up && negative);
    r = keep ? largest : INFINITY;
  }
  return negative ? -r : r;
}

// a + b rounded to odd: rounding it again, to half the bits or fewer, is as rounding the exact sum once.
inline double odd_sum(double a, double b) {
  const double s = a + b;
  if (!std::isfinite(s)) return s;
  const double t = s - a, error = (a - (s - t)) + (b - t);
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(s);
  if (error == 0 || bits & 1) return s;
  const bool away = (error > 0) == (s > 0);
  return std::bit_cast<double>(away ? bits + 1 : bits - 1);
}

// Without branches, as loops over lanes want it.
inline float half_float(std::uint16_t h) {
  const std::uint32_t magnitude = (h & 0x7fffu) << 13;
  const std::uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;  // infinities and NaN
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;
  return std::bit_cast<float>(std::bit_cast<std::uint32_t>(scaled) | special |
                              static_cast<std::uint32_t>(h & 0x8000) << 16);
}
inline double half_value(std::uint16_t h) { return static_cast<double>(half_float(h)); }
inline std::uint16_t half_bits(double x, Round how) {
  if (x != x) return 0x7fff;
  const double r = rounded(x, kHalfFormat, how), m = std::fabs(r);
  const unsigned sign = std::signbit(r) ? 0x8000u : 0u;
  if (std::isinf(r)) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (m < 0x1p-14) return static_cast<std::uint16_t>(sign | static_cast<unsigned>(m * 0x1p24));
  return static_cast<std::uint16_t>(sign |
                                    static_cast<unsigned>((std::bit_cast<std::uint64_t>(m) >> 42) - (1008u << 10)));
}
// The same for Round::nearest. Adding and taking away 1.5 * 2^52 units of the last place rounds to even.
inline std::uint16_t half_bits(double x) {
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x), magnitude = bits & ~(std::uint64_t{1} << 63);
  const std::uint64_t smallest = std::uint64_t{1023 - 14} << 52;
  const std::uint64_t exponent = (magnitude > smallest ? magnitude : smallest) & (std::uint64_t{0x7ff} << 52);
  const double unit = std::bit_cast<double>(exponent + (std::uint64_t{52 - 10} << 52)) * 1.5;
  const double r = (std::bit_cast<double>(magnitude) + unit) - unit;
  const std::uint64_t normal = (std::bit_cast<std::uint64_t>(r) >> 42) - (1008u << 10);
  const std::uint64_t subnormal = std::bit_cast<std::uint64_t>(r * 0x1p24 + 0x1p52) & 0x7ff;
  std::uint64_t h = r < 0x1p-14 ? subnormal : normal;
  h = magnitude >= std::bit_cast<std::uint64_t>(65520.0) ? 0x7c00 : h;
  h |= bits >> 63 << 15;
  return static_cast<std::uint16_t>(x != x ? 0x7fff : h);
}
inline double bfloat_value(std::uint16_t b) {
  return static_cast<double>(std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16));
}
inline std::uint16_t bfloat_bits(double x, Round how = Round::nearest) {
  if (x != x) return 0x7fff;
  return static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(rounded(x, kBfloatFormat, how))) >>
                                    16);
}
inline float bfloat_float(std::uint16_t b) { return std::bit_cast<float>(static_cast<std::uint32_t>(b) << 16); }
// The common case without a branch: nearest even from f32.
inline std::uint16_t bfloat_nearest(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t r = (u + 0x7fffu + (u >> 16 & 1)) >> 16;
  return static_cast<std::uint16_t>((u & 0x7fffffffu) > 0x7f800000u ? 0x7fffu : r);
}

// f32 with 10 bits of fraction, to nearest; ties away from zero (rna) or to even (rn).
inline std::uint32_t tf32_nearest(float x, bool away) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint32_t r = (u + (away ? 0x1000u : 0xfffu + (u >> 13 & 1))) & 0xffffe000u;
  return (u & 0x7fffffffu) > 0x7f800000u ? 0x7fffffffu : r;
}

}  // namespace sg::ptx
