// What oneDNN does for the cpu backend: one lowering function per op, f32 and bf16 by oneDNN primitives, f64 (which oneDNN
// lacks) and empty operands by the plain loops.
#pragma once
#include <memory>

#include "backends/rewrites.h"
#include "core/backend.h"

namespace sg {

std::unique_ptr<Step> lower_matmul(LowerCtx& ctx);  // matmul and matmul_bias
std::unique_ptr<Step> lower_conv2d(LowerCtx& ctx);  // conv2d and conv2d_bias
std::unique_ptr<Step> lower_conv2d_transpose(LowerCtx& ctx);
std::unique_ptr<Step> lower_conv2d_weight_grad(LowerCtx& ctx);

// What the lowerings can do at a product's end, and gains by it (docs/decisions/026-skips-and-biases.md): where a conv2d
// or conv2d_bias adds a skip, whether a matmul or matmul_bias adds a bias and a skip.
TakesSkip conv_takes_skip(const Tape& tape, const Instr& conv);
bool matmul_takes_bias(const Tape& tape, const Instr& product);

}  // namespace sg
