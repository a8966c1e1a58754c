// What the kernels of nearest_code share: how the cost of a code for a row is computed, and which of two is better.
// Costs of one pair are the same bits wherever they are computed: the product is one chain of fused multiply-adds over
// ascending d, from zero.
#pragma once
#include "common.cuh"

namespace sg::cuda {

__device__ inline float number(float x) { return x; }
__device__ inline double number(double x) { return x; }
__device__ inline float number(u16 bf16) { return from_bf16(bf16); }

__device__ inline float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

// start: |c|^2 / 2; for the cosine, whose codes have length 1, zero; minus infinity for a code of zeros there, whose
// cost is 0 whatever the row is.
template <class T>
__device__ inline T cost_of(T start, T product) {
  return start == -infinity<T>() ? T(0) : start - product;
}

// The least cost, at the lowest index that has it; a number wins over NaN. Until there is a number: NaN at 0.
template <class T>
struct Nearest {
  T cost = T(0) * infinity<T>();
  u32 code = 0;

  __device__ void take(T other, u32 index) {
    const bool better = other < cost || (other == cost && index < code) || (is_nan(cost) && !is_nan(other));
    if (better) cost = other, code = index;
  }
};

}  // namespace sg::cuda
