// Straight-through estimators of a choice among all codes, z_q = (onehot + pi - sg[pi]) C. As d z_q = d pi C + onehot
// dC, this is q with the gradient of q + pi sg[C]: the chosen row comes from the lookup, and no one-hot is formed.
#include "ops/elementwise.h"
#include "ops/estimator_guards.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"

namespace sg {
namespace {

void check_codes(std::string_view estimator, Value z, Value q, Value codes) {
  estimator::check_rows(estimator, z, q);
  if (z.shape().rank() != 2 || codes.shape().rank() != 2 || codes.dtype() != z.dtype() ||
      codes.shape()[1] != z.shape()[1])
    estimator::fail_on(fmt::format("{}: z is {}, the codes are {}; they must be (N,D) and (K,D)", estimator,
                                   to_string(z.type()), to_string(codes.type())),
                       {{"z", z}, {"codes", codes}});
}

Value choose(Value q, Value probabilities, Value codes) {
  return graft(q, q + matmul(probabilities, stop_gradient(codes)));
}

}  // namespace

Value distance_logits(Value z, Value codes) { return 2.0 * matmul(z, codes, false, true) - sum(square(codes), {-1}); }

Value soft_one_hot(Value z, Value q, Value codes, Operand tau, Value noise) {
  Scope scope(*z.tape, "soft_one_hot");
  check_codes("soft_one_hot", z, q, codes);
  Value logits = distance_logits(z, codes);
  if (noise) {
    estimator::check_operand("soft_one_hot", "the noise", noise, logits.shape(), z);
    logits = logits + stop_gradient(noise);
  }
  return choose(q, softmax(logits / tau), codes);
}

Value reinmax(Value z, Value q, Value codes, double tau) {
  Scope scope(*z.tape, "reinmax");
  check_codes("reinmax", z, q, codes);
  const Value logits = distance_logits(z, codes), constant_codes = stop_gradient(codes);
  // softmax(sg[log p - l] + l) has the numerators p exp(l - sg[l]) with p = (onehot + softmax(l/tau)) / 2, the half
  // cancels against the sum's. The onehot's part is that of the chosen code alone, whose logit is 2 z.q - |q|^2.
  const auto moving = [](Value l) { return exp(l - stop_gradient(l)); };
  const Value weights = stop_gradient(softmax(logits / tau)) * moving(logits);
  const Value chosen = moving(2.0 * dot(z, q) - sum(square(q), {-1}, true));
  const Value p1_codes =
      (chosen * stop_gradient(q) + matmul(weights, constant_codes)) / (chosen + sum(weights, {-1}, true));
  return graft(q, q + 2.0 * p1_codes - 0.5 * matmul(softmax(logits), constant_codes));
}

Value index_backpropagation(Value z, Value q, Value codes, double tau) {
  Scope scope(*z.tape, "ibq");
  check_codes("index_backpropagation", z, q, codes);
  return choose(q, softmax(matmul(z, codes, false, true) / tau), codes);
}

}  // namespace sg
