// What oneDNN does for the cpu backend: one lowering function per op, f32 and bf16 by oneDNN primitives, f64 (which oneDNN
// lacks) and empty operands by the plain loops.
#pragma once
#include <memory>

#include "core/backend.h"

namespace sg {

std::unique_ptr<Step> lower_matmul(LowerCtx& ctx);
std::unique_ptr<Step> lower_conv2d(LowerCtx& ctx);  // conv2d and conv2d_bias
std::unique_ptr<Step> lower_conv2d_transpose(LowerCtx& ctx);
std::unique_ptr<Step> lower_conv2d_weight_grad(LowerCtx& ctx);

// Softmax and its like as compositions, where generated row programs take them. A null tape where nothing changed.
Rewritten compose_rows(const Tape& tape);

// conv2d, add of a bias (O), relu -> conv2d_bias, where nobody else uses what lies between.
Rewritten fuse_conv_bias(const Tape& tape, std::span<const std::int32_t> keep);

// A product in bf16 that belongs to a gradient and that is only cast to f32 -> the product with sums in f32: a weight's
// gradient is then rounded once, to f32. Values of the forward pass stay as they are: what training computes of them
// must not depend on what else its program does with them. A null tape where nothing changed.
Rewritten keep_gradient_sums(const Tape& tape, std::span<const std::int32_t> keep);

}  // namespace sg
