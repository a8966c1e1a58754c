// The nearest code by tensor cores, with the indices of nearest.cu: products in tf32 rule out codes that cannot be the
// nearest, what is left is compared by the very costs that nearest.cu computes. No N x K array: a row has room for
// kList codes per part of the codebook, and rows with more (many codes equally near, or no finite numbers) are left to
// nearest.cu by name.
//
// Bound. Let s be the cost that is screened, x the exact kernel's cost of the same pair, both made with the same start
// a = |c|^2 / 2 (0 for the cosine), P = |z||c| (so that sum |z_d c_d| <= P), D the padded depth, a multiple of 16.
//   1. Rounding to tf32 (cvt.rna, 11 bits) changes an element by at most 2^-11 of it, and by 2^-126 where it is that
//      small: z.c by at most (2^-10 + 2^-22) P + 2^-126 sqrt(D) (|z| + |c|) + D 2^-252.
//   2. Products of tf32 are exact in f32. mma adds 8 of them to its accumulator at a precision that NVIDIA does not
//      document. Measured (Fasi et al., "Numerical behavior of NVIDIA tensor cores", PeerJ CS 2021): terms are aligned
//      to the largest and cut, with at least 24 bits kept. 9 terms and the result lose at most 2^-23 of the largest
//      magnitude each, taken here as 2^-19 P for each of D / 8 products: D 2^-22 P.
//   3. The exact kernel's chain of D fused multiply-adds loses at most D 2^-24 P (1 + D 2^-24).
//   4. Subtracting from a, here and there, and the two bounds below, are roundings of numbers of at most a + P: less
//      than 4 of 2^-24 (a + P), that is 2^-22 P + 2^-22 a.
//   5. Results below 2^-126, were they flushed to zero: 2 D 2^-126.
// With D >= 16 and D <= 2^15 the sum is below
//   e = A n(z) n(c) + 2^-21 a + D 2^-124,   A = 1.01 (2^-10 + D 2^-21),   n(x) = |x| (1 + 2^-20) + 2^-114 sqrt(D),
// whose spare hundredth covers the rounding of e itself and the product of the terms, and whose 2^-114 the second term
// of 1. So s - e <= x <= s + e. The least s + e of a row bounds its least x, and a code with s - e above that cannot
// have the least x; no other is dropped, so ties stay too. Where norms or start are above 2^62 or not finite, n is
// infinite: then s + e is infinite or NaN and bounds nothing, and s - e is -infinity or NaN, which is never "above".
#include "nearest.cuh"

namespace sg::cuda {
namespace {

constexpr u32 kThreads = 128, kRows = 128, kCodes = 64, kDepth = 16, kPitch = kDepth + 4;  // pitch: no bank conflicts
constexpr u32 kRowsOfWarp = 32, kCodeGroups = kCodes / 8;
constexpr u32 kList = 16;

struct alignas(16) CodeTerms {
  float start, norm, slack, unused;  // a, n(c), 2^-21 a + D 2^-124
};
struct alignas(8) Candidate {
  float least;  // s - e
  u32 code;
};

__device__ inline float tf32(float x) {
  u32 bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}

__device__ inline void multiply(float (&c)[4], const float (&a)[4], float b0, float b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b0)), "r"(__float_as_uint(b1)));
}

__device__ inline void copy_async(float* shared, const float* global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(u32(__cvta_generic_to_shared(shared))),
               "l"(__cvta_generic_to_global(global))
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ inline void wait_for_all_but_newest() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }

// One warp: x in tf32, padded with zeros; returns n(x).
template <class In>
__device__ float pack(const In* x, float* packed, u32 d, u32 padded) {
  const u32 lane = threadIdx.x & 31;
  double squares = 0;
  for (u32 j = lane; j < padded; j += 32) {
    const float value = j < d ? number(x[j]) : 0.0f;
    packed[j] = tf32(value);
    squares += double(value) * double(value);
  }
  const double norm = sqrt(warp_reduce<Sum>(squares)) * (1.0 + 0x1p-20) + 0x1p-114 * sqrt(double(padded));
  return norm < 0x1p62 ? float(norm) : infinity<float>();  // NaN too
}

// One warp per row. errors: A n(z).
template <class In>
__device__ void pack_rows(const In* z, float* packed, float* errors, u32 n, u32 d, u32 padded, float a) {
  const u32 row = thread_index() >> 5;
  if (row >= n) return;
  const float norm = pack(z + i64(row) * d, packed + i64(row) * padded, d, padded);
  if ((threadIdx.x & 31) == 0) errors[row] = a * norm;
}

template <class In>
__device__ void rank(const In* z, const float* codes, const float* start, const Candidate* lists, const u32* counts,
                     const float* limits, u32* missed, u32* missed_count, int* out, u32 n, u32 d, u32 parts) {
  const u32 row = thread_index() >> 5, lane = threadIdx.x & 31;
  if (row >= n) return;
  float limit = infinity<float>();
  bool fits = true;
  for (u32 part = 0; part < parts; ++part) {
    limit = fminf(limit, limits[i64(part) * n + row]);
    fits = fits && counts[i64(part) * n + row] <= kList;
  }
  if (!fits) {
    if (lane == 0) missed[atomicAdd(missed_count, 1u)] = row;  // in any order: rows are independent
    return;
  }
  const In* x = z + i64(row) * d;
  Nearest<float> best;
  for (u32 e = lane; e < parts * kList; e += 32) {
    const i64 list = i64(e / kList) * n + row;
    if (e % kList >= counts[list]) continue;
    const Candidate candidate = lists[list * kList + e % kList];
    if (candidate.least > limit) continue;
    const float* c = codes + i64(candidate.code) * d;
    float product = 0;
    for (u32 j = 0; j < d; ++j) product = fused(number(x[j]), c[j], product);
    best.take(cost_of(start[candidate.code], product), candidate.code);
  }
#pragma unroll
  for (u32 step = 16; step > 0; step >>= 1) {
    const float cost = __shfl_xor_sync(kFullMask, best.cost, step);
    best.take(cost, __shfl_xor_sync(kFullMask, best.code, step));
  }
  if (lane == 0) out[row] = int(best.code);
}

}  // namespace

#define SG_ROWS(In, in)                                                                                         \
  extern "C" __global__ void __launch_bounds__(256)                                                             \
      pack_rows_##in(const In* z, float* packed, float* errors, u32 n, u32 d, u32 padded, float a) {            \
    pack_rows(z, packed, errors, n, d, padded, a);                                                              \
  }                                                                                                             \
  extern "C" __global__ void __launch_bounds__(256)                                                             \
      rank_##in(const In* z, const float* codes, const float* start, const Candidate* lists, const u32* counts, \
                const float* limits, u32* missed, u32* missed_count, int* out, u32 n, u32 d, u32 parts) {       \
    rank(z, codes, start, lists, counts, limits, missed, missed_count, out, n, d, parts);                       \
  }
SG_ROWS(float, f32)
SG_ROWS(u16, bf16)

// One warp per code, and per place up to a whole tile of codes.
extern "C" __global__ void __launch_bounds__(256)
    pack_codes(const float* codes, const float* start, float* packed, CodeTerms* terms, u32 k, u32 d, u32 padded) {
  const u32 code = thread_index() >> 5;
  if (code >= (k + kCodes - 1) / kCodes * kCodes) return;
  CodeTerms term{infinity<float>(), 0.0f, 0.0f, 0.0f};
  if (code < k) {
    term.norm = pack(codes + i64(code) * d, packed + i64(code) * padded, d, padded);
    term.start = fmaxf(start[code], 0.0f);  // a code of zeros has cost 0
    term.slack = 0x1p-21f * term.start + float(padded) * 0x1p-124f;
    if (!(term.start < 0x1p125f)) term.norm = infinity<float>();
  }
  if ((threadIdx.x & 31) == 0) terms[code] = term;
}

// A block holds 128 rows against 64 codes at a time, a warp 32 rows against all of these; 16 elements of depth are
// copied into shared memory while the 16 before are multiplied.
extern "C" __global__ void __launch_bounds__(kThreads, 2)
    screen_codes(const float* rows, const float* codes, const float* errors, const CodeTerms* terms, Candidate* lists,
                 u32* counts, float* limits, u32 n, u32 k, u32 padded, u32 parts) {
  __shared__ alignas(16) float row_tile[2][kRows][kPitch];
  __shared__ alignas(16) float code_tile[2][kCodes][kPitch];
  __shared__ u32 listed[kRows];
  const u32 lane = threadIdx.x & 31, group = lane >> 2, in_group = lane & 3;
  const u32 warp_row = (threadIdx.x >> 5) * kRowsOfWarp;
  const u32 part = blockIdx.x % parts, row0 = blockIdx.x / parts * kRows;
  const u32 code_tiles = (k + kCodes - 1) / kCodes;
  const u32 first = u32(u64(code_tiles) * part / parts) * kCodes;
  const u32 last = u32(u64(code_tiles) * (part + 1) / parts) * kCodes;

  // Rows and codes beyond the end are copies of the last.
  const auto stage = [&](u32 buffer, u32 code0, u32 d0) {
    constexpr u32 kPieces = kDepth / 4;
#pragma unroll
    for (u32 i = 0; i < kRows * kPieces / kThreads; ++i) {
      const u32 at = threadIdx.x + i * kThreads, row = at / kPieces, piece = at % kPieces * 4;
      copy_async(&row_tile[buffer][row][piece], rows + i64(min(row0 + row, n - 1)) * padded + d0 + piece);
    }
#pragma unroll
    for (u32 i = 0; i < kCodes * kPieces / kThreads; ++i) {
      const u32 at = threadIdx.x + i * kThreads, code = at / kPieces, piece = at % kPieces * 4;
      copy_async(&code_tile[buffer][code][piece], codes + i64(min(code0 + code, k - 1)) * padded + d0 + piece);
    }
  };

  // A thread has products of rows group + 8 h of its warp, h < 4, and codes 2 in_group + {0, 1} of each eight.
  const auto row_of = [&](u32 h) { return warp_row + group + 8 * h; };
  float limit[4], error[4];
#pragma unroll
  for (u32 h = 0; h < 4; ++h) {
    limit[h] = infinity<float>();
    error[h] = errors[min(row0 + row_of(h), n - 1)];
  }
  listed[threadIdx.x] = 0;

  u32 buffer = 0;
  stage(buffer, first, 0);
  commit_copies();
  for (u32 code0 = first; code0 < last; code0 += kCodes) {
    float product[2][kCodeGroups][4] = {};
    for (u32 d0 = 0; d0 < padded; d0 += kDepth) {
      if (d0 + kDepth < padded)
        stage(buffer ^ 1, code0, d0 + kDepth);
      else if (code0 + kCodes < last)
        stage(buffer ^ 1, code0 + kCodes, 0);
      commit_copies();
      wait_for_all_but_newest();
      __syncthreads();
#pragma unroll
      for (u32 j = in_group; j < kDepth; j += 8) {
        float a[2][4];
#pragma unroll
        for (u32 m = 0; m < 2; ++m)
#pragma unroll
          for (u32 i = 0; i < 4; ++i) a[m][i] = row_tile[buffer][row_of(2 * m + (i & 1))][j + 4 * (i >> 1)];
#pragma unroll
        for (u32 g = 0; g < kCodeGroups; ++g) {
          const float* c = &code_tile[buffer][8 * g + group][j];
          multiply(product[0][g], a[0], c[0], c[4]);
          multiply(product[1][g], a[1], c[0], c[4]);
        }
      }
      __syncthreads();
      buffer ^= 1;
    }

    const auto code_at = [&](u32 g, u32 b) { return code0 + 8 * g + 2 * in_group + b; };
#pragma unroll
    for (u32 g = 0; g < kCodeGroups; ++g)
#pragma unroll
      for (u32 b = 0; b < 2; ++b) {
        const CodeTerms term = terms[code_at(g, b)];
#pragma unroll
        for (u32 h = 0; h < 4; ++h) {
          const float s = term.start - product[h >> 1][g][(h & 1) * 2 + b];
          limit[h] = fminf(limit[h], s + fused(error[h], term.norm, term.slack));
        }
      }
#pragma unroll
    for (u32 h = 0; h < 4; ++h) {  // all four threads of a row
      limit[h] = fminf(limit[h], __shfl_xor_sync(kFullMask, limit[h], 1));
      limit[h] = fminf(limit[h], __shfl_xor_sync(kFullMask, limit[h], 2));
    }
#pragma unroll
    for (u32 g = 0; g < kCodeGroups; ++g)
#pragma unroll
      for (u32 b = 0; b < 2; ++b) {
        const CodeTerms term = terms[code_at(g, b)];
#pragma unroll
        for (u32 h = 0; h < 4; ++h) {
          const float s = term.start - product[h >> 1][g][(h & 1) * 2 + b];
          const float least = s - fused(error[h], term.norm, term.slack);
          if (least > limit[h] || code_at(g, b) >= k || row0 + row_of(h) >= n) continue;
          const u32 slot = atomicAdd(&listed[row_of(h)], 1u);
          if (slot < kList) lists[(i64(part) * n + row0 + row_of(h)) * kList + slot] = Candidate{least, code_at(g, b)};
        }
      }
  }

  __syncthreads();
  const u32 row = row0 + threadIdx.x;
  if (row < n) counts[i64(part) * n + row] = listed[threadIdx.x];
#pragma unroll
  for (u32 h = 0; h < 4; ++h)
    if (in_group == 0 && row0 + row_of(h) < n) limits[i64(part) * n + row0 + row_of(h)] = limit[h];
}

}  // namespace sg::cuda
