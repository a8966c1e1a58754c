#include "ops/entropy.h"

#include "ops/elementwise.h"
#include "ops/masks.h"
#include "ops/norm.h"
#include "ops/reduce.h"

namespace sg {

Entropies entropies(Operand logits, Value mask, double eps) {
  const auto at = [loc = logits.loc()](Value v) { return Operand(v, loc); };
  const Value log_p = log_softmax(logits), p = exp(at(log_p));
  const Value each = sum(at(at(p) * at(log_p)), {-1});
  const Value average = mean_row(at(p), mask);
  const Value log_average = log(at(at(average) + Operand(eps, logits.loc())));
  return {-at(mean_of_rows(at(each), mask)), -at(sum(at(at(average) * at(log_average))))};
}

}  // namespace sg
