// 2-d convolutions (cross-correlations, as everyone's) in NHWC. Weights are (KH, KW, C / groups, O). The three ops are
// closed under VJP: each one's derivatives are the other two.
#pragma once
#include <array>
#include <cstdint>

#include "core/tape.h"

namespace sg {

struct ConvOptions {
  std::array<std::int64_t, 2> stride{1, 1};             // h, w
  std::array<std::int64_t, 4> pad{0, 0, 0, 0};          // top, left, bottom, right; zeros
  std::array<std::int64_t, 2> dilation{1, 1};
  std::int64_t groups = 1;
  static ConvOptions square(std::int64_t stride, std::int64_t pad) { return {{stride, stride}, {pad, pad, pad, pad}, {1, 1}, 1}; }
};

// x (N,H,W,C), w (KH,KW,C/groups,O) -> (N,HO,WO,O), HO = (H + top + bottom - dilation (KH-1) - 1) / stride + 1.
Value conv2d(Operand x, Operand w, ConvOptions options = {});
// y (N,HO,WO,O), w (KH,KW,C/groups,O) -> (N,H,W,C): the transpose of conv2d as a linear map. size = {H, W}; without it the
// smallest that conv2d maps to (HO, WO): H = (HO-1) stride - top - bottom + dilation (KH-1) + 1.
Value conv2d_transpose(Operand y, Operand w, ConvOptions options = {}, std::array<std::int64_t, 2> size = {0, 0});
// x (N,H,W,C), y (N,HO,WO,O) -> (KH,KW,C/groups,O): d <y, conv2d(x, w)> / d w.
Value conv2d_weight_grad(Operand x, Operand y, std::array<std::int64_t, 2> kernel, ConvOptions options = {});

Value upsample(Operand x, std::int64_t factor_h, std::int64_t factor_w);   // nearest: (N,H,W,C) -> (N, fh H, fw W, C)
// Mean over windows; padding counts as zeros. stride {0,0} means stride = window.
Value avg_pool(Operand x, std::array<std::int64_t, 2> window, std::array<std::int64_t, 2> stride = {0, 0},
               std::array<std::int64_t, 4> pad = {0, 0, 0, 0});

}  // namespace sg
