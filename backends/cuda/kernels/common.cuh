// What the kernels share: indices, division, reductions over a warp and a block, bf16.
#pragma once
#include "params.h"

namespace sg::cuda {

using i64 = long long;
using u64 = unsigned long long;
using u32 = unsigned;
using u16 = unsigned short;

constexpr u32 kFullMask = 0xffffffffu;

__device__ inline u32 thread_index() { return blockIdx.x * blockDim.x + threadIdx.x; }
__device__ inline u32 thread_count() { return gridDim.x * blockDim.x; }

__device__ inline u32 divide(u32 n, const Divisor& by) { return (__umulhi(n, by.magic) + n) >> by.shift; }

// n / by; *rest = n % by.
__device__ inline u32 divide(u32 n, const Divisor& by, u32* rest) {
  const u32 q = divide(n, by);
  *rest = n - q * by.d;
  return q;
}

__device__ inline i64 offset_of(const Walk& walk, u32 i) {
  i64 offset = 0;
#pragma unroll
  for (int axis = 0; axis < 3; ++axis) {
    if (axis >= walk.rank) break;
    u32 at;
    i = divide(i, walk.dims[axis], &at);
    offset += at * walk.strides[axis];
  }
  return offset;
}

template <class T>
__device__ inline bool is_nan(T x) {
  return x != x;
}

struct Sum {
  template <class T>
  static __device__ T identity() {
    return T(0);
  }
  template <class T>
  static __device__ T join(T a, T b) {
    return a + b;
  }
  static __device__ int join(int a, int b) { return int(u32(a) + u32(b)); }  // wraps
};

template <class T>
__device__ inline T infinity();
template <>
__device__ inline float infinity<float>() {
  return __int_as_float(0x7f800000);
}
template <>
__device__ inline double infinity<double>() {
  return __longlong_as_double(0x7ff0000000000000ll);
}

template <class T>
__device__ inline T lowest() {
  return -infinity<T>();
}
template <>
__device__ inline int lowest<int>() {
  return -2147483647 - 1;
}
template <class T>
__device__ inline T highest() {
  return infinity<T>();
}
template <>
__device__ inline int highest<int>() {
  return 2147483647;
}

// A NaN stays.
struct Max {
  template <class T>
  static __device__ T identity() {
    return lowest<T>();
  }
  template <class T>
  static __device__ T join(T a, T b) {
    return b > a || is_nan(b) ? b : a;
  }
};
struct Min {
  template <class T>
  static __device__ T identity() {
    return highest<T>();
  }
  template <class T>
  static __device__ T join(T a, T b) {
    return b < a || is_nan(b) ? b : a;
  }
};

constexpr int kMaxWarps = 8;  // of a block that reduces

template <class Op, class T>
__device__ inline T warp_reduce(T x) {
#pragma unroll
  for (int step = 16; step > 0; step >>= 1) x = Op::join(x, __shfl_xor_sync(kFullMask, x, step));
  return x;
}

// Over all threads of a block of whole warps, at most kMaxWarps; every thread gets the result. `shared` holds kMaxWarps
// numbers and may be used again after the call.
template <class Op, class T>
__device__ inline T block_reduce(T x, T* shared) {
  x = warp_reduce<Op>(x);
  const u32 warps = blockDim.x >> 5;
  if (warps == 1) return x;
  if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = x;
  __syncthreads();
  T total = shared[0];
  for (u32 w = 1; w < warps; ++w) total = Op::join(total, shared[w]);
  __syncthreads();
  return total;
}

__device__ inline bool in_range(const IndexGuard& guard, int index, u32 position) {
  if (u32(index) < guard.bound) return true;
  atomicMax(&guard.flags[guard.slot], (u64(~position) << 32) | u32(index));
  atomicMax(&guard.flags[0], u64(1));
  return false;
}

__device__ inline float from_bf16(u16 bits) { return __uint_as_float(u32(bits) << 16); }
__device__ inline u16 to_bf16(float x) {  // to nearest, ties to even
  const u32 u = __float_as_uint(x);
  return is_nan(x) ? u16(u >> 16 | 0x40u) : u16((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

}  // namespace sg::cuda
