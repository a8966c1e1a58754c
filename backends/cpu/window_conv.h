// Convolutions in bf16 as products over windows, an implementation that the lowerings of onednn_ops.h may choose.
#pragma once
#include "backends/cpu/lowering.h"
#include "backends/cpu/plain_loops.h"
#include "backends/cpu/winograd.h"

namespace sg::cpu {

// Whether the algorithm can compute the convolution (in bf16) at all, here: one group, a processor with AMX tiles,
// which oneDNN's products use to the full and its convolutions do not.
bool windows_possible(const ConvShape& shape, ConvOp op);
// Whether it is expected to be faster than oneDNN's convolution; by the shape alone. Of a possible one.
bool windows_faster(const ConvShape& shape, ConvOp op);

// The step of a possible convolution's instruction, inputs in bf16.
// forward: bias may be null. transposed: conv2d_transpose. weight_grad: conv2d_weight_grad, sums in f32, result in f32
// or bf16.
StepPtr windows_forward(LowerCtx& ctx, const ConvShape& shape, const void* bias, bool relu);
StepPtr windows_transposed(LowerCtx& ctx, const ConvShape& shape);
StepPtr windows_weight_grad(LowerCtx& ctx, const ConvShape& shape);

}  // namespace sg::cpu
