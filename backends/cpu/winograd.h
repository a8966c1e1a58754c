// Convolutions by Winograd's algorithm, an implementation that the lowerings of onednn_ops.h may choose.
#pragma once
#include "backends/cpu/kernels.h"
#include "backends/cpu/lowering.h"
#include "backends/cpu/plain_loops.h"

namespace sg::cpu {

// The step of a convolution's instruction (f32, inputs and output as in the tape), or null where direct convolution is
// to do it: the shape does not fit, the instruction set in use has no kernels for it, or `use` says so (where_faster: a
// formula of the shape alone).
// forward: bias and skip may be null; the result may lie where the skip does. transposed: conv2d_transpose. weight_grad: conv2d_weight_grad.
StepPtr winograd_forward(LowerCtx& ctx, const ConvShape& shape, WinogradUse use, const float* bias, const float* skip,
                         bool relu);
StepPtr winograd_transposed(LowerCtx& ctx, const ConvShape& shape, WinogradUse use);
StepPtr winograd_weight_grad(LowerCtx& ctx, const ConvShape& shape, WinogradUse use);

// Whether these give a step: with WinogradUse::always, whether the algorithm can compute them at all, here.
enum class ConvOp : std::uint8_t { forward, transposed, weight_grad };
bool winograd_takes(const ConvShape& shape, ConvOp op, WinogradUse use);

}  // namespace sg::cpu
