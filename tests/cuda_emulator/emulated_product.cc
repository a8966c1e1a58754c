#include "tests/cuda_emulator/emulated_product.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

namespace sg::cuda::emulated {
namespace {

constexpr std::int64_t kDown = 16, kAcross = 6;  // of a tile of sums, which stays in registers
constexpr std::int64_t kDepth = 256;

float from_bf16(std::uint16_t x) { return std::bit_cast<float>(std::uint32_t{x} << 16); }
std::uint16_t to_bf16(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  if (std::isnan(x)) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
float to_tf32(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  return std::isfinite(x) ? std::bit_cast<float>((bits + 0x1000) & ~0x1fffu) : x;
}

template <class T>
T read(const Matrix& m, std::int64_t offset) {
  switch (m.type) {
    case Element::f64:
      return static_cast<T>(reinterpret_cast<const double*>(m.data)[offset]);
    case Element::f32:
      return static_cast<T>(reinterpret_cast<const float*>(m.data)[offset]);
    case Element::bf16:
      return static_cast<T>(from_bf16(reinterpret_cast<const std::uint16_t*>(m.data)[offset]));
  }
  return T{};
}

template <class T>
void write(const Matrix& m, std::int64_t offset, T value) {
  switch (m.type) {
    case Element::f64:
      reinterpret_cast<double*>(m.data)[offset] = static_cast<double>(value);
      break;
    case Element::f32:
      reinterpret_cast<float*>(m.data)[offset] = static_cast<float>(value);
      break;
    case Element::bf16:
      reinterpret_cast<std::uint16_t*>(m.data)[offset] = to_bf16(static_cast<float>(value));
      break;
  }
}

// `count` lines of `depth` elements from (first, k) on, side by side in groups of `group`; zeros where a group is
// short.
template <class T>
void pack(const Matrix& m, std::int64_t at, std::int64_t line, std::int64_t along, std::int64_t count,
          std::int64_t depth, std::int64_t group, bool tf32, T* to) {
  for (std::int64_t g = 0; g < count; g += group) {
    const std::int64_t here = std::min(group, count - g);
    for (std::int64_t k = 0; k < depth; ++k, to += group) {
      for (std::int64_t i = 0; i < here; ++i) {
        T x = read<T>(m, at + (g + i) * line + k * along);
        if constexpr (sizeof(T) == 4)
          if (tf32) x = to_tf32(x);
        to[i] = x;
      }
      std::fill(to + here, to + group, T{});
    }
  }
}

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__)  // an ifunc runs before a sanitizer is ready
#define SG_TARGETS __attribute__((target_clones("arch=haswell", "default")))
#else
#define SG_TARGETS
#endif

// sums[j][i] += sum over k of a[k][i] * b[k][j]
SG_TARGETS void tile(const float* a, const float* b, std::int64_t depth, float* sums) {
  float s[kAcross][kDown];
  std::memcpy(s, sums, sizeof s);
  for (std::int64_t k = 0; k < depth; ++k, a += kDown, b += kAcross)
    for (int j = 0; j < kAcross; ++j)
      for (int i = 0; i < kDown; ++i) s[j][i] += a[i] * b[j];
  std::memcpy(sums, s, sizeof s);
}

SG_TARGETS void tile(const double* a, const double* b, std::int64_t depth, double* sums) {
  double s[kAcross][kDown];
  std::memcpy(s, sums, sizeof s);
  for (std::int64_t k = 0; k < depth; ++k, a += kDown, b += kAcross)
    for (int j = 0; j < kAcross; ++j)
      for (int i = 0; i < kDown; ++i) s[j][i] += a[i] * b[j];
  std::memcpy(sums, s, sizeof s);
}

template <class T>
void multiply_as(const Product& p) {
  const std::int64_t tiles_down = (p.m + kDown - 1) / kDown, tiles_across = (p.n + kAcross - 1) / kAcross;
  std::vector<T> a(static_cast<std::size_t>(tiles_down * kDown * kDepth)),
      b(static_cast<std::size_t>(tiles_across * kAcross * kDepth)),
      sums(static_cast<std::size_t>(tiles_down * tiles_across * kDown * kAcross));
  const T alpha = static_cast<T>(p.alpha), beta = static_cast<T>(p.beta);
  for (std::int64_t item = 0; item < p.batch; ++item) {
    std::fill(sums.begin(), sums.end(), T{});
    for (std::int64_t k = 0; k < p.k; k += kDepth) {
      const std::int64_t depth = std::min(kDepth, p.k - k);
      pack(p.a, item * p.a.stride + k * p.a.across, p.a.down, p.a.across, p.m, depth, kDown, p.tf32, a.data());
      pack(p.b, item * p.b.stride + k * p.b.down, p.b.across, p.b.down, p.n, depth, kAcross, p.tf32, b.data());
      for (std::int64_t j = 0; j < tiles_across; ++j)
        for (std::int64_t i = 0; i < tiles_down; ++i)
          tile(a.data() + i * depth * kDown, b.data() + j * depth * kAcross, depth,
               sums.data() + (j * tiles_down + i) * kDown * kAcross);
    }
    for (std::int64_t j = 0; j < p.n; ++j)
      for (std::int64_t i = 0; i < p.m; ++i) {
        const std::int64_t of_tile = (j / kAcross * tiles_down + i / kDown) * kDown * kAcross;
        T x = alpha * sums[static_cast<std::size_t>(of_tile + j % kAcross * kDown + i % kDown)];
        if (p.beta != 0) x += beta * read<T>(p.c, item * p.c.stride + i * p.c.down + j * p.c.across);
        if (p.bias.data != nullptr) x += read<T>(p.bias, i);
        if (p.relu) x = x > T{} || std::isnan(x) ? x : T{};
        write(p.d, item * p.d.stride + i * p.d.down + j * p.d.across, x);
      }
  }
}

}  // namespace

void multiply(const Product& p) {
  if (p.d.type == Element::f64)
    multiply_as<double>(p);
  else
    multiply_as<float>(p);
}

}  // namespace sg::cuda::emulated
