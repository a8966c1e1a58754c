#include "models/quantizers/binary.h"

#include <algorithm>
#include <bit>
#include <cmath>

#include "core/error.h"
#include "models/losses.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kSure = 80;  // a bit of this logit has an entropy of 1e-33

std::int64_t bits_of(std::string_view what, std::int64_t codes) {
  if (codes < 2 || !std::has_single_bit(static_cast<std::uint64_t>(codes)))
    fail(ErrorKind::usage, "{}: {} codes; with one bit per dimension a power of two is needed", what, codes);
  return std::bit_width(static_cast<std::uint64_t>(codes)) - 1;
}

Grid binary_grid(std::string_view what, const QuantizerConfig& config, bool spherical) {
  const std::int64_t bits = bits_of(what, config.codes);
  const double divisor = spherical ? std::sqrt(static_cast<double>(bits)) : 1;
  return {what, std::vector<Grid::Axis>(static_cast<std::size_t>(bits), {2, 2, 1, divisor})};
}

// z / |z|. Scaled by the largest number first, so that no square overflows or vanishes.
Value on_sphere(Value z) {
  const Value size = stop_gradient(max(abs(z), {-1}, true));
  const Value scaled = z / where(greater(size, 0.0), size, 1.0);
  const Value squared = sum(square(scaled), {-1}, true);
  return scaled * rsqrt(where(greater(squared, 0.0), squared, 1.0));
}

Value column(Value x, std::int64_t i) { return slice_axis(x, 1, i, i + 1); }

// Probabilities of all settings of the bits [first, last), (N, 2^(last - first)), the first bit fastest.
Value joint(Value off, Value on, std::int64_t first, std::int64_t last) {
  const std::int64_t n = off.shape()[0];
  Value all = concat({column(off, first), column(on, first)}, 1);
  for (std::int64_t bit = first + 1; bit < last; ++bit) {
    const Value next = reshape(concat({column(off, bit), column(on, bit)}, 1), Shape{n, 2, 1});
    all = reshape(next * reshape(all, {n, 1, -1}), {n, -1});
  }
  return all;
}

Value entropy_of(Value p) { return -sum(p * log(maximum(p, 1e-30))); }

}  // namespace

Value row_entropies(Value logits) {
  const Value size = abs(clamp(logits, -kSure, kSure));
  return softplus(-size) + size * sigmoid(-size);
}

Value batch_entropy(Value logits, Value mask, std::int64_t bits_at_once) {
  const Value sure = clamp(logits, -kSure, kSure), on = sigmoid(sure), off = sigmoid(-sure);
  const std::int64_t bits = logits.shape()[1];
  if (bits_at_once == 1) return entropy_of(mean_row(on, mask)) + entropy_of(mean_row(off, mask));
  const Value rows = count_rows(logits, mask);
  Value total;
  for (std::int64_t first = 0; first < bits; first += bits_at_once) {
    const std::int64_t last = std::min(first + bits_at_once, bits), middle = first + (last - first + 1) / 2;
    const Value low = joint(off, on, first, middle);
    // The mean over the rows of the products of both halves' probabilities is one matrix product over the rows.
    const Value both = middle == last ? mean_row(low, mask)
                                      : matmul(zero_padding(joint(off, on, middle, last), mask) / rows, low, true);
    const Value entropy = entropy_of(both);
    total = total ? total + entropy : entropy;
  }
  return total;
}

BinaryQuantizer::BinaryQuantizer(Module& parent, std::string_view name, std::string_view what,
                                 const QuantizerConfig& config, bool spherical, std::int64_t bits_at_once)
    : GridQuantizer(parent, name, what, binary_grid(what, config, spherical)),
      spherical_(spherical),
      bits_at_once_(bits_at_once),
      entropy_(config.entropy),
      diversity_(config.diversity),
      temperature_(config.entropy_temperature),
      gamma_(config.gamma) {
  if (!(temperature_ > 0) || !std::isfinite(temperature_))
    fail(ErrorKind::usage, "{}: entropy temperature {}, a positive number is needed", what, temperature_);
}

GridQuantizer::Assigned BinaryQuantizer::assign(Value z) const {
  return {spherical_ ? on_sphere(z) : z, greater(z, 0.0)};
}

std::vector<LossTerm> BinaryQuantizer::losses(Value smooth, Value code, Value mask) const {
  const Scope scope(*smooth.tape, "losses");
  std::vector<LossTerm> terms;
  if (entropy_ != 0 || diversity_ != 0) {
    const double size = 1 / grid().axes().front().divisor;
    const Value logits = smooth * (4 * size / temperature_);
    const Value of_batch = batch_entropy(logits, mask, bits_at_once_);
    if (entropy_ != 0) {
      const Value of_rows = mean_of_rows(row_entropies(logits), mask) * static_cast<double>(grid().dim());
      terms.push_back({"entropy", of_rows - of_batch, entropy_});
    }
    if (diversity_ != 0) terms.push_back({"diversity", -of_batch, diversity_});
  }
  terms.push_back({"commitment", commitment_loss(smooth, code, mask), gamma_});
  return terms;
}

}  // namespace sg
