// Batch normalisation (Ioffe and Szegedy 1502.03167): statistics of the batch while training, running ones afterwards.
#pragma once
#include "models/module.h"
#include "models/step_updates.h"
#include "ops/elementwise.h"

namespace sg {

// How one pass uses a network that has more than one player in its step.
struct Pass {
  // Where the pass leaves its new running statistics. Passes of one step that share it update them one after the other,
  // in record order. Null: evaluation, the running statistics normalise and nothing changes.
  StepUpdates* updates = nullptr;
  // Reads the network's parameters through stop_gradient: the pass hands gradients on to its input and trains nothing
  // of the network itself.
  bool stop_parameters = false;

  Value read(Tape& tape, Variable& parameter, Loc loc) const;
};

// (N,...,C) -> the same shape: gamma (x - m) / sqrt(v + eps) + beta, with a channel's mean m and variance v over all
// other axes. In training v is that of the batch, divided by n, and
//   running <- (1 - momentum) running + momentum (m, v n / (n - 1))
// as PyTorch's: the running variance is the unbiased one. The statistics of the batch are differentiated through, the
// running ones are cut off. State: "running_mean" zeros, "running_var" ones.
class BatchNorm : public Module {
 public:
  // gamma: the initial scale (C), ones as a rule; beta starts at 0.
  BatchNorm(Module& parent, std::string_view name, Tensor gamma, double eps = 1e-5, double momentum = 0.1);
  BatchNorm(Module& parent, std::string_view name, std::int64_t channels)
      : BatchNorm(parent, name, Tensor::full({DType::f32, {channels}}, 1)) {}
  // Error{shape}: another number of channels, or training on a single number per channel, which has no variance.
  Value operator()(Operand x, const Pass& pass = {}) const;

 private:
  double eps_, momentum_;
  Variable *gamma_, *beta_, *mean_, *variance_;
};

}  // namespace sg
