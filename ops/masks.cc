#include "ops/masks.h"

#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

// x[0], x[0] + x[1], ...: by sums of spans of 1, 2, 4, ... elements.
Value running_sum(Value x, Loc loc) {
  const std::int64_t n = x.shape()[0];
  for (std::int64_t span = 1; span < n; span *= 2) {
    const Value before = pad(Operand(slice_axis(Operand(x, loc), 0, 0, n - span), loc), {span}, {0});
    x = Operand(x, loc) + Operand(before, loc);
  }
  return x;
}

void check_mask(Operand x, Value mask) {
  if (mask.shape().rank() != 1 || x.value().shape().rank() < 1 || mask.shape()[0] != x.value().shape()[0])
    throw Error(ErrorKind::shape,
                fmt::format("mask {} of rows {}: one number per row is needed", to_string(mask.type()),
                            to_string(x.value().type())),
                x.loc());
}

}  // namespace

Value zero_padding(Operand x, Value mask) {
  if (!mask) return x.value();
  check_mask(x, mask);
  const Loc loc = x.loc();
  std::vector<std::int64_t> dims(static_cast<std::size_t>(x.value().shape().rank()), 1);
  dims[0] = mask.shape()[0];
  const Value is_row = greater(Operand(reshape(Operand(mask, loc), Shape(dims)), loc), Operand(0.0, loc));
  return where(Operand(is_row, loc), x, Operand(0.0, loc));
}

Value count_rows(Operand x, Value mask) {
  const Loc loc = x.loc();
  if (!mask) return x.value().tape->constant(static_cast<double>(x.value().shape()[0]), {x.value().dtype(), {}}, loc);
  check_mask(x, mask);
  const Value total = maximum(Operand(sum(Operand(mask, loc)), loc), Operand(1.0, loc));
  return total.dtype() == x.value().dtype() ? total : cast(Operand(total, loc), x.value().dtype());
}

Value mean_of_rows(Operand x, Value mask) {
  if (!mask) return mean(x);
  const Loc loc = x.loc();
  const Shape& shape = x.value().shape();
  const double of_each = static_cast<double>(shape.elements() / shape[0]);
  const Value rows = Operand(count_rows(x, mask), loc) * Operand(of_each, loc);
  return Operand(sum(Operand(zero_padding(x, mask), loc)), loc) / Operand(rows, loc);
}

Value mean_row(Operand x, Value mask) {
  if (!mask) return mean(x, {0});
  const Loc loc = x.loc();
  const Value total = sum(Operand(zero_padding(x, mask), loc), {0});
  return Operand(total, loc) / Operand(count_rows(x, mask), loc);
}

Value row_numbers(Value mask, Loc loc) {
  const auto at = [loc](Value v) { return Operand(v, loc); };
  const std::int64_t n = mask.shape()[0];
  const Value is_row = cast(at(greater(at(mask), Operand(0.0, loc))), DType::f32);
  // place[i]: where row i goes; padding goes behind all rows. list: what is at each place.
  const Value place = at(running_sum(is_row, loc)) - Operand(1.0, loc);
  std::vector<float> counted(static_cast<std::size_t>(n));
  for (std::int64_t i = 0; i < n; ++i) counted[static_cast<std::size_t>(i)] = static_cast<float>(i);
  const Value numbers = mask.tape->constant(Tensor::of<float>({n, 1}, counted), loc);
  const Value slot = where(at(greater(at(is_row), Operand(0.0, loc))), at(place), Operand(0.0, loc));
  const Value list = scatter_add_rows(at(cast(at(slot), DType::i32)), at(zero_padding(at(numbers), mask)), n);
  // The j-th of the repeated list is the (j mod rows)-th of the list.
  const Value rows = count_rows(at(mask), mask);
  const Value flat = reshape(at(numbers), Shape{n});
  const Value turn = floor(at(at(at(flat) + Operand(0.5, loc)) / at(rows)));
  const Value within = maximum(at(at(flat) - at(at(turn) * at(rows))), Operand(0.0, loc));
  return cast(at(reshape(at(gather_rows(at(list), at(cast(at(within), DType::i32)))), Shape{n})), DType::i32);
}

}  // namespace sg
