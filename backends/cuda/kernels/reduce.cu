// sum, max, min over any axes; argmax and argmin along one. A result is made of a number of parts that depends on the
// shape alone; each is summed in a fixed order, and a second launch joins them. No atomics.
#include "common.cuh"

namespace sg::cuda {
namespace {

// Sums of f32 are made in double: what rounding loses would grow with the size of a batch.
template <class Op, class T>
struct Accumulator {
  using type = T;
};
template <>
struct Accumulator<Sum, float> {
  using type = double;
};

// One thread per part of a result: neighbours read neighbours where the last axis is kept.
template <class Op, class In, class Out>
__device__ void reduce_threads(const Reduction& r, const In* x, Out* out) {
  using A = typename Accumulator<Op, In>::type;
  const u32 all = r.results * r.parts;
  for (u32 t = thread_index(); t < all; t += thread_count()) {
    const u32 part = t / r.results, result = t - part * r.results;
    const In* from = x + offset_of(r.kept, result);
    const u32 end = min(r.extent, (part + 1) * r.piece);
    A total = Op::template identity<A>();
    for (u32 j = part * r.piece; j < end; ++j) total = Op::join(total, A(from[offset_of(r.reduced, j)]));
    out[t] = Out(total);
  }
}

// One block per part of a result.
template <class Op, class In, class Out>
__device__ void reduce_blocks(const Reduction& r, const In* x, Out* out) {
  using A = typename Accumulator<Op, In>::type;
  __shared__ A shared[kMaxWarps];
  const u32 part = blockIdx.x / r.results, result = blockIdx.x - part * r.results;
  const In* from = x + offset_of(r.kept, result);
  const u32 end = min(r.extent, (part + 1) * r.piece);
  A total = Op::template identity<A>();
  for (u32 j = part * r.piece + threadIdx.x; j < end; j += blockDim.x)
    total = Op::join(total, A(from[offset_of(r.reduced, j)]));
  total = block_reduce<Op>(total, shared);
  if (threadIdx.x == 0) out[blockIdx.x] = Out(total);
}

// A greater (less) number is better, any number is better than a NaN, and of equals the one of lower index.
template <bool kMax, class T>
__device__ bool better(T x, u32 i, T best, u32 at) {
  if (kMax ? x > best : x < best) return true;
  if (is_nan(best) != is_nan(x)) return is_nan(best);
  return (x == best || is_nan(x)) && i < at;
}

template <bool kMax, class T>
__device__ void arg_threads(const T* x, int* out, u32 results, u32 extent, Divisor inner) {
  for (u32 t = thread_index(); t < results; t += thread_count()) {
    u32 column;
    const u32 outer = divide(t, inner, &column);
    const T* from = x + i64(outer) * extent * inner.d + column;
    T best = from[0];
    u32 at = 0;
    for (u32 j = 1; j < extent; ++j) {
      const T now = from[i64(j) * inner.d];
      if (better<kMax>(now, j, best, at)) best = now, at = j;
    }
    out[t] = int(at);
  }
}

// One warp per row.
template <bool kMax, class T>
__device__ void arg_warps(const T* x, int* out, u32 results, u32 extent) {
  const u32 row = thread_index() >> 5, lane = threadIdx.x & 31;
  if (row >= results) return;
  const T* from = x + i64(row) * extent;
  u32 at = min(lane, extent - 1);
  T best = from[at];
  for (u32 j = lane + 32; j < extent; j += 32) {
    const T now = from[j];
    if (better<kMax>(now, j, best, at)) best = now, at = j;
  }
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) {
    const T other = __shfl_xor_sync(kFullMask, best, step);
    const u32 there = __shfl_xor_sync(kFullMask, at, step);
    if (better<kMax>(other, there, best, at)) best = other, at = there;
  }
  if (lane == 0) out[row] = int(at);
}

}  // namespace

#define SG_REDUCTION(Op, op, In, in, Out, result)                                                                    \
  extern "C" __global__ void __launch_bounds__(256) op##_threads_##in##_##result(const In* x, Out* y, Reduction r) { \
    reduce_threads<Op>(r, x, y);                                                                                     \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(256) op##_blocks_##in##_##result(const In* x, Out* y, Reduction r) {  \
    reduce_blocks<Op>(r, x, y);                                                                                      \
  }
SG_REDUCTION(Sum, sum, float, f32, float, f32)
SG_REDUCTION(Sum, sum, float, f32, double, f64)
SG_REDUCTION(Sum, sum, double, f64, float, f32)
SG_REDUCTION(Sum, sum, double, f64, double, f64)
SG_REDUCTION(Sum, sum, int, i32, int, i32)
SG_REDUCTION(Max, max, float, f32, float, f32)
SG_REDUCTION(Max, max, double, f64, double, f64)
SG_REDUCTION(Max, max, int, i32, int, i32)
SG_REDUCTION(Min, min, float, f32, float, f32)
SG_REDUCTION(Min, min, double, f64, double, f64)
SG_REDUCTION(Min, min, int, i32, int, i32)

#define SG_ARG(op, kMax, T, name)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                                  \
      op##_threads_##name(const T* x, int* y, u32 results, u32 extent, Divisor inner) {                              \
    arg_threads<kMax>(x, y, results, extent, inner);                                                                 \
  }                                                                                                                  \
  extern "C" __global__ void __launch_bounds__(128) op##_warps_##name(const T* x, int* y, u32 results, u32 extent) { \
    arg_warps<kMax>(x, y, results, extent);                                                                          \
  }
SG_ARG(argmax, true, float, f32)
SG_ARG(argmax, true, double, f64)
SG_ARG(argmax, true, int, i32)
SG_ARG(argmin, false, float, f32)
SG_ARG(argmin, false, double, f64)
SG_ARG(argmin, false, int, i32)

}  // namespace sg::cuda
