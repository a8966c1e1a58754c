#include "models/losses.h"

#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"

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
