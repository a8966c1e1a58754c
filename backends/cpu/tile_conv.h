// Convolutions in bf16 by our own products on AMX tiles, an implementation that the lowerings of onednn_ops.h may
// choose.
#pragma once
#include "backends/cpu/lowering.h"
#include "backends/cpu/plain_loops.h"
#include "backends/cpu/winograd.h"

namespace sg::cpu {

// Whether the algorithm can compute the convolution (in bf16) at all, here: one group, a processor with AMX tiles, the
// instruction set "avx512" in use, a compiler that knows them.
bool tiles_possible(const ConvShape& shape, ConvOp op);
// Whether it is expected to be faster than windows and oneDNN's convolution; by the shape of an image and its kernel
// alone. Of a possible one.
bool tiles_faster(const ConvShape& shape, ConvOp op);

// As windows_forward and its siblings (window_conv.h).
StepPtr tiles_forward(LowerCtx& ctx, const ConvShape& shape, const void* bias, bool relu);
StepPtr tiles_transposed(LowerCtx& ctx, const ConvShape& shape);
StepPtr tiles_weight_grad(LowerCtx& ctx, const ConvShape& shape);

}  // namespace sg::cpu
