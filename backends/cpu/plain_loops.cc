#include "backends/cpu/plain_loops.h"

#include <algorithm>

namespace sg {

ConvShape conv_shape(const Attrs& attrs, const Shape& big, const Shape& small, const Shape& weights) {
  const auto& stride = attrs.ints("stride");
  const auto& pad = attrs.ints("pad");
  const auto& dilation = attrs.ints("dilation");
  return {
      big[0],    big[1],    big[2], big[3], small[1], small[2], small[3],    weights[0], weights[1], attrs.i("groups"),
      stride[0], stride[1], pad[0], pad[1], pad[2],   pad[3],   dilation[0], dilation[1]};
}

template <class T>
void plain_conv(const ConvShape& s, const T* x, const T* w, const T* bias, bool relu, T* y) {
  const std::int64_t cg = s.c / s.groups, og = s.o / s.groups;
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < s.n * s.ho; ++row) {
    const std::int64_t n = row / s.ho, ho = row % s.ho;
    for (std::int64_t wo = 0; wo < s.wo; ++wo) {
      T* out = y + (row * s.wo + wo) * s.o;
      for (std::int64_t o = 0; o < s.o; ++o) out[o] = bias ? bias[o] : T{0};
      for (std::int64_t kh = 0; kh < s.kh; ++kh) {
        const std::int64_t h = ho * s.stride_h - s.pad_top + kh * s.dilation_h;
        if (h < 0 || h >= s.h) continue;
        for (std::int64_t kw = 0; kw < s.kw; ++kw) {
          const std::int64_t ww = wo * s.stride_w - s.pad_left + kw * s.dilation_w;
          if (ww < 0 || ww >= s.w) continue;
          const T* in = x + ((n * s.h + h) * s.w + ww) * s.c;
          for (std::int64_t g = 0; g < s.groups; ++g)
            for (std::int64_t c = 0; c < cg; ++c) {
              const T v = in[g * cg + c];
              const T* weight = w + ((kh * s.kw + kw) * cg + c) * s.o + g * og;
              for (std::int64_t o = 0; o < og; ++o) out[g * og + o] += v * weight[o];
            }
        }
      }
      if (relu)
        for (std::int64_t o = 0; o < s.o; ++o) out[o] = out[o] < T{0} ? T{0} : out[o];
    }
  }
}

template <class T>
void plain_conv_transpose(const ConvShape& s, const T* y, const T* w, T* x) {
  const std::int64_t cg = s.c / s.groups, og = s.o / s.groups;
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < s.n * s.h; ++row) {
    const std::int64_t n = row / s.h, h = row % s.h;
    for (std::int64_t ww = 0; ww < s.w; ++ww) {
      T* out = x + (row * s.w + ww) * s.c;
      std::fill_n(out, s.c, T{0});
      for (std::int64_t kh = 0; kh < s.kh; ++kh) {
        const std::int64_t th = h + s.pad_top - kh * s.dilation_h;
        if (th < 0 || th % s.stride_h != 0 || th / s.stride_h >= s.ho) continue;
        for (std::int64_t kw = 0; kw < s.kw; ++kw) {
          const std::int64_t tw = ww + s.pad_left - kw * s.dilation_w;
          if (tw < 0 || tw % s.stride_w != 0 || tw / s.stride_w >= s.wo) continue;
          const T* in = y + ((n * s.ho + th / s.stride_h) * s.wo + tw / s.stride_w) * s.o;
          for (std::int64_t g = 0; g < s.groups; ++g)
            for (std::int64_t c = 0; c < cg; ++c) {
              const T* weight = w + ((kh * s.kw + kw) * cg + c) * s.o + g * og;
              T sum{0};
              for (std::int64_t o = 0; o < og; ++o) sum += in[g * og + o] * weight[o];
              out[g * cg + c] += sum;
            }
        }
      }
    }
  }
}

template <class T>
void plain_conv_weight_grad(const ConvShape& s, const T* x, const T* y, T* w) {
  const std::int64_t cg = s.c / s.groups, og = s.o / s.groups;
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < s.kh * s.kw * cg; ++row) {
    const std::int64_t kh = row / cg / s.kw, kw = row / cg % s.kw, c = row % cg;
    T* out = w + row * s.o;
    std::fill_n(out, s.o, T{0});
    for (std::int64_t n = 0; n < s.n; ++n)
      for (std::int64_t ho = 0; ho < s.ho; ++ho) {
        const std::int64_t h = ho * s.stride_h - s.pad_top + kh * s.dilation_h;
        if (h < 0 || h >= s.h) continue;
        for (std::int64_t wo = 0; wo < s.wo; ++wo) {
          const std::int64_t ww = wo * s.stride_w - s.pad_left + kw * s.dilation_w;
          if (ww < 0 || ww >= s.w) continue;
          const T* in = x + ((n * s.h + h) * s.w + ww) * s.c;
          const T* grad = y + ((n * s.ho + ho) * s.wo + wo) * s.o;
          for (std::int64_t g = 0; g < s.groups; ++g)
            for (std::int64_t o = g * og; o < (g + 1) * og; ++o) out[o] += in[g * cg + c] * grad[o];
        }
      }
  }
}

MatmulShape matmul_shape(const Attrs& attrs, const Shape& a, const Shape& c) {
  const bool ta = attrs.i("transpose_a") != 0, tb = attrs.i("transpose_b") != 0;
  std::int64_t batch = 1;
  for (int i = 0; i < c.rank() - 2; ++i) batch *= c[i];
  return {batch, c[-2], a[ta ? -2 : -1], c[-1], ta, tb};
}

template <class T>
void plain_matmul(const MatmulShape& s, const T* a, const T* b, T* c) {
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < s.batch * s.m; ++row) {
    const std::int64_t i = row / s.m, m = row % s.m;
    const T* left = a + i * s.m * s.k;
    const T* right = b + i * s.k * s.n;
    T* out = c + row * s.n;
    std::fill_n(out, s.n, T{0});
    for (std::int64_t k = 0; k < s.k; ++k) {
      const T v = s.transpose_a ? left[k * s.m + m] : left[m * s.k + k];
      if (s.transpose_b) {
        for (std::int64_t n = 0; n < s.n; ++n) out[n] += v * right[n * s.k + k];
      } else {
        for (std::int64_t n = 0; n < s.n; ++n) out[n] += v * right[k * s.n + n];
      }
    }
  }
}

template void plain_conv(const ConvShape&, const float*, const float*, const float*, bool, float*);
template void plain_conv(const ConvShape&, const double*, const double*, const double*, bool, double*);
template void plain_conv_transpose(const ConvShape&, const float*, const float*, float*);
template void plain_conv_transpose(const ConvShape&, const double*, const double*, double*);
template void plain_conv_weight_grad(const ConvShape&, const float*, const float*, float*);
template void plain_conv_weight_grad(const ConvShape&, const double*, const double*, double*);
template void plain_matmul(const MatmulShape&, const float*, const float*, float*);
template void plain_matmul(const MatmulShape&, const double*, const double*, double*);

}  // namespace sg
