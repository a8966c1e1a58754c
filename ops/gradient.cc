// stop_gradient: the identity with the barrier gradient. The engine cuts gradients at the barrier kind and knows
// nothing else about it.
#include "ops/gradient.h"

#include "ops/op_ids.h"

namespace sg {

namespace defs {

OpDef stop_gradient() {
  return {.name = "stop_gradient",
          .arity = 1,
          .grad = GradKind::barrier,
          .elementwise = true,
          .role = Role::stop_gradient,
          .infer = [](std::span<const TensorType> in, const Attrs&) { return std::vector<TensorType>{in[0]}; },
          .scalar = [](const double* x, const Attrs&) { return *x; }};
}

}  // namespace defs

Value stop_gradient(Operand x) {
  const Value v = x.value();
  return v.tape->emit1(OpId::stop_gradient, {v}, {}, x.loc());
}

}  // namespace sg
