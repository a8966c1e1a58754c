// Quantiles by radix selection: for each wanted order statistic, the digits of its key are found from the highest, by
// counting how many elements with the digits found so far have each next one. Elements are not moved.
//
// Keys are unsigned integers in the order of the numbers (-0 just below 0). Whether there was a NaN is one flag.
#include "common.cuh"

namespace sg::cuda {
namespace {

constexpr u32 kDigits = 256;

__device__ u32 key_of(float x) {
  const u32 u = __float_as_uint(x);
  return u >> 31 ? ~u : u | 0x80000000u;
}
__device__ u64 key_of(double x) {
  const u64 u = u64(__double_as_longlong(x));
  return u >> 63 ? ~u : u | 0x8000000000000000ull;
}
__device__ float number_of(u32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }
__device__ double number_of(u64 key) {
  return __longlong_as_double(i64(key >> 63 ? key & 0x7fffffffffffffffull : ~key));
}

// Blocks (b, k) count for the k-th order statistic.
template <class T, class K>
__device__ void count_digits(const T* x, u32 n, u32 shift, const u64* prefixes, u32* counts, u32* has_nan) {
  __shared__ u32 local[kDigits];
  for (u32 i = threadIdx.x; i < kDigits; i += blockDim.x) local[i] = 0;
  __syncthreads();
  const K prefix = K(prefixes[blockIdx.y]);
  for (u32 i = thread_index(); i < n; i += thread_count()) {
    const K key = key_of(x[i]);
    if (((key >> shift) >> 8) == prefix) atomicAdd(&local[u32(key >> shift) & 255u], 1u);
    if (is_nan(x[i])) atomicOr(has_nan, 1u);
  }
  __syncthreads();
  for (u32 i = threadIdx.x; i < kDigits; i += blockDim.x)
    if (local[i] != 0) atomicAdd(&counts[blockIdx.y * kDigits + i], local[i]);
}

template <class T, class K>
__device__ void interpolate(const u64* prefixes, const double* fractions, const u32* has_nan, T* out, u32 n) {
  const u32 i = thread_index();
  if (i >= n) return;
  const double lo = double(number_of(K(prefixes[2 * i]))), hi = double(number_of(K(prefixes[2 * i + 1])));
  const double nan = __longlong_as_double(0x7ff8000000000000ll);
  out[i] = T(*has_nan != 0 ? nan : lo == hi || fractions[i] == 0 ? lo : lo + fractions[i] * (hi - lo));
}

}  // namespace

// One block per order statistic.
extern "C" __global__ void __launch_bounds__(256)
    select_start(const u32* wanted, u64* prefixes, u32* ranks, u32* counts, u32* has_nan) {
  counts[blockIdx.x * kDigits + threadIdx.x] = 0;
  if (threadIdx.x != 0) return;
  prefixes[blockIdx.x] = 0;
  ranks[blockIdx.x] = wanted[blockIdx.x];
  if (blockIdx.x == 0) *has_nan = 0;
}

// The digit in which element `rank` of those counted lies; the counts are zeroed for the next one.
extern "C" __global__ void __launch_bounds__(256) select_digit(u64* prefixes, u32* ranks, u32* counts) {
  __shared__ u32 sums[8];
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5, at = blockIdx.x * kDigits + threadIdx.x;
  const u32 own = counts[at], rank = ranks[blockIdx.x];
  counts[at] = 0;
  u32 inclusive = own;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const u32 below = __shfl_up_sync(kFullMask, inclusive, step);
    if (lane >= u32(step)) inclusive += below;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();
  for (u32 w = 0; w < warp; ++w) inclusive += sums[w];
  __syncthreads();
  if (rank < inclusive && rank >= inclusive - own) {
    prefixes[blockIdx.x] = prefixes[blockIdx.x] << 8 | threadIdx.x;
    ranks[blockIdx.x] = rank - (inclusive - own);
  }
}

#define SG_SELECT(T, K, name)                                                                               \
  extern "C" __global__ void __launch_bounds__(256)                                                         \
      count_digits_##name(const T* x, u32 n, u32 shift, const u64* prefixes, u32* counts, u32* has_nan) {   \
    count_digits<T, K>(x, n, shift, prefixes, counts, has_nan);                                             \
  }                                                                                                         \
  extern "C" __global__ void __launch_bounds__(128)                                                         \
      interpolate_##name(const u64* prefixes, const double* fractions, const u32* has_nan, T* out, u32 n) { \
    interpolate<T, K>(prefixes, fractions, has_nan, out, n);                                                \
  }
SG_SELECT(float, u32, f32)
SG_SELECT(double, u64, f64)

}  // namespace sg::cuda
