#include "models/dropout.h"

#include "ops/elementwise.h"
#include "ops/random.h"

namespace sg {

Value dropout_shared(Operand x, double rate, Value random, std::vector<std::int64_t> shared_axes) {
  if (!(rate >= 0 && rate < 1)) fail(ErrorKind::attribute, "dropout: a rate of {}, expected 0 <= rate < 1", rate);
  const Value v = x.value();
  if (rate == 0 || !random) return v;
  const Loc loc = x.loc();
  const auto at = [loc](Value y) { return Operand(y, loc); };
  std::vector<std::int64_t> drawn = v.shape().vec();
  const auto rank = static_cast<std::int64_t>(drawn.size());
  for (const std::int64_t axis : shared_axes) {
    if (axis < -rank || axis >= rank)
      fail(ErrorKind::attribute, "dropout: axis {} of an input {}", axis, to_string(v.type()));
    drawn[static_cast<std::size_t>(axis < 0 ? axis + rank : axis)] = 1;
  }
  const Value kept = greater_equal(at(uniform(at(random), Shape(drawn), v.dtype())), Operand(rate, loc));
  return x * at(Operand(1 / (1 - rate), loc) * at(cast(at(kept), v.dtype())));
}

Value dropout(Operand x, double rate, Value random) { return dropout_shared(x, rate, random, {}); }

}  // namespace sg
