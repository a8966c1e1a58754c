// Kernels with one known mistake each, and their correct twins ("control"): the interpreter must report them.
// Softmax of rows: one block a row. Nearest code: one thread a row, codes through a tile in shared memory.

namespace {

enum class Bug {
  none,
  no_barrier_after_write,
  no_barrier_before_reuse,
  one_column_more,
  early_return,
  no_second_barrier,
  phantom_code,
  beyond_tile,
  copy_without_wait
};

constexpr int kThreads = 128, kWarps = kThreads / 32;

__device__ float warp_reduce(float v, bool largest) {
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(0xffffffffu, v, step);
    v = largest ? fmaxf(v, other) : v + other;
  }
  return v;
}

template <Bug kBug>
__device__ float block_reduce(float v, bool largest) {
  __shared__ float part[kWarps];
  v = warp_reduce(v, largest);
  if (kBug != Bug::no_barrier_before_reuse) __syncthreads();
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
  if (kBug != Bug::no_barrier_after_write) __syncthreads();
  v = part[0];
  for (int i = 1; i < kWarps; ++i) v = largest ? fmaxf(v, part[i]) : v + part[i];
  return v;
}

// y (rows, columns) = softmax of each row of x
template <Bug kBug>
__device__ void softmax(const float* x, float* y, int columns) {
  x += static_cast<long long>(blockIdx.x) * columns;
  y += static_cast<long long>(blockIdx.x) * columns;
  if (kBug == Bug::early_return && static_cast<int>(threadIdx.x) >= columns) return;
  float most = -INFINITY, sum = 0;
  for (int c = threadIdx.x; c < columns; c += kThreads) most = fmaxf(most, x[c]);
  most = block_reduce<kBug>(most, true);
  for (int c = threadIdx.x; c < columns; c += kThreads) sum += expf(x[c] - most);
  sum = block_reduce<kBug>(sum, false);
  const int end = kBug == Bug::one_column_more ? columns + 1 : columns;
  for (int c = threadIdx.x; c < end; c += kThreads) y[c] = expf(x[c] - most) / sum;
}

constexpr int kDim = 8, kTile = 32;

// codes (K, kDim): index[n] = the code nearest to x[n], the lowest of equals
template <Bug kBug>
__device__ void nearest(const float* x, const float* codes, int* index, int rows, int count) {
  __shared__ struct {
    float tile[(kTile + 1) * kDim];  // a row of zeros behind the last
    float after[kDim];
  } shared;
  const int n = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  float row[kDim], best = INFINITY;
  for (int d = 0; d < kDim; ++d) row[d] = n < rows ? x[n * kDim + d] : 0.0f;
  if (threadIdx.x < kDim) shared.tile[kTile * kDim + threadIdx.x] = 0;
  int found = 0;
  for (int first = 0; first < count; first += kTile) {
    for (int i = threadIdx.x; i < kTile * kDim; i += kThreads) {
      const int at = first * kDim + i;
      if (kBug == Bug::copy_without_wait) {
        const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(&shared.tile[i]));
        if (at < count * kDim)
          asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(codes + at) : "memory");
      } else {
        shared.tile[i] = at < count * kDim ? codes[at] : 0.0f;
      }
    }
    if (kBug == Bug::copy_without_wait) asm volatile("cp.async.commit_group;" ::: "memory");
    __syncthreads();
    const int here = count - first < kTile ? count - first : kTile;
    for (int k = 0; k < (kBug == Bug::phantom_code ? here + 1 : here); ++k) {
      float distance = 0;
      for (int d = 0; d < kDim; ++d) {
        const float c = shared.tile[(kBug == Bug::beyond_tile ? k + 2 : k) * kDim + d];
        distance += (row[d] - c) * (row[d] - c);
      }
      if (distance < best) {
        best = distance;
        found = first + k;
      }
    }
    if (kBug != Bug::no_second_barrier) __syncthreads();
  }
  if (n < rows) index[n] = found;
  __syncthreads();
  if (threadIdx.x < kDim) shared.after[threadIdx.x] = best;
  __syncthreads();
  if (n < rows && shared.after[n % kDim] == -1.0f) index[n] = -1;  // keeps `after` where it is
}

}  // namespace

#define SG_SOFTMAX(name, bug) \
  extern "C" __global__ void name(const float* x, float* y, int columns) { softmax<bug>(x, y, columns); }
SG_SOFTMAX(softmax_control, Bug::none)
SG_SOFTMAX(softmax_no_barrier_after_write, Bug::no_barrier_after_write)
SG_SOFTMAX(softmax_no_barrier_before_reuse, Bug::no_barrier_before_reuse)
SG_SOFTMAX(softmax_one_column_more, Bug::one_column_more)
SG_SOFTMAX(softmax_early_return, Bug::early_return)

#define SG_NEAREST(name, bug)                                                                            \
  extern "C" __global__ void name(const float* x, const float* codes, int* index, int rows, int count) { \
    nearest<bug>(x, codes, index, rows, count);                                                          \
  }
SG_NEAREST(nearest_control, Bug::none)
SG_NEAREST(nearest_no_second_barrier, Bug::no_second_barrier)
SG_NEAREST(nearest_phantom_code, Bug::phantom_code)
SG_NEAREST(nearest_beyond_tile, Bug::beyond_tile)
SG_NEAREST(nearest_copy_without_wait, Bug::copy_without_wait)

extern "C" __global__ void total_control(const int* x, int* total, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) atomicAdd(total, x[i]);
}
extern "C" __global__ void total_not_atomic(const int* x, int* total, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) *total += x[i];
}

// y = 2 x, four at once: both must lie on 16 bytes
extern "C" __global__ void twice4(const float4* x, float4* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const float4 v = x[i];
  y[i] = make_float4(2 * v.x, 2 * v.y, 2 * v.z, 2 * v.w);
}
