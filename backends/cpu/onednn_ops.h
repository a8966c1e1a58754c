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

}  // namespace sg
