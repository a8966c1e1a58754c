// Average pooling of NHWC images. (Nearest upsampling is a strided copy.)
#include "common.cuh"

namespace sg::cuda {
namespace {

template <class T>
struct Stored {
  using Sum = T;
  static __device__ T load(T x) { return x; }
  static __device__ T store(T x) { return x; }
};
template <>
struct Stored<u16> {
  using Sum = float;
  static __device__ float load(u16 x) { return from_bf16(x); }
  static __device__ u16 store(float x) { return to_bf16(x); }
};

template <class T>
__device__ void avg_pool(const T* x, T* y, const Pooling& p) {
  using Sum = typename Stored<T>::Sum;
  for (u32 o = thread_index(); o < p.n; o += thread_count()) {
    u32 channel, column, row;
    u32 image = divide(o, p.channels, &channel);
    image = divide(image, p.width, &column);
    image = divide(image, p.height, &row);
    const int i0 = int(row) * p.stride_h - p.top, j0 = int(column) * p.stride_w - p.left;
    Sum total = 0;
    for (int i = max(0, i0); i < min(p.in_height, i0 + p.window_h); ++i)
      for (int j = max(0, j0); j < min(p.in_width, j0 + p.window_w); ++j)
        total += Stored<T>::load(x[((i64(image) * p.in_height + i) * p.in_width + j) * p.channels.d + channel]);
    y[o] = Stored<T>::store(total * Sum(p.scale));
  }
}

}  // namespace

#define SG_POOL(T, name) \
  extern "C" __global__ void __launch_bounds__(256) avg_pool_##name(const T* x, T* y, Pooling p) { avg_pool(x, y, p); }
SG_POOL(float, f32)
SG_POOL(double, f64)
SG_POOL(u16, bf16)

}  // namespace sg::cuda
