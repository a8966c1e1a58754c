// What the parts of the cuda backend give to cuda_backend.cc: for each op a function that makes its Step. A Step's run()
// only enqueues on device.stream(): it never synchronises, allocates or reads device memory, so that it can be captured.
#pragma once
#include <memory>

#include "backends/cuda/device.h"
#include "core/backend.h"
#include "ops/op_ids.h"

namespace sg::cuda {

using LowerFn = std::unique_ptr<Step> (*)(Device&, LowerCtx&);

// Products and convolutions (products.cc, conv.cc) and the codebook search (nearest.cc).
std::unique_ptr<Step> lower_matmul(Device&, LowerCtx&);
std::unique_ptr<Step> lower_conv2d(Device&, LowerCtx&);              // conv2d and conv2d_bias
std::unique_ptr<Step> lower_conv2d_transpose(Device&, LowerCtx&);
std::unique_ptr<Step> lower_conv2d_weight_grad(Device&, LowerCtx&);
std::unique_ptr<Step> lower_nearest_code(Device&, LowerCtx&);

// Row programs (row_program_step.cc): a fused region, or one elementwise instruction as a region of its own.
bool row_op(const Tape& tape, const Instr& instr);                   // may be part of a row program
bool lowers_as_row_program(const Tape& tape, const Instr& instr);    // lower_row_program takes it as it is
std::unique_ptr<Step> lower_row_program(Device&, LowerCtx&);
bool row_program_in_place(const Tape& tape, const Instr& instr, int i, int output);   // as Backend::in_place

// Everything else (kernels_*.cc): shape, reductions, indices, order, random numbers, pooling. Null where there is none.
LowerFn plain_lowering(const Tape& tape, const Instr& instr);

}  // namespace sg::cuda
