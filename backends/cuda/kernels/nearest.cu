// The nearest code by exact products: no N x K array, a row's best cost and code stay in registers.
//
// A block multiplies tiles of 128 rows and 64 codes, 16 elements of depth at a time through shared memory, each thread
// 8 rows by 4 codes, while the next elements are on their way into registers. The codes are cut into `parts`, so that
// few rows keep a GPU busy too; join_nearest takes the best of a row's parts. Neither tiles nor parts change a cost.
//
// Where `rows` is not null, *row_count rows are searched for, whose places it holds: those that nearest_tensor.cu
// leaves.
#include "nearest.cuh"

namespace sg::cuda {
namespace {

constexpr u32 kThreads = 256, kRows = 128, kCodes = 64, kDepth = 16;
constexpr u32 kLanes = 16;           // threads that share their rows
constexpr u32 kTall = 8, kWide = 4;  // rows and codes of a thread
constexpr u32 kRowLoads = kRows * kDepth / kThreads, kCodeLoads = kCodes * kDepth / kThreads;
static_assert(kTall * kThreads / kLanes == kRows && kWide * kLanes == kCodes);

// As many elements as a thread reads from shared memory at once.
template <class T>
struct alignas(16) Four {
  T at[4];
};

// One warp per code: its start, and, where `prepared` is not null, the code as it is searched for: in T, of length 1
// for the cosine.
template <class In, class T>
__device__ void prepare(const In* codes, T* start, T* prepared, u32 k, u32 d, bool cosine) {
  const u32 code = thread_index() >> 5, lane = threadIdx.x & 31;
  if (code >= k) return;
  const In* c = codes + i64(code) * d;
  double squares = 0;
  for (u32 j = lane; j < d; j += 32) {
    const double x = double(number(c[j]));
    squares += x * x;
  }
  squares = warp_reduce<Sum>(squares);
  const double scale = !cosine || squares == 0 ? 1.0 : 1.0 / sqrt(squares);
  if (lane == 0) start[code] = !cosine ? T(0.5 * squares) : squares == 0 ? -infinity<T>() : T(0);
  if (prepared == nullptr) return;
  for (u32 j = lane; j < d; j += 32) prepared[i64(code) * d + j] = T(double(number(c[j])) * scale);
}

template <class In, class T>
__device__ void search(const In* z, const T* codes, const T* start, const u32* rows, const u32* row_count, int* out,
                       T* costs, u32* found, u32 most_rows, u32 k, u32 d, u32 parts) {
  __shared__ alignas(16) T row_tile[kDepth][kRows + 4];
  __shared__ alignas(16) T code_tile[kDepth][kCodes + 4];
  const u32 column = threadIdx.x % kLanes, line = threadIdx.x / kLanes;
  const u32 depth_at = threadIdx.x % kDepth, item_at = threadIdx.x / kDepth;  // what this thread loads
  constexpr u32 kStep = kThreads / kDepth;
  const u32 n = rows == nullptr ? most_rows : *row_count;
  const auto place = [&](u32 row) { return rows == nullptr ? row : rows[row]; };
  const u32 code_tiles = (k + kCodes - 1) / kCodes, items = (n + kRows - 1) / kRows * parts;

  for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
    const u32 part = item % parts, row0 = item / parts * kRows;
    const u32 first = u32(u64(code_tiles) * part / parts) * kCodes;
    const u32 last = min(k, u32(u64(code_tiles) * (part + 1) / parts) * kCodes);
    T next_rows[kRowLoads], next_codes[kCodeLoads];
    const auto fetch = [&](u32 code0, u32 d0) {
      const u32 j = d0 + depth_at;
#pragma unroll
      for (u32 i = 0; i < kRowLoads; ++i) {
        const u32 row = row0 + item_at + i * kStep;
        next_rows[i] = row < n && j < d ? number(z[i64(place(row)) * d + j]) : T(0);
      }
#pragma unroll
      for (u32 i = 0; i < kCodeLoads; ++i) {
        const u32 code = code0 + item_at + i * kStep;
        next_codes[i] = code < k && j < d ? codes[i64(code) * d + j] : T(0);
      }
    };

    Nearest<T> best[kTall];
    fetch(first, 0);
    for (u32 code0 = first; code0 < last; code0 += kCodes) {
      T product[kTall][kWide] = {};
      for (u32 d0 = 0; d0 < d; d0 += kDepth) {
#pragma unroll
        for (u32 i = 0; i < kRowLoads; ++i) row_tile[depth_at][item_at + i * kStep] = next_rows[i];
#pragma unroll
        for (u32 i = 0; i < kCodeLoads; ++i) code_tile[depth_at][item_at + i * kStep] = next_codes[i];
        __syncthreads();
        if (d0 + kDepth < d)
          fetch(code0, d0 + kDepth);
        else if (code0 + kCodes < last)
          fetch(code0 + kCodes, 0);
        const u32 depth = min(kDepth, d - d0);
#pragma unroll 4
        for (u32 j = 0; j < depth; ++j) {
          const Four<T> c = *reinterpret_cast<const Four<T>*>(&code_tile[j][column * kWide]);
#pragma unroll
          for (u32 half = 0; half < kTall; half += 4) {
            const Four<T> r = *reinterpret_cast<const Four<T>*>(&row_tile[j][line * kTall + half]);
#pragma unroll
            for (u32 a = 0; a < 4; ++a)
#pragma unroll
              for (u32 b = 0; b < kWide; ++b) product[half + a][b] = fused(r.at[a], c.at[b], product[half + a][b]);
          }
        }
        __syncthreads();
      }
#pragma unroll
      for (u32 b = 0; b < kWide; ++b) {
        const u32 code = code0 + column * kWide + b;
        if (code >= k) break;
        const T from = start[code];
#pragma unroll
        for (u32 a = 0; a < kTall; ++a) best[a].take(cost_of(from, product[a][b]), code);
      }
    }

#pragma unroll
    for (u32 a = 0; a < kTall; ++a) {
#pragma unroll
      for (u32 step = kLanes / 2; step > 0; step >>= 1) {
        const T cost = __shfl_xor_sync(kFullMask, best[a].cost, step);
        best[a].take(cost, __shfl_xor_sync(kFullMask, best[a].code, step));
      }
      const u32 row = row0 + line * kTall + a;
      if (column != 0 || row >= n) continue;
      if (parts == 1) {
        out[place(row)] = int(best[a].code);
      } else {
        costs[i64(part) * most_rows + row] = best[a].cost;
        found[i64(part) * most_rows + row] = best[a].code;
      }
    }
  }
}

template <class T>
__device__ void join(const T* costs, const u32* found, const u32* rows, const u32* row_count, int* out, u32 most_rows,
                     u32 parts) {
  const u32 n = rows == nullptr ? most_rows : *row_count;
  for (u32 row = thread_index(); row < n; row += thread_count()) {
    Nearest<T> best;
    for (u32 part = 0; part < parts; ++part)
      best.take(costs[i64(part) * most_rows + row], found[i64(part) * most_rows + row]);
    out[rows == nullptr ? row : rows[row]] = int(best.code);
  }
}

}  // namespace

#define SG_NEAREST(In, in, T)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      prepare_codes_##in(const In* codes, T* start, T* prepared, u32 k, u32 d, u32 cosine) {                     \
    prepare(codes, start, prepared, k, d, cosine != 0);                                                          \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      nearest_##in(const In* z, const T* codes, const T* start, const u32* rows, const u32* row_count, int* out, \
                   T* costs, u32* found, u32 n, u32 k, u32 d, u32 parts) {                                       \
    search(z, codes, start, rows, row_count, out, costs, found, n, k, d, parts);                                 \
  }
SG_NEAREST(float, f32, float)
SG_NEAREST(double, f64, double)
SG_NEAREST(u16, bf16, float)

#define SG_JOIN(T, name)                                                                                     \
  extern "C" __global__ void __launch_bounds__(256) join_nearest_##name(                                     \
      const T* costs, const u32* found, const u32* rows, const u32* row_count, int* out, u32 n, u32 parts) { \
    join(costs, found, rows, row_count, out, n, parts);                                                      \
  }
SG_JOIN(float, f32)
SG_JOIN(double, f64)

}  // namespace sg::cuda
