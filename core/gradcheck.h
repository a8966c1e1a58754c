// Checks gradients against differences of the *surrogate*: the function with the outputs of barriers (stop_gradient) and
// of piecewise ops (round, argmin, compare) frozen at the point of evaluation. In float64 on the reference backend.
// Method: one random direction v and cotangent u per input set: <u, (f(x+hv) - f(x-hv)) / 2h> against <J^T u, v>, and the
// same on the gradient for order 2 (as jax's check_grads).
#pragma once
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/backend.h"

namespace sg {

using GraphFn = std::function<Value(Tape&, std::span<const Value> inputs)>;

struct GradcheckOptions {
  int order = 2;            // 1 or 2
  bool freeze = true;       // off: differences the true function (to show that a surrogate differs from it)
  double step = 1e-5;       // h
  double tolerance = 1e-6;  // relative to 1 + |expected|
  std::uint32_t seed = 1;
  int directions = 2;
  std::vector<bool> wrt{};   // per input; empty: all real inputs
};
struct GradcheckResult {
  bool ok = true;
  int order = 0;            // of the first failure
  double analytic = 0, numeric = 0, error = 0;  // of the worst direction
  std::string message;      // empty where ok
};
// inputs are cast to f64 (integers stay). The output may have any shape.
GradcheckResult gradcheck(const GraphFn& f, std::span<const Tensor> inputs, Backend& reference, GradcheckOptions options = {});

// The surrogate Jacobian of output in input `wrt`, in float64: shape [output elements, input elements], row-major.
Tensor jacobian(const GraphFn& f, std::span<const Tensor> inputs, std::size_t wrt, Backend& reference);

}  // namespace sg
