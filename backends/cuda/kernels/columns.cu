// Convolutions as products: the windows of an image as rows of a matrix, and back.
#include "common.cuh"

namespace sg::cuda {
namespace {

// Copies words of which a group's channels are a whole number.
template <class Word>
__device__ void to_columns(const Word* x, Word* columns, const Columns& p) {
  const i64 pixel = i64(p.channels.d) * p.groups.d;
  for (u32 i = thread_index(); i < p.n; i += thread_count()) {
    u32 c, b, a, group, j;
    u32 rest = divide(i, p.channels, &c);
    rest = divide(rest, p.kernel_w, &b);
    rest = divide(rest, p.kernel_h, &a);
    rest = divide(rest, p.groups, &group);
    rest = divide(rest, p.out_w, &j);
    u32 row;
    const u32 image = divide(rest, p.out_h, &row);
    const int h = int(row) * p.stride_h - p.top + int(a) * p.dilation_h;
    const int w = int(j) * p.stride_w - p.left + int(b) * p.dilation_w;
    Word value{};
    if (u32(h) < p.height.d && u32(w) < p.width.d)
      value = x[((i64(image) * p.height.d + h) * p.width.d + w) * pixel + i64(group) * p.channels.d + c];
    columns[i] = value;
  }
}

// The place along an axis that window tap `tap` takes element `at` from: a whole number of strides, or none.
__device__ inline bool window_of(int at, int tap, int before, int dilation, int stride, u32 extent, int* place) {
  const int distance = at + before - tap * dilation;
  *place = distance / stride;
  return distance >= 0 && *place * stride == distance && u32(*place) < extent;
}

// Each element of x gathers what the windows that hold it have for it, in the order of the taps.
template <class Sum, class T, class Store>
__device__ void from_columns(const Sum* columns, T* x, const Columns& p, Store store) {
  const i64 taps = i64(p.kernel_h.d) * p.kernel_w.d;
  for (u32 i = thread_index(); i < p.n; i += thread_count()) {
    u32 c, group, w, h;
    u32 rest = divide(i, p.channels, &c);
    rest = divide(rest, p.groups, &group);
    rest = divide(rest, p.width, &w);
    const u32 image = divide(rest, p.height, &h);
    Sum sum = 0;
    for (int a = 0; a < int(p.kernel_h.d); ++a) {
      int row;
      if (!window_of(int(h), a, p.top, p.dilation_h, p.stride_h, p.out_h.d, &row)) continue;
      for (int b = 0; b < int(p.kernel_w.d); ++b) {
        int j;
        if (!window_of(int(w), b, p.left, p.dilation_w, p.stride_w, p.out_w.d, &j)) continue;
        const i64 window = (i64(image) * p.out_h.d + row) * p.out_w.d + j;
        sum += columns[((window * p.groups.d + group) * taps + (a * int(p.kernel_w.d) + b)) * p.channels.d + c];
      }
    }
    x[i] = store(sum);
  }
}

// Adds a bias per channel (none where it is null) and cuts off below zero, a NaN excepted.
template <class Sum, class T, class Load, class Store>
__device__ void finish(const Sum* sums, const T* bias, T* y, u32 n, const Divisor& channels, int relu, Load load,
                       Store store) {
  for (u32 i = thread_index(); i < n; i += thread_count()) {
    u32 c;
    divide(i, channels, &c);
    Sum v = sums[i];
    if (bias != nullptr) v += load(bias[c]);
    y[i] = store(relu != 0 && v < 0 ? Sum(0) : v);
  }
}

struct Same {
  template <class T>
  __device__ T operator()(T x) const {
    return x;
  }
};
struct ToBf16 {
  __device__ u16 operator()(float x) const { return to_bf16(x); }
};
struct FromBf16 {
  __device__ float operator()(u16 x) const { return from_bf16(x); }
};

}  // namespace

extern "C" {

#define SG_TO_COLUMNS(bits, Word)                                                    \
  __global__ void to_columns_##bits(const void* x, void* columns, const Columns p) { \
    to_columns(static_cast<const Word*>(x), static_cast<Word*>(columns), p);         \
  }
SG_TO_COLUMNS(16, u16)
SG_TO_COLUMNS(32, u32)
SG_TO_COLUMNS(64, u64)
SG_TO_COLUMNS(128, uint4)

#define SG_SUMS(name, Sum, T, load, store)                                                                            \
  __global__ void from_columns_##name(const void* columns, void* x, const Columns p) {                                \
    from_columns(static_cast<const Sum*>(columns), static_cast<T*>(x), p, store{});                                   \
  }                                                                                                                   \
  __global__ void finish_##name(const void* sums, const void* bias, void* y, u32 n, const Divisor channels,           \
                                int relu) {                                                                           \
    finish(static_cast<const Sum*>(sums), static_cast<const T*>(bias), static_cast<T*>(y), n, channels, relu, load{}, \
           store{});                                                                                                  \
  }
SG_SUMS(f32, float, float, Same, Same)
SG_SUMS(f64, double, double, Same, Same)
SG_SUMS(bf16, float, u16, FromBf16, ToBf16)

}  // extern "C"
}  // namespace sg::cuda
