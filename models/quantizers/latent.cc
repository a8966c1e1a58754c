#include "models/quantizers/latent.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "models/losses.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/masks.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

std::vector<std::int64_t> levels_of(const QuantizerConfig& config) {
  if (config.grid.empty() && config.dim < 1)
    fail(ErrorKind::usage, "latent: {} dimensions: at least one is needed", config.dim);
  const std::vector<std::int64_t> levels =
      config.grid.empty() ? std::vector<std::int64_t>(static_cast<std::size_t>(config.dim), config.codes) : config.grid;
  for (const std::int64_t l : levels)
    if (l < 1) fail(ErrorKind::usage, "latent: a dimension of {} levels; at least one is needed", l);
  return levels;
}

Tensor evenly_spaced(const std::vector<std::int64_t>& levels) {
  std::vector<float> values;
  for (const std::int64_t l : levels) {
    const auto intervals = static_cast<double>(l % 2 == 0 ? l : std::max<std::int64_t>(l - 1, 1));
    for (std::int64_t n = 0; n < l; ++n)
      values.push_back(static_cast<float>(l == 1 ? 0 : static_cast<double>(n) / intervals - 0.5));
  }
  return Tensor::of<float>({static_cast<std::int64_t>(values.size()), 1}, values);
}

}  // namespace

LatentQuantizer::LatentQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config)
    : Quantizer(parent, name),
      levels_(levels_of(config)),
      beta_(config.beta),
      gamma_(config.gamma),
      values_(&add_parameter("values", evenly_spaced(levels_))) {}

std::string LatentQuantizer::describe() const {
  return fmt::format("{} scalars of {} learned values", dim(), fmt::join(levels_, ", "));
}

std::int64_t LatentQuantizer::codes() const { return *std::max_element(levels_.begin(), levels_.end()); }

double LatentQuantizer::bits_per_row() const {
  double bits = 0;
  for (const std::int64_t l : levels_) bits += std::log2(static_cast<double>(l));
  return bits;
}

// A number beyond all values is the nearest to the outermost one, which keeps its square finite.
Value LatentQuantizer::nearest(Value rows) const {
  const Value stored = stop_gradient(rows.tape->read(*values_));
  const Value values = stored.dtype() == rows.dtype() ? stored : cast(stored, rows.dtype());
  std::vector<Value> columns;
  std::int64_t first = 0;
  for (std::int64_t d = 0; d < dim(); ++d) {
    const std::int64_t levels = levels_[static_cast<std::size_t>(d)];
    const Value own = slice_axis(values, 0, first, first + levels);
    const Value z = minimum(maximum(slice_axis(rows, 1, d, d + 1), min(own)), max(own));
    columns.push_back(reshape(nearest_code(z, own), {-1, 1}));
    first += levels;
  }
  return columns.size() == 1 ? columns.front() : concat(columns, 1);
}

Value LatentQuantizer::look_up(Operand indices, DType dtype) const {
  Tape& tape = *indices.value().tape;
  Tensor levels({DType::i32, {dim()}}), before({DType::i32, {dim()}});
  for (std::int64_t d = 0, first = 0; d < dim(); ++d) {
    const std::int64_t own = levels_[static_cast<std::size_t>(d)];
    levels.set(d, static_cast<double>(own));
    before.set(d, static_cast<double>(first));
    first += own;
  }
  const Value i = indices.value();
  // An index beyond its own dimension's values becomes one that gather_rows refuses.
  const Value in_range = less(i, tape.constant(levels));
  const Value row = where(in_range, where(less(i, 0), -1, i + tape.constant(before)), -1);
  const Value values = gather_rows(tape.read(*values_), Operand(row, indices.loc()));
  const Value flat = reshape(values, i.shape());
  return flat.dtype() == dtype ? flat : cast(flat, dtype);
}

Value LatentQuantizer::rows_of_indices(Operand indices) const {
  const Value i = indices.value();
  if (i.dtype() != DType::i32 || (dim() > 1 && (i.shape().rank() < 1 || i.shape()[-1] != dim())))
    throw Error(ErrorKind::shape,
                fmt::format("latent '{}': indices are {}, expected i32 with {} in the last extent", path(),
                            to_string(i.type()), dim()),
                indices.loc());
  return reshape(indices, {-1, dim()});
}

Quantized LatentQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  const Scope scope(*z.value().tape, name(), z.loc());
  check_dim(*this, "latent", z);
  const Value mask = flatten_mask(context, z);
  const Value rows = zero_padding(flatten_rows(z), mask);
  const Value indices = nearest(rows);
  const Value q = zero_padding(look_up(indices, rows.dtype()), mask);
  Quantized out;
  out.z = rows;
  out.q = q;
  out.z_q = reshape(straight_through(rows, q), z.value().shape());
  out.indices = reshape(indices, index_shape(z.value().shape()));
  out.losses = {{"codebook", codebook_loss(rows, q, mask), beta_},
                {"commitment", commitment_loss(rows, q, mask), gamma_}};
  return out;
}

Value LatentQuantizer::decode(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  const Value rows = rows_of_indices(indices);
  std::vector<std::int64_t> dims = indices.value().shape().vec();
  if (dim() == 1) dims.push_back(1);
  return reshape(look_up(Operand(rows, indices.loc()), DType::f32), Shape(dims));
}

Value LatentQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  const Value rows = rows_of_indices(indices);
  return reshape(nearest(look_up(Operand(rows, indices.loc()), DType::f32)), indices.value().shape());
}

}  // namespace sg
