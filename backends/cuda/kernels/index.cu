// Rows by index: gather, scatter-add, one-hot, histogram. Only whole numbers are added atomically, so that every result
// is the same in every run.
//
// scatter_add_rows sorts first: `counts` holds, per row of the result and chunk of the indices, how many indices of
// that chunk name that row (count_indices), then where their places begin in the sorted order (scan_*), then where they
// end (place_indices, one warp per chunk, in index order). The sorted order is cut into segments of equal length,
// however many updates one row receives. sum_segments sums each run of one row within a segment; a run that neither
// begins nor ends at a border of its segment is a row of the result, others are parts, which join_segments adds in
// order.
#include "common.cuh"

namespace sg::cuda {
namespace {

template <class W>
__device__ void gather_rows(const W* table, const int* indices, W* out, u32 n, const Divisor& words,
                            const IndexGuard& guard) {
  for (u32 i = thread_index(); i < n; i += thread_count()) {
    u32 word;
    const u32 row = divide(i, words, &word);
    const int index = indices[row];
    W value{};
    if (in_range(guard, index, row)) value = table[i64(index) * words.d + word];
    out[i] = value;
  }
}

constexpr u32 kScanItems = 8;
constexpr u32 kScanTile = 256 * kScanItems;

// Exclusive scan over the threads of a block of 256; *total gets the sum.
__device__ u32 scan_block(u32 x, u32* total) {
  __shared__ u32 sums[8];
  const u32 lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
  u32 inclusive = x;
#pragma unroll
  for (int step = 1; step < 32; step <<= 1) {
    const u32 below = __shfl_up_sync(kFullMask, inclusive, step);
    if (lane >= u32(step)) inclusive += below;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();
  u32 before = 0, all = 0;
  for (u32 w = 0; w < 8; ++w) {
    if (w < warp) before += sums[w];
    all += sums[w];
  }
  __syncthreads();
  *total = all;
  return before + inclusive - x;
}

struct Sorted {
  const u32* counts;  // [rows * chunks], after place_indices
  const u32* sums;    // per tile of the scan
  u32 chunks;
  __device__ u32 end(u32 row) const {
    const u32 at = (row + 1) * chunks - 1;
    return counts[at] + sums[at / kScanTile];
  }
  __device__ u32 begin(u32 row) const { return row == 0 ? 0 : end(row - 1); }
};

// partial: [segments][2][d]; part 0 of a segment is the run at its beginning, part 1 one that only reaches its end.
template <class T>
__device__ void sum_segments(const u32* order, const int* indices, const T* updates, T* out, double* partial,
                             Sorted sorted, u32 rows, u32 d, u32 segment) {
  const u32 column = blockIdx.y * blockDim.x + threadIdx.x;
  if (column >= d) return;
  const u32 all = sorted.end(rows - 1), begin = blockIdx.x * segment, end = min(all, begin + segment);
  u32 run = begin;
  while (run < end) {
    const int row = indices[order[run]];
    double total = 0;
    u32 stop = run;
    for (; stop < end; ++stop) {
      const u32 update = order[stop];
      if (indices[update] != row) break;
      total += double(updates[i64(update) * d + column]);
    }
    const bool whole = (run > begin || run == 0 || indices[order[run - 1]] != row) &&
                       (stop < end || stop == all || indices[order[stop]] != row);
    if (whole)
      out[i64(row) * d + column] = T(total);
    else
      partial[(i64(blockIdx.x) * 2 + (run == begin ? 0 : 1)) * d + column] = total;
    run = stop;
  }
}

template <class T>
__device__ void join_segments(T* out, const double* partial, Sorted sorted, u32 n, const Divisor& columns,
                              u32 segment) {
  for (u32 i = thread_index(); i < n; i += thread_count()) {
    u32 column;
    const u32 row = divide(i, columns, &column), begin = sorted.begin(row), end = sorted.end(row);
    if (begin == end) {
      out[i] = T(0);
      continue;
    }
    const u32 first = begin / segment, last = (end - 1) / segment;
    if (first == last) continue;
    double total = partial[(i64(first) * 2 + (begin % segment == 0 ? 0 : 1)) * columns.d + column];
    for (u32 s = first + 1; s <= last; ++s) total += partial[i64(s) * 2 * columns.d + column];
    out[i] = T(total);
  }
}

template <class T>
__device__ void one_hot(const int* indices, T* out, u32 n, const Divisor& depth) {
  for (u32 i = thread_index(); i < n; i += thread_count()) {
    u32 column;
    const u32 row = divide(i, depth, &column);
    out[i] = indices[row] == int(column) ? T(1) : T(0);
  }
}

}  // namespace

#define SG_GATHER(W, bytes)                                                                                     \
  extern "C" __global__ void __launch_bounds__(256)                                                             \
      gather_rows_##bytes(const W* table, const int* indices, W* out, u32 n, Divisor words, IndexGuard guard) { \
    gather_rows(table, indices, out, n, words, guard);                                                          \
  }
SG_GATHER(u16, 2)
SG_GATHER(u32, 4)
SG_GATHER(u64, 8)
SG_GATHER(uint4, 16)

extern "C" __global__ void __launch_bounds__(256)
    count_indices(const int* indices, u32* counts, u32 n, u32 chunk, u32 chunks, IndexGuard guard) {
  for (u32 i = thread_index(); i < n; i += thread_count())
    if (in_range(guard, indices[i], i)) atomicAdd(&counts[u32(indices[i]) * chunks + i / chunk], 1u);
}

extern "C" __global__ void __launch_bounds__(256) scan_tiles(u32* counts, u32* sums, u32 n) {
  const u32 first = blockIdx.x * kScanTile + threadIdx.x * kScanItems;
  u32 items[kScanItems], own = 0, total;
#pragma unroll
  for (u32 k = 0; k < kScanItems; ++k) own += items[k] = first + k < n ? counts[first + k] : 0;
  u32 before = scan_block(own, &total);
#pragma unroll
  for (u32 k = 0; k < kScanItems; ++k) {
    if (first + k < n) counts[first + k] = before;
    before += items[k];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

extern "C" __global__ void __launch_bounds__(256) scan_sums(u32* sums, u32 n) {
  u32 before = 0;
  for (u32 base = 0; base < n; base += 256) {
    const u32 i = base + threadIdx.x;
    u32 total;
    const u32 own = scan_block(i < n ? sums[i] : 0, &total);
    if (i < n) sums[i] = before + own;
    before += total;
  }
}

// One warp per chunk: 32 indices at a time, each finds how many below it in the warp name the same row.
extern "C" __global__ void __launch_bounds__(32)
    place_indices(const int* indices, u32* counts, const u32* sums, u32* order, u32 n, u32 chunk, u32 rows) {
  const u32 lane = threadIdx.x, begin = blockIdx.x * chunk, end = min(n, begin + chunk);
  for (u32 base = begin; base < end; base += 32) {
    const u32 i = base + lane;
    const int index = i < end ? indices[i] : -1;
    const bool valid = u32(index) < rows;
    u32 same = 0;
#pragma unroll
    for (int other = 0; other < 32; ++other) same |= u32(__shfl_sync(kFullMask, index, other) == index) << other;
    const u32 below = __popc(same & ((1u << lane) - 1)), at = u32(index) * gridDim.x + blockIdx.x;
    if (valid) order[counts[at] + sums[at / kScanTile] + below] = i;
    __syncwarp();
    if (valid && below == 0) counts[at] += __popc(same);
    __syncwarp();
  }
}

#define SG_SCATTER(T, name)                                                                                      \
  extern "C" __global__ void __launch_bounds__(128)                                                              \
      sum_segments_##name(const u32* order, const int* indices, const T* updates, T* out, double* partial,       \
                          const u32* counts, const u32* sums, u32 chunks, u32 rows, u32 d, u32 segment) {        \
    sum_segments(order, indices, updates, out, partial, Sorted{counts, sums, chunks}, rows, d, segment);         \
  }                                                                                                              \
  extern "C" __global__ void __launch_bounds__(256)                                                              \
      join_segments_##name(T* out, const double* partial, const u32* counts, const u32* sums, u32 chunks, u32 n, \
                           Divisor columns, u32 segment) {                                                       \
    join_segments(out, partial, Sorted{counts, sums, chunks}, n, columns, segment);                              \
  }
SG_SCATTER(float, f32)
SG_SCATTER(double, f64)

#define SG_ONE_HOT(T, name)                                                                                            \
  extern "C" __global__ void __launch_bounds__(256) one_hot_##name(const int* indices, T* out, u32 n, Divisor depth) { \
    one_hot(indices, out, n, depth);                                                                                   \
  }
SG_ONE_HOT(float, f32)
SG_ONE_HOT(double, f64)
SG_ONE_HOT(int, i32)

// `out` is zero. `bins` counters in dynamic shared memory, or none where they are too many.
extern "C" __global__ void __launch_bounds__(256)
    histogram(const int* indices, int* out, u32 n, u32 bins, u32 in_shared, IndexGuard guard) {
  extern __shared__ int local[];
  int* to = in_shared ? local : out;
  if (in_shared) {
    for (u32 b = threadIdx.x; b < bins; b += blockDim.x) local[b] = 0;
    __syncthreads();
  }
  for (u32 i = thread_index(); i < n; i += thread_count())
    if (in_range(guard, indices[i], i)) atomicAdd(&to[indices[i]], 1);
  if (!in_shared) return;
  __syncthreads();
  for (u32 b = threadIdx.x; b < bins; b += blockDim.x)
    if (local[b] != 0) atomicAdd(&out[b], local[b]);
}

}  // namespace sg::cuda
