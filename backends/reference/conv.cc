// Convolutions and pooling, NHWC. The three convolutions are one trilinear form, sum over taps of x[.] w[.] y[.],
// solved for y, for x or for w; they share the walk over its taps.
#include <algorithm>

#include "backends/reference/kernels.h"

namespace sg::reference {
namespace {

// x (N,H,W,C), w (KH,KW,C/groups,O), y (N,HO,WO,O).
struct Geometry {
  std::int64_t n, h, w, c, kh, kw, ho, wo, o, groups;
  std::int64_t stride_h, stride_w, top, left, dilation_h, dilation_w;
};

Geometry geometry(const Attrs& attrs, const Shape& x, const Shape& w, const Shape& y) {
  const auto &stride = attrs.ints("stride"), &pad = attrs.ints("pad"), &dilation = attrs.ints("dilation");
  return {x[0],      x[1],      x[2],   x[3],   w[0],        w[1],       y[1], y[2], y[3], attrs.i("groups"),
          stride[0], stride[1], pad[0], pad[1], dilation[0], dilation[1]};
}

// Calls f(place in x, place in w, place in y) for every product of a weight with an element of x that is not padding.
template <class F>
void for_each_tap(const Geometry& g, F f) {
  const std::int64_t group_c = g.c / g.groups, group_o = g.o / g.groups;
  for (std::int64_t n = 0; n < g.n; ++n) {
    for (std::int64_t ho = 0; ho < g.ho; ++ho) {
      for (std::int64_t wo = 0; wo < g.wo; ++wo) {
        for (std::int64_t kh = 0; kh < g.kh; ++kh) {
          for (std::int64_t kw = 0; kw < g.kw; ++kw) {
            const std::int64_t h = ho * g.stride_h - g.top + kh * g.dilation_h;
            const std::int64_t w = wo * g.stride_w - g.left + kw * g.dilation_w;
            if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
            const std::int64_t x_row = ((n * g.h + h) * g.w + w) * g.c, w_row = (kh * g.kw + kw) * group_c;
            const std::int64_t y_row = ((n * g.ho + ho) * g.wo + wo) * g.o;
            for (std::int64_t o = 0; o < g.o; ++o) {
              const std::int64_t group = o / group_o;
              for (std::int64_t c = 0; c < group_c; ++c) {
                f(x_row + group * group_c + c, (w_row + c) * g.o + o, y_row + o);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace

StepPtr conv2d(LowerCtx& ctx) {
  const Geometry g = geometry(ctx.attrs(), ctx.in_type(0).shape, ctx.in_type(1).shape, ctx.out_type().shape);
  return make_step([g, elements = ctx.out_type().shape.elements(), x = ctx.in<double>(0), w = ctx.in<double>(1),
                    y = ctx.out<double>()] {
    std::fill_n(y, elements, 0.0);
    for_each_tap(g, [&](std::int64_t xi, std::int64_t wi, std::int64_t yi) { y[yi] += x[xi] * w[wi]; });
  });
}

StepPtr conv2d_transpose(LowerCtx& ctx) {
  const Geometry g = geometry(ctx.attrs(), ctx.out_type().shape, ctx.in_type(1).shape, ctx.in_type(0).shape);
  return make_step([g, elements = ctx.out_type().shape.elements(), y = ctx.in<double>(0), w = ctx.in<double>(1),
                    x = ctx.out<double>()] {
    std::fill_n(x, elements, 0.0);
    for_each_tap(g, [&](std::int64_t xi, std::int64_t wi, std::int64_t yi) { x[xi] += y[yi] * w[wi]; });
  });
}

StepPtr conv2d_weight_grad(LowerCtx& ctx) {
  const Geometry g = geometry(ctx.attrs(), ctx.in_type(0).shape, ctx.out_type().shape, ctx.in_type(1).shape);
  return make_step([g, elements = ctx.out_type().shape.elements(), x = ctx.in<double>(0), y = ctx.in<double>(1),
                    w = ctx.out<double>()] {
    std::fill_n(w, elements, 0.0);
    for_each_tap(g, [&](std::int64_t xi, std::int64_t wi, std::int64_t yi) { w[wi] += x[xi] * y[yi]; });
  });
}

StepPtr conv2d_bias(LowerCtx& ctx) {
  const Geometry g = geometry(ctx.attrs(), ctx.in_type(0).shape, ctx.in_type(1).shape, ctx.out_type().shape);
  return make_step([g, elements = ctx.out_type().shape.elements(), relu = ctx.attrs().i("relu") != 0,
                    x = ctx.in<double>(0), w = ctx.in<double>(1), b = ctx.in<double>(2),
                    skip = ctx.instr().inputs.size() > 3 ? ctx.in<double>(3) : nullptr, y = ctx.out<double>()] {
    for (std::int64_t i = 0; i < elements; ++i) y[i] = b[i % g.o] + (skip != nullptr ? skip[i] : 0.0);
    for_each_tap(g, [&](std::int64_t xi, std::int64_t wi, std::int64_t yi) { y[yi] += x[xi] * w[wi]; });
    for (std::int64_t i = 0; relu && i < elements; ++i) y[i] = y[i] < 0 ? 0 : y[i];
  });
}

// x (N,H,W,C) -> (N, fh H, fw W, C): every pixel becomes a block of fh x fw pixels.
StepPtr upsample(LowerCtx& ctx) {
  const auto& factor = ctx.attrs().ints("factor");
  const Shape &x = ctx.in_type(0).shape, &y = ctx.out_type().shape;
  return make_step([n = y[0], ho = y[1], wo = y[2], c = y[3], h = x[1], w = x[2], fh = factor[0], fw = factor[1],
                    src = ctx.in<double>(0), dst = ctx.out<double>()] {
    for (std::int64_t s = 0; s < n; ++s) {
      for (std::int64_t i = 0; i < ho; ++i) {
        for (std::int64_t j = 0; j < wo; ++j) {
          std::copy_n(src + ((s * h + i / fh) * w + j / fw) * c, c, dst + ((s * ho + i) * wo + j) * c);
        }
      }
    }
  });
}

// x (N,H,W,C) -> (N,HO,WO,C): the sum over a window of what is not padding, divided by the whole window's size.
StepPtr avg_pool(LowerCtx& ctx) {
  const auto &window = ctx.attrs().ints("window"), &stride = ctx.attrs().ints("stride"), &pad = ctx.attrs().ints("pad");
  const Shape x = ctx.in_type(0).shape, y = ctx.out_type().shape;
  return make_step([x, y, kh = window[0], kw = window[1], sh = stride[0], sw = stride[1], top = pad[0], left = pad[1],
                    src = ctx.in<double>(0), dst = ctx.out<double>()] {
    const std::int64_t channels = x[3];
    for (std::int64_t n = 0; n < y[0]; ++n) {
      for (std::int64_t ho = 0; ho < y[1]; ++ho) {
        for (std::int64_t wo = 0; wo < y[2]; ++wo) {
          const std::int64_t h0 = ho * sh - top, w0 = wo * sw - left;
          for (std::int64_t c = 0; c < channels; ++c) {
            double total = 0;
            for (std::int64_t h = std::max<std::int64_t>(h0, 0); h < std::min(h0 + kh, x[1]); ++h) {
              for (std::int64_t w = std::max<std::int64_t>(w0, 0); w < std::min(w0 + kw, x[2]); ++w) {
                total += src[((n * x[1] + h) * x[2] + w) * channels + c];
              }
            }
            dst[((n * y[1] + ho) * y[2] + wo) * channels + c] = total / static_cast<double>(kh * kw);
          }
        }
      }
    }
  });
}

}  // namespace sg::reference
