// Matrix products and convolutions as plain loops, for f64 and for operands without elements. Correct and parallel over
// independent outputs, so that the result does not depend on the number of threads; not tuned.
#pragma once
#include <cstdint>

#include "core/backend.h"

namespace sg {

// The three ops of a convolution `big` (N,H,W,C) -> `small` (N,HO,WO,O) with weights (KH,KW,C/groups,O).
struct ConvShape {
  std::int64_t n, h, w, c, ho, wo, o, kh, kw, groups;
  std::int64_t stride_h, stride_w, pad_top, pad_left, pad_bottom, pad_right, dilation_h, dilation_w;
  bool empty() const { return n * h * w * c * ho * wo * o * kh * kw == 0; }
};
ConvShape conv_shape(const Attrs& attrs, const Shape& big, const Shape& small, const Shape& weights);

// y = conv(x, w) (+ bias) (then relu); bias may be null.
template <class T>
void plain_conv(const ConvShape& s, const T* x, const T* w, const T* bias, bool relu, T* y);
template <class T>
void plain_conv_transpose(const ConvShape& s, const T* y, const T* w, T* x);
template <class T>
void plain_conv_weight_grad(const ConvShape& s, const T* x, const T* y, T* w);

// c (B,M,N) = a (B,M,K) b (B,K,N), each side stored transposed in its last two axes where asked.
struct MatmulShape {
  std::int64_t batch, m, k, n;
  bool transpose_a, transpose_b;
  bool empty() const { return batch * m * k * n == 0; }
};
MatmulShape matmul_shape(const Attrs& attrs, const Shape& a, const Shape& c);
template <class T>
void plain_matmul(const MatmulShape& s, const T* a, const T* b, T* c);

}  // namespace sg
