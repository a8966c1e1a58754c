// Lowerings to the backend's own plain kernels, one per op or family; the table is in kernels.cc.
#pragma once
#include "backends/cuda/launches.h"

namespace sg::cuda {

StepPtr lower_transpose(Device&, LowerCtx&);
StepPtr lower_broadcast(Device&, LowerCtx&);
StepPtr lower_slice(Device&, LowerCtx&);
StepPtr lower_concat(Device&, LowerCtx&);
StepPtr lower_pad(Device&, LowerCtx&);
StepPtr lower_upsample(Device&, LowerCtx&);
StepPtr lower_avg_pool(Device&, LowerCtx&);

StepPtr lower_reduction(Device&, LowerCtx&);      // sum, reduce_max, reduce_min
StepPtr lower_arg_reduction(Device&, LowerCtx&);  // argmax, argmin
StepPtr lower_quantile(Device&, LowerCtx&);

StepPtr lower_gather_rows(Device&, LowerCtx&);
StepPtr lower_scatter_add_rows(Device&, LowerCtx&);
StepPtr lower_one_hot(Device&, LowerCtx&);
StepPtr lower_histogram(Device&, LowerCtx&);

StepPtr lower_softmax(Device&, LowerCtx&);  // and log_softmax
StepPtr lower_cross_entropy(Device&, LowerCtx&);
StepPtr lower_layer_norm(Device&, LowerCtx&);
StepPtr lower_rms_norm(Device&, LowerCtx&);
StepPtr lower_group_norm(Device&, LowerCtx&);

StepPtr lower_random(Device&, LowerCtx&);  // uniform, normal

}  // namespace sg::cuda
