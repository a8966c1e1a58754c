// Estimators by a term of the loss: they need the loss as a function of z_q, and the engine's own gradients and
// substitution, but nothing that only they would use.
#include "core/autodiff.h"
#include "core/substitute.h"
#include "ops/elementwise.h"
#include "ops/estimator_guards.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

// Forward 0, the gradient of x.
Value without_value(Value x) { return x - stop_gradient(x); }

void check_reshaped(std::string_view name, Value z, Value z_q) {
  if (z_q.dtype() != z.dtype() || z_q.shape().elements() != z.shape().elements())
    estimator::fail_on(fmt::format("{}: z is {}, z_q is {}; z_q must hold the rows of z", name, to_string(z.type()),
                                   to_string(z_q.type())),
                       {{"z", z}, {"z_q", z_q}});
}

}  // namespace

Value hessian_term(Value loss, Value z, Value q, Value z_q) {
  Scope scope(*z.tape, "hessian");
  estimator::check_rows("hessian_term", z, q);
  check_reshaped("hessian_term", z, z_q);
  const Value slope = sum(gradient(loss, z_q) * stop_gradient(reshape(z - q, z_q.shape())));
  const Value curvature = gradient(slope, z_q, IfUnreachable::zero);  // zero where the loss is linear in z_q
  return without_value(sum(stop_gradient(reshape(curvature, z.shape())) * z));
}

Value exact_gradient_term(Value loss, Value z, Value z_q) {
  Scope scope(*z.tape, "exact");
  check_reshaped("exact_gradient_term", z, z_q);
  Tape& tape = *z.tape;
  std::vector<Value> reads;
  for (const Instr& instr : tape.instrs())
    if (tape.variable_of(instr) != nullptr && !instr.outputs.empty() && is_real(tape.type(instr.outputs[0]).dtype))
      reads.push_back(tape.value(instr.outputs[0]));
  std::vector<Substitution> exchange{{z_q, reshape(z, z_q.shape())}};
  for (const Value& read : reads) exchange.push_back({read, stop_gradient(read)});
  return without_value(substitute(std::span<const Value>(&loss, 1), exchange)[0]);
}

}  // namespace sg
