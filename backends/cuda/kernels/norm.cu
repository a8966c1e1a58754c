// Softmax, cross-entropy and the norms as kernels of their own: what runs where regions are not fused. One block per
// row (group_norm: per sample and group); sums are made in double.
#include "common.cuh"

namespace sg::cuda {
namespace {

template <class T>
struct Row {
  T top;
  double total;  // sum of exp(x - top)
};

template <class T>
__device__ Row<T> log_sum_exp(const T* x, u32 c) {
  __shared__ T tops[kMaxWarps];
  __shared__ double totals[kMaxWarps];
  T top = lowest<T>();
  for (u32 j = threadIdx.x; j < c; j += blockDim.x) top = Max::join(top, x[j]);
  top = block_reduce<Max>(top, tops);
  double total = 0;
  for (u32 j = threadIdx.x; j < c; j += blockDim.x) total += double(exp(x[j] - top));
  return {top, block_reduce<Sum>(total, totals)};
}

// Mean and 1 / sqrt(variance + eps) of n numbers at(j), the variance divided by n.
template <class At>
__device__ double2 moments(u32 n, double eps, At at) {
  __shared__ double shared[kMaxWarps];
  double sum = 0;
  for (u32 j = threadIdx.x; j < n; j += blockDim.x) sum += double(at(j));
  const double mean = block_reduce<Sum>(sum, shared) / double(n);
  double squares = 0;
  for (u32 j = threadIdx.x; j < n; j += blockDim.x) {
    const double apart = double(at(j)) - mean;
    squares += apart * apart;
  }
  return {mean, 1.0 / sqrt(block_reduce<Sum>(squares, shared) / double(n) + eps)};
}

template <class T>
__device__ void softmax(const T* x, T* y, u32 c) {
  x += i64(blockIdx.x) * c, y += i64(blockIdx.x) * c;
  const Row<T> row = log_sum_exp(x, c);
  for (u32 j = threadIdx.x; j < c; j += blockDim.x) y[j] = T(double(exp(x[j] - row.top)) / row.total);
}

template <class T>
__device__ void log_softmax(const T* x, T* y, u32 c) {
  x += i64(blockIdx.x) * c, y += i64(blockIdx.x) * c;
  const Row<T> row = log_sum_exp(x, c);
  const T log_total = T(log(row.total));
  for (u32 j = threadIdx.x; j < c; j += blockDim.x) y[j] = (x[j] - row.top) - log_total;
}

template <class T>
__device__ void cross_entropy(const T* logits, const int* labels, T* y, u32 c, const IndexGuard& guard) {
  const T* x = logits + i64(blockIdx.x) * c;
  const Row<T> row = log_sum_exp(x, c);
  if (threadIdx.x != 0) return;
  const int label = labels[blockIdx.x];
  const bool ok = in_range(guard, label, blockIdx.x);
  y[blockIdx.x] = ok ? T(log(row.total)) - (x[label] - row.top) : T(0);
}

template <class T>
__device__ void layer_norm(const T* x, const T* gamma, const T* beta, T* y, u32 c, double eps) {
  x += i64(blockIdx.x) * c, y += i64(blockIdx.x) * c;
  const double2 m = moments(c, eps, [&](u32 j) { return x[j]; });
  for (u32 j = threadIdx.x; j < c; j += blockDim.x)
    y[j] = T((double(x[j]) - m.x) * m.y * double(gamma[j]) + double(beta[j]));
}

template <class T>
__device__ void rms_norm(const T* x, const T* gamma, T* y, u32 c, double eps) {
  __shared__ double shared[kMaxWarps];
  x += i64(blockIdx.x) * c, y += i64(blockIdx.x) * c;
  double squares = 0;
  for (u32 j = threadIdx.x; j < c; j += blockDim.x) squares += double(x[j]) * double(x[j]);
  const double scale = 1.0 / sqrt(block_reduce<Sum>(squares, shared) / double(c) + eps);
  for (u32 j = threadIdx.x; j < c; j += blockDim.x) y[j] = T(double(x[j]) * scale * double(gamma[j]));
}

// Blocks (group, sample). n = places * width.d elements of a group, at rows of c.
template <class T>
__device__ void group_norm(const T* x, const T* gamma, const T* beta, T* y, u32 n, u32 c, const Divisor& width,
                           double eps) {
  const u32 first = blockIdx.x * width.d;
  const i64 sample = i64(blockIdx.y) * (n / width.d) * c;
  const auto place = [&](u32 j, u32* channel) {
    u32 at;
    const u32 row = divide(j, width, &at);
    *channel = first + at;
    return sample + i64(row) * c + first + at;
  };
  u32 channel;
  const double2 m = moments(n, eps, [&](u32 j) { return x[place(j, &channel)]; });
  for (u32 j = threadIdx.x; j < n; j += blockDim.x) {
    const i64 at = place(j, &channel);
    y[at] = T((double(x[at]) - m.x) * m.y * double(gamma[channel]) + double(beta[channel]));
  }
}

}  // namespace

#define SG_NORM_KERNELS(T, name)                                                                                    \
  extern "C" __global__ void __launch_bounds__(256) softmax_##name(const T* x, T* y, u32 c) { softmax(x, y, c); }   \
  extern "C" __global__ void __launch_bounds__(256) log_softmax_##name(const T* x, T* y, u32 c) {                   \
    log_softmax(x, y, c);                                                                                           \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                                 \
      cross_entropy_##name(const T* logits, const int* labels, T* y, u32 c, IndexGuard guard) {                     \
    cross_entropy(logits, labels, y, c, guard);                                                                     \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                                 \
      layer_norm_##name(const T* x, const T* gamma, const T* beta, T* y, u32 c, double eps) {                       \
    layer_norm(x, gamma, beta, y, c, eps);                                                                          \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                                 \
      rms_norm_##name(const T* x, const T* gamma, T* y, u32 c, double eps) {                                        \
    rms_norm(x, gamma, y, c, eps);                                                                                  \
  }                                                                                                                 \
  extern "C" __global__ void __launch_bounds__(256)                                                                 \
      group_norm_##name(const T* x, const T* gamma, const T* beta, T* y, u32 n, u32 c, Divisor width, double eps) { \
    group_norm(x, gamma, beta, y, n, c, width, eps);                                                                \
  }
SG_NORM_KERNELS(float, f32)
SG_NORM_KERNELS(double, f64)

}  // namespace sg::cuda
