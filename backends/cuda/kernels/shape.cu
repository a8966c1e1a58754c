// Kernels that move elements: strided copies (transpose, broadcast, slice, concat, upsample), tiles that are transposed
// in shared memory, and padding. Words of 2, 4, 8 or 16 bytes: what they mean does not matter here.
#include "common.cuh"

namespace sg::cuda {
namespace {

template <class W>
__device__ void copy_strided(const StridedCopy& c, const W* src, W* dst) {
  for (u32 i = thread_index(); i < c.n; i += thread_count()) {
    u32 rest = i;
    i64 from = 0, to = 0;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= c.rank) break;
      u32 at;
      rest = divide(rest, c.dims[axis], &at);
      from += at * c.src[axis];
      to += at * c.dst[axis];
    }
    dst[to] = src[from];
  }
}

constexpr u32 kTile = 32, kTileRows = 8;

template <class W>
__device__ void copy_tiled(const TiledCopy& c, const W* src, W* dst) {
  __shared__ W tile[kTile][kTile + 1];  // one more, so that a column lies in 32 banks
  u32 row_tile, col_tile, rest = divide(blockIdx.x, c.row_tiles, &row_tile);
  rest = divide(rest, c.col_tiles, &col_tile);
#pragma unroll
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    if (axis >= c.outer.rank) break;
    u32 at;
    rest = divide(rest, c.outer.dims[axis], &at);
    src += at * c.outer.src[axis];
    dst += at * c.outer.dst[axis];
  }
  const u32 row0 = row_tile * kTile, col0 = col_tile * kTile;
  for (u32 k = threadIdx.y; k < kTile; k += kTileRows) {
    const u32 row = row0 + k, col = col0 + threadIdx.x;
    if (row < c.rows && col < c.cols) tile[k][threadIdx.x] = src[row * c.src_row + col];
  }
  __syncthreads();
  for (u32 k = threadIdx.y; k < kTile; k += kTileRows) {
    const u32 col = col0 + k, row = row0 + threadIdx.x;
    if (row < c.rows && col < c.cols) dst[col * c.dst_col + row] = tile[threadIdx.x][k];
  }
}

template <class W>
__device__ void pad(const PadAxes& p, const W* src, W* dst, W value) {
  for (u32 i = thread_index(); i < p.n; i += thread_count()) {
    u32 rest = i;
    i64 from = 0;
    bool inside = true;
#pragma unroll
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      if (axis >= p.rank) break;
      u32 at, apart;
      rest = divide(rest, p.out[axis], &at);
      const int past = int(at) - p.before[axis];
      const u32 own = divide(u32(max(past, 0)), p.step[axis], &apart);
      inside = inside && past >= 0 && apart == 0 && own < p.in[axis];
      from += own * p.src[axis];
    }
    dst[i] = inside ? src[from] : value;
  }
}

}  // namespace

#define SG_SHAPE_KERNELS(W, bytes)                                                                              \
  extern "C" __global__ void __launch_bounds__(256) copy_strided_##bytes(const W* src, W* dst, StridedCopy c) { \
    copy_strided(c, src, dst);                                                                                  \
  }
SG_SHAPE_KERNELS(u16, 2)
SG_SHAPE_KERNELS(u32, 4)
SG_SHAPE_KERNELS(u64, 8)
SG_SHAPE_KERNELS(uint4, 16)

#define SG_ELEMENT_KERNELS(W, bytes)                                                                        \
  extern "C" __global__ void __launch_bounds__(256) copy_tiled_##bytes(const W* src, W* dst, TiledCopy c) { \
    copy_tiled(c, src, dst);                                                                                \
  }                                                                                                         \
  extern "C" __global__ void __launch_bounds__(256) pad_##bytes(const W* src, W* dst, W value, PadAxes p) { \
    pad(p, src, dst, value);                                                                                \
  }
SG_ELEMENT_KERNELS(u16, 2)
SG_ELEMENT_KERNELS(u32, 4)
SG_ELEMENT_KERNELS(u64, 8)

// A variable's new value goes to its place, unless a step before found an error (*failed): both are aligned to words.
extern "C" __global__ void __launch_bounds__(256) copy_unless(const u64* failed, const char* src, char* dst, u64 bytes) {
  if (*failed != 0) return;
  const u64 words = bytes / sizeof(u32);
  for (u64 i = thread_index(); i < words; i += thread_count())
    reinterpret_cast<u32*>(dst)[i] = reinterpret_cast<const u32*>(src)[i];
  const u64 tail = words * sizeof(u32) + thread_index();
  if (tail < bytes) dst[tail] = src[tail];
}

}  // namespace sg::cuda
