#include "models/quantizers/fsq.h"

#include <cmath>

#include "core/error.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/random.h"

namespace sg {
namespace {

Grid fsq_grid(const QuantizerConfig& config) {
  std::vector<Grid::Axis> axes;
  for (const std::int64_t levels : fsq_levels("fsq", config, 3)) {
    const auto half = static_cast<double>(levels / 2);
    axes.push_back({levels, 1, half, half});
  }
  return {"fsq", std::move(axes)};
}

Grid symmetric_grid(const QuantizerConfig& config) {
  std::vector<Grid::Axis> axes;
  for (const std::int64_t levels : fsq_levels("fsq-symmetric", config, 2)) {
    const auto steps = static_cast<double>(levels - 1);
    axes.push_back({levels, 2, steps, steps});
  }
  return {"fsq-symmetric", std::move(axes)};
}

// f(axis) of each axis, (D).
template <class F>
Value per_axis(const Grid& grid, Value like, F f) {
  std::vector<double> values;
  for (const Grid::Axis& axis : grid.axes()) values.push_back(f(axis));
  return grid.constant(*like.tape, like.dtype(), values);
}

double steps(const Grid::Axis& axis) { return static_cast<double>(axis.levels - 1); }

}  // namespace

std::vector<std::int64_t> fsq_levels(std::string_view what, const QuantizerConfig& config, std::int64_t least) {
  for (const std::int64_t levels : config.grid)
    if (levels < least)
      fail(ErrorKind::usage, "{}: a dimension of {} levels; at least {} are needed", what, levels, least);
  if (!config.grid.empty()) return config.grid;
  switch (config.codes) {
    case 1 << 8:
      return {8, 6, 5};
    case 1 << 10:
      return {8, 5, 5, 5};
    case 1 << 12:
      return {7, 5, 5, 5, 5};
    case 1 << 14:
      return {8, 8, 8, 6, 5};
    case 1 << 16:
      return {8, 8, 8, 5, 5, 5};
    default:
      fail(
          ErrorKind::usage,
          "{}: no grid is known for {} codes; set codes to 256, 1024, 4096, 16384 or 65536, or give the levels of each "
          "dimension as grid",
          what, config.codes);
  }
}

FiniteScalarQuantizer::FiniteScalarQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config)
    : GridQuantizer(parent, name, "fsq", fsq_grid(config)) {}

GridQuantizer::Assigned FiniteScalarQuantizer::assign(Value z) const {
  const auto half = [](const Grid::Axis& a) { return steps(a) * (1 + 1e-3) / 2; };
  const auto even = [](const Grid::Axis& a) { return a.levels % 2 == 0 ? 0.5 : 0.0; };
  const Value h = per_axis(grid(), z, half), offset = per_axis(grid(), z, even);
  const Value shift = per_axis(grid(), z, [&](const Grid::Axis& a) { return std::atanh(even(a) / half(a)); });
  const Value width = per_axis(grid(), z, [](const Grid::Axis& a) { return a.divisor; });
  const Value f = tanh(z + shift) * h - offset;
  // From 1000 levels on, (L-1) 1e-3 / 2 lets f round to one more on each side.
  const Value last = per_axis(grid(), z, steps);
  const Value level = minimum(maximum(round(f) + width, 0.0), last);
  return {f / width, cast(level, DType::i32)};
}

SymmetricScalarQuantizer::SymmetricScalarQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config)
    : GridQuantizer(parent, name, "fsq-symmetric", symmetric_grid(config)), dither_(config.dither) {
  if (!(dither_ >= 0 && dither_ <= 1))
    fail(ErrorKind::usage, "fsq-symmetric: dither is {}, a share from 0 to 1 is needed", dither_);
}

GridQuantizer::Assigned SymmetricScalarQuantizer::assign(Value z) const {
  const Value bounded = tanh(z), last = per_axis(grid(), z, steps);
  const Value level = floor(last * (bounded + 1.0) / 2.0 + 0.5);
  return {bounded, cast(minimum(maximum(level, 0.0), last), DType::i32)};
}

Value SymmetricScalarQuantizer::forward(Value code, Value smooth, const QuantizeContext& context) const {
  if (dither_ == 0 || !context.training()) return code;
  const Value half_step = per_axis(grid(), smooth, [](const Grid::Axis& a) { return 1 / steps(a); });
  const Value noise = (2.0 * uniform(context.random, smooth.shape(), smooth.dtype()) - 1.0) * half_step;
  const Value chosen = less(uniform(context.random, smooth.shape()), dither_);
  return where(chosen, stop_gradient(smooth) + noise, code);
}

}  // namespace sg
