// Philox4x32-10, a counter-based random generator (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011), and the maps to uniform and normal numbers that every backend shares, bit for bit.
#pragma once
#include <array>
#include <cmath>
#include <cstdint>

namespace sg {

using PhiloxBlock = std::array<std::uint32_t, 4>;

inline PhiloxBlock philox4x32_10(PhiloxBlock c, std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = 0xD2511F53ull * c[0], p1 = 0xCD9E8D57ull * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key[0], static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return c;
}

// Elements 4*block .. 4*block+3 of random instruction `stream` under state {seed, step}.
inline PhiloxBlock random_block(std::uint32_t seed, std::uint32_t step, std::uint32_t stream, std::uint64_t block) {
  return philox4x32_10({static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), stream, step},
                       {seed, 0x53475631u});
}

inline std::array<double, 4> uniform_block(const PhiloxBlock& r) {   // [0,1), multiples of 2^-24
  std::array<double, 4> u{};
  for (std::size_t i = 0; i < 4; ++i) u[i] = static_cast<double>(r[i] >> 8) * 0x1p-24;
  return u;
}

inline std::array<double, 4> normal_block(const PhiloxBlock& r) {    // Box-Muller on pairs; radius from (0,1]
  std::array<double, 4> n{};
  for (std::size_t i = 0; i < 4; i += 2) {
    const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(r[i] >> 8) + 1.0) * 0x1p-24));
    const double angle = 6.283185307179586476925 * (static_cast<double>(r[i + 1] >> 8) * 0x1p-24);
    n[i] = radius * std::cos(angle);
    n[i + 1] = radius * std::sin(angle);
  }
  return n;
}

}  // namespace sg
