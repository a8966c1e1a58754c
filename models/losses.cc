#include "models/losses.h"

#include "ops/elementwise.h"
#include "ops/entropy.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"

namespace sg {

Value mean_squared_error(Operand x, Operand y, Value mask) {
  if (x.value().type() != y.value().type())
    fail(ErrorKind::shape, "mean_squared_error: {} against {}", to_string(x.value().type()),
         to_string(y.value().type()));
  const Loc loc = x.loc();
  return mean_of_rows(Operand(square(Operand(x - y, loc)), loc), mask);
}

Value codebook_loss(Operand z, Operand q, Value mask) {
  return mean_squared_error(q, Operand(stop_gradient(z), z.loc()), mask);
}

Value commitment_loss(Operand z, Operand q, Value mask) {
  return mean_squared_error(z, Operand(stop_gradient(q), q.loc()), mask);
}

Value orthogonal_loss(Operand codes) {
  const Loc loc = codes.loc();
  const auto at = [loc](Value v) { return Operand(v, loc); };
  const double k = static_cast<double>(codes.value().shape()[0]);
  const Value unit = unit_rows(codes);
  const Value gram = matmul(at(unit), at(unit), true);
  return at(at(sum(at(square(at(gram))))) / Operand(k * k, loc)) - Operand(1.0 / k, loc);
}

EntropyLosses entropy_losses(Operand z, Operand codes, double temperature, Value mask) {
  const Loc loc = z.loc();
  const Value logits = Operand(distance_logits(z.value(), codes.value()), loc) / Operand(temperature, loc);
  const Entropies h = entropies(Operand(logits, loc), mask);
  return {Operand(h.of_each, loc) - Operand(h.of_mean, loc), -Operand(h.of_mean, loc)};
}

VqLosses vq_losses(Operand z, Operand q, double beta, double gamma) {
  VqLosses losses;
  losses.codebook = codebook_loss(z, q);
  losses.commitment = commitment_loss(z, q);
  const auto weighted = [&z](double weight, Value term) {
    return Operand(Operand(weight, z.loc()) * Operand(term, z.loc()), z.loc());
  };
  losses.total = weighted(beta, losses.codebook) + weighted(gamma, losses.commitment);
  return losses;
}

}  // namespace sg
