// Philox4x32-10 and its maps to uniform and normal numbers: the formulas of core/philox.h in double, rounded once.
// uniform is exact on every machine. normal has the library's log, and sine and cosine of pi times a number, which need
// no reduction; they differ from the host's in the last bits of a double, which rounding to f32 nearly always hides.
#include "common.cuh"

namespace sg::cuda {
namespace {

struct Numbers {
  double v[4];
};

__device__ uint4 philox4x32_10(uint4 c, u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 high0 = __umulhi(0xD2511F53u, c.x), low0 = 0xD2511F53u * c.x;
    const u32 high1 = __umulhi(0xCD9E8D57u, c.z), low1 = 0xCD9E8D57u * c.z;
    c = uint4{high1 ^ c.y ^ key0, low1, high0 ^ c.w ^ key1, low0};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

struct Uniform {
  static __device__ Numbers map(uint4 r) {
    return {{double(r.x >> 8) * 0x1p-24, double(r.y >> 8) * 0x1p-24, double(r.z >> 8) * 0x1p-24,
             double(r.w >> 8) * 0x1p-24}};
  }
};

struct Normal {
  static __device__ void pair(u32 a, u32 b, double* x, double* y) {
    const double radius = sqrt(-2.0 * log((double(a >> 8) + 1.0) * 0x1p-24));
    double sine, cosine;
    sincospi(double(b >> 8) * 0x1p-23, &sine, &cosine);
    *x = radius * cosine;
    *y = radius * sine;
  }
  static __device__ Numbers map(uint4 r) {
    Numbers n;
    pair(r.x, r.y, &n.v[0], &n.v[1]);
    pair(r.z, r.w, &n.v[2], &n.v[3]);
    return n;
  }
};

template <class Map, class T>
__device__ void random(const int* state, T* out, u32 n, u32 stream) {
  const u32 seed = u32(state[0]), step = u32(state[1]), blocks = n / 4 + (n % 4 != 0);
  for (u32 b = thread_index(); b < blocks; b += thread_count()) {
    const Numbers numbers = Map::map(philox4x32_10(uint4{b, 0, stream, step}, seed, 0x53475631u));
#pragma unroll
    for (u32 k = 0; k < 4; ++k)
      if (4 * b + k < n) out[4 * b + k] = T(numbers.v[k]);
  }
}

}  // namespace

#define SG_RANDOM(Map, op, T, name)                                                                            \
  extern "C" __global__ void __launch_bounds__(256) op##_##name(const int* state, T* out, u32 n, u32 stream) { \
    random<Map>(state, out, n, stream);                                                                        \
  }
SG_RANDOM(Uniform, uniform, float, f32)
SG_RANDOM(Uniform, uniform, double, f64)
SG_RANDOM(Normal, normal, float, f32)
SG_RANDOM(Normal, normal, double, f64)

}  // namespace sg::cuda
