#include "models/quantizers/grid.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "core/error.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/index.h"
#include "ops/masks.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr std::int64_t kTableCodes = 4096;  // of one table that codes are gathered from

// floor(x / divisor) of f64 integers below 2^31, for which it is exact however the division rounds.
Value integer_quotient(Value x, std::int64_t divisor) {
  return divisor == 1 ? x : floor((x + 0.5) / static_cast<double>(divisor));
}

}  // namespace

Grid::Grid(std::string_view what, std::vector<Axis> axes) : axes_(std::move(axes)) {
  if (axes_.empty()) fail(ErrorKind::usage, "{}: the grid has no dimension", what);
  for (std::size_t i = 0; i < axes_.size(); ++i) {
    const std::int64_t levels = axes_[i].levels;
    if (levels > std::numeric_limits<std::int32_t>::max() / codes_)
      fail(ErrorKind::usage, "{}: a grid of more than 2^31 - 1 codes; give it fewer levels or dimensions", what);
    if (parts_.empty() || parts_.back().codes * levels > kTableCodes)
      parts_.push_back({static_cast<std::int64_t>(i), 0, 1, codes_});
    parts_.back().axes += 1;
    parts_.back().codes *= levels;
    codes_ *= levels;
  }
}

Value Grid::constant(Tape& tape, DType dtype, std::span<const double> per_axis) const {
  Tensor t({dtype, {dim()}});
  for (std::int64_t i = 0; i < dim(); ++i) t.set(i, per_axis[static_cast<std::size_t>(i)]);
  return tape.constant(t);
}

Value Grid::index(Value levels) const {
  std::vector<double> strides;
  std::int64_t stride = 1;
  for (const Axis& axis : axes_) {
    strides.push_back(static_cast<double>(stride));
    stride *= axis.levels;
  }
  return sum(levels * constant(*levels.tape, DType::i32, strides), {-1});
}

// Each part of the index selects a row of a table of codes. The last part is not reduced by its number of codes, so
// that gather_rows refuses an index which is out of range.
Value Grid::code(Operand indices, DType dtype) const {
  const Value all = indices.value();
  if (all.dtype() != DType::i32)
    throw Error(ErrorKind::dtype, fmt::format("grid: indices are {}, must be i32", to_string(all.type())),
                indices.loc());
  Tape& tape = *all.tape;
  std::vector<Value> columns;
  for (const Part& part : parts_) {
    Tensor table({dtype, {part.codes, part.axes}});
    for (std::int64_t k = 0; k < part.codes; ++k)
      for (std::int64_t rest = k, i = 0; i < part.axes; ++i) {
        const Axis& axis = axes_[static_cast<std::size_t>(part.first + i)];
        table.set(k * part.axes + i, axis.value(rest % axis.levels));
        rest /= axis.levels;
      }
    Value row = all;
    if (parts_.size() > 1) {
      Value quotient = integer_quotient(cast(all, DType::f64), part.stride);
      if (&part != &parts_.back())
        quotient = quotient - static_cast<double>(part.codes) * integer_quotient(quotient, part.codes);
      row = cast(quotient, DType::i32);
    }
    columns.push_back(gather_rows(tape.constant(table), Operand(row, indices.loc())));
  }
  return columns.size() == 1 ? columns.front() : concat(columns, -1);
}

Value Grid::levels(Value codes) const {
  std::vector<double> divisor, offset, slope, last;
  for (const Axis& axis : axes_) {
    divisor.push_back(axis.divisor);
    offset.push_back(axis.offset);
    slope.push_back(axis.slope);
    last.push_back(static_cast<double>(axis.levels - 1));
  }
  Tape& tape = *codes.tape;
  const DType dtype = codes.dtype();
  const Value n =
      (codes * constant(tape, dtype, divisor) + constant(tape, dtype, offset)) / constant(tape, dtype, slope);
  return cast(minimum(maximum(round(n), 0.0), constant(tape, dtype, last)), DType::i32);
}

std::string GridQuantizer::describe() const {
  std::vector<std::int64_t> levels;
  for (const Grid::Axis& axis : grid_.axes()) levels.push_back(axis.levels);
  const bool alike =
      levels.size() > 4 && std::adjacent_find(levels.begin(), levels.end(), std::not_equal_to{}) == levels.end();
  return fmt::format("grid {} of {} codes",
                     alike ? fmt::format("{}^{}", levels[0], levels.size()) : fmt::format("{}", fmt::join(levels, "x")),
                     codes());
}

Quantized GridQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  const Scope scope(*z.value().tape, name(), z.loc());
  check_dim(*this, what_, z);
  const Value mask = flatten_mask(context, z);
  const Value rows = zero_padding(flatten_rows(z), mask);
  const Assigned assigned = assign(rows);
  const Value indices = grid_.index(assigned.levels);
  const Value code = grid_.code(indices, rows.dtype());
  Quantized out;
  out.z = zero_padding(assigned.smooth, mask);
  out.q = zero_padding(code, mask);
  const Value z_q = graft(forward(code, assigned.smooth, context), assigned.smooth);
  out.z_q = reshape(zero_padding(z_q, mask), z.value().shape());
  out.indices = reshape(indices, index_shape(z.value().shape()));
  out.losses = losses(assigned.smooth, code, mask);
  return out;
}

Value GridQuantizer::decode(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return grid_.code(indices, DType::f32);
}

Value GridQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return grid_.index(grid_.levels(grid_.code(indices, DType::f32)));
}

}  // namespace sg
