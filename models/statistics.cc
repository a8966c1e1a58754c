#include "models/statistics.h"

#include <numbers>

#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/masks.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kTiny = 1e-30;  // below any squared length that means something, above f32's underflow

Value as_real(Operand counts) {
  const Value v = counts.value();
  return stop_gradient(Operand(is_real(v.dtype()) ? v : cast(counts, DType::f32), counts.loc()));
}

}  // namespace

Value code_counts(Operand indices, std::int64_t codes, Value mask) {
  const Loc loc = indices.loc();
  if (!mask) return cast(Operand(histogram(indices, codes), loc), DType::f32);
  const std::int64_t n = indices.value().shape().elements();
  const Value flat = reshape(indices, Shape{n}), weights = reshape(Operand(mask, loc), Shape{n, 1});
  return reshape(Operand(scatter_add_rows(Operand(flat, loc), Operand(weights, loc), codes), loc), Shape{codes});
}

Value usage(Operand counts) { return mean(cast(greater(as_real(counts), 0.0), DType::f32)); }

Value perplexity(Operand counts, std::int64_t books) {
  const Value c = reshape(as_real(counts), std::vector<std::int64_t>{books, -1});
  const Value p = c / maximum(sum(c, {-1}, true), kTiny);
  return mean(exp(-sum(p * log(p + 1e-10), {-1})));
}

Spread spread(Operand per_row, Value mask) {
  const Value x = stop_gradient(per_row);
  const std::int64_t n = x.shape()[0];
  const Value rows = mask ? gather_rows(reshape(x, Shape{n, 1}), row_numbers(mask)) : x;
  const Value tails = quantile(rows, {0.05, 0.95});
  return {mean_of_rows(x, mask), reshape(slice_axis(tails, 0, 0, 1), Shape{}),
          reshape(slice_axis(tails, 0, 1, 2), Shape{})};
}

std::vector<NamedValue> RowStatistics::named() const {
  return {{"relative_error", relative_error},
          {"norm_ratio", norm_ratio.mean},
          {"norm_ratio_p5", norm_ratio.low},
          {"norm_ratio_p95", norm_ratio.high},
          {"angle", angle.mean},
          {"angle_p5", angle.low},
          {"angle_p95", angle.high}};
}

RowStatistics row_statistics(Operand z_in, Operand q_in, Value mask) {
  const Value z = stop_gradient(z_in), q = stop_gradient(q_in);
  const Value zz = sum(square(z), {-1}), qq = sum(square(q), {-1}), zq = sum(z * q, {-1});
  const Value error = sum(square(z - q), {-1});
  RowStatistics out;
  out.relative_error = mean_of_rows(error / maximum(zz, kTiny), mask);
  out.norm_ratio = spread(sqrt(qq / maximum(zz, kTiny)), mask);
  const Value cosine = zq / maximum(sqrt(zz) * sqrt(qq), kTiny);
  out.angle = spread(acos(clamp(cosine, -1, 1)) * (180.0 / std::numbers::pi), mask);
  return out;
}

Value windowed_counts(Tape& tape, Variable& ring, Variable& slot, Value counts, Loc loc) {
  const std::int64_t window = ring.type().shape[0], codes = ring.type().shape[1];
  const Value at_slot = tape.read(slot, loc);
  const Value here = reshape(one_hot(at_slot, window, DType::i32), {window, 1});
  const Value updated = where(here, reshape(as_real(counts), {1, codes}), tape.read(ring, loc));
  tape.assign(ring, updated, loc);
  const Value next = at_slot + 1;
  tape.assign(slot, where(greater_equal(next, static_cast<int>(window)), 0, next), loc);
  return sum(updated, {0});
}

}  // namespace sg
