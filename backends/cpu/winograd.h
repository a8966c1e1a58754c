// Convolutions by Winograd's algorithm, an implementation that the lowerings of onednn_ops.h may choose.
#pragma once
#include "backends/cpu/lowering.h"
#include "backends/cpu/plain_loops.h"

namespace sg::cpu {

// The step of a convolution's instruction (f32, inputs and output as in the tape), or null where direct convolution is
// to do it: the shape does not fit, the instruction set in use has no kernels for it, it is not expected to be faster,
// or set_winograd() has switched it off. The choice depends on the shape alone.
// forward: bias may be null. transposed: conv2d_transpose. weight_grad: conv2d_weight_grad.
StepPtr winograd_forward(LowerCtx& ctx, const ConvShape& shape, const float* bias, bool relu);
StepPtr winograd_transposed(LowerCtx& ctx, const ConvShape& shape);
StepPtr winograd_weight_grad(LowerCtx& ctx, const ConvShape& shape);

}  // namespace sg::cpu
