// Conversions between binary floating point formats with one rounding, by definition rather than by table.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace sg::ptx {

enum class Round : std::uint8_t { nearest, zero, down, up, away };  // away: to nearest, ties away from zero

struct Format {
  int fraction = 0;  // stored bits of the significand
  int min_exponent = 0, max_exponent = 0;
};
inline constexpr Format kHalfFormat{10, -14, 15}, kBfloatFormat{7, -126, 127}, kTf32Format{10, -126, 127};

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
    case Round::away:
      up = rest >= 0.5;
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

inline double half_value(std::uint16_t h) {
  const int exponent = h >> 10 & 31, fraction = h & 1023;
  const double x = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent     ? std::ldexp(fraction + 1024, exponent - 25)
                                  : std::ldexp(fraction, -24);
  return h & 0x8000 ? -x : x;
}
inline std::uint16_t half_bits(double x, Round how = Round::nearest) {
  if (x != x) return 0x7fff;
  const double r = rounded(x, kHalfFormat, how), m = std::fabs(r);
  const unsigned sign = std::signbit(r) ? 0x8000u : 0u;
  if (std::isinf(r)) return static_cast<std::uint16_t>(sign | 0x7c00);
  if (m < 0x1p-14) return static_cast<std::uint16_t>(sign | static_cast<unsigned>(m * 0x1p24));
  const int exponent = std::ilogb(m);
  return static_cast<std::uint16_t>(sign | (static_cast<unsigned>(exponent + 15) << 10) |
                                    (static_cast<unsigned>(std::ldexp(m, 10 - exponent)) - 1024u));
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

}  // namespace sg::ptx
