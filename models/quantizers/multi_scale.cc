#include "models/quantizers/multi_scale.h"

#include <algorithm>
#include <cmath>

#include "models/losses.h"
#include "models/quantizers/composition.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr const char* kWho = "MultiScaleQuantizer";

std::vector<std::int64_t> checked_scales(const QuantizerConfig& config) {
  const std::int64_t side = config.side;
  if (side < 1)
    fail(ErrorKind::usage, "{}: the latent map's side is not set: it quantizes square maps of one size", kWho);
  if (!(config.phi >= 0 && config.phi <= 1))
    fail(ErrorKind::usage, "{}: phi {} is not a share in [0, 1]", kWho, config.phi);
  std::vector<std::int64_t> scales = config.scales;
  if (scales.empty()) {
    for (std::int64_t s = 1; s < side; s *= 2) scales.push_back(s);
    scales.push_back(side);
  }
  bool grow = scales.front() >= 1 && scales.back() == side;
  for (std::size_t i = 1; i < scales.size(); ++i) grow = grow && scales[i] > scales[i - 1];
  if (!grow)
    fail(ErrorKind::usage, "{}: scales {} must grow from at least 1 to the latent map's side, {}", kWho,
         to_string(Shape(scales)), side);
  return scales;
}

QuantizerConfig book_config(const QuantizerConfig& config) {
  QuantizerConfig book = config;
  if (config.metric != Metric::euclidean)
    fail(ErrorKind::usage,
         "{}: the {} metric compares directions, but what a scale leaves over has a length too; take euclidean", kWho,
         to_string(config.metric));
  check_sum_estimator(kWho, config.estimator);
  book.estimator = "ste";
  return book;
}

// (to, from): what each output takes from each input along one axis.
Tensor area_weights(std::int64_t from, std::int64_t to) {
  Tensor w({DType::f32, {to, from}});
  for (std::int64_t i = 0; i < to; ++i) {
    const std::int64_t begin = i * from / to, end = ((i + 1) * from + to - 1) / to;
    for (std::int64_t j = begin; j < end; ++j) w.set(i * from + j, 1.0 / static_cast<double>(end - begin));
  }
  return w;
}
Tensor bilinear_weights(std::int64_t from, std::int64_t to) {
  Tensor w({DType::f32, {to, from}});
  for (std::int64_t i = 0; i < to; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) * static_cast<double>(from) / static_cast<double>(to) - 0.5;
    const double x = std::clamp(centre, 0.0, static_cast<double>(from - 1));
    const auto low = static_cast<std::int64_t>(x), high = std::min(low + 1, from - 1);
    const double share = x - static_cast<double>(low);
    w.set(i * from + low, w.at(i * from + low) + 1 - share);
    w.set(i * from + high, w.at(i * from + high) + share);
  }
  return w;
}

// (N,S,S,C) -> (N,T,T,C), weights (T,S) along both axes.
Value resize(Value map, const Tensor& weights) {
  const Shape& s = map.shape();
  const std::int64_t n = s[0], from = s[1], c = s[3], to = weights.shape()[0];
  const Value w = map.tape->constant(weights);
  const auto batch = [&](std::int64_t count) { return broadcast(reshape(w, {1, to, from}), {count, to, from}); };
  const Value rows = matmul(batch(n), reshape(map, {n, from, from * c}));
  return reshape(matmul(batch(n * to), reshape(rows, {n * to, from, c})), {n, to, to, c});
}

}  // namespace

MultiScaleQuantizer::MultiScaleQuantizer(Module& parent, std::string_view name, QuantizerConfig config)
    : Quantizer(parent, name),
      config_(std::move(config)),
      scales_(checked_scales(config_)),
      book_(*this, "book", book_config(config_)) {
  if (config_.phi > 0)
    for (const std::int64_t s : scales_) phi_.emplace_back(*this, fmt::format("phi{}", s), dim(), dim(), 3, 1, 1);
}

std::int64_t MultiScaleQuantizer::tokens() const {
  std::int64_t count = 0;
  for (const std::int64_t s : scales_) count += s * s;
  return count;
}

double MultiScaleQuantizer::bits_per_row() const {
  return static_cast<double>(tokens()) / static_cast<double>(config_.side * config_.side) *
         std::log2(static_cast<double>(codes()));
}

std::string MultiScaleQuantizer::describe() const {
  return fmt::format("maps of sides {}, {} codes of {} by {}, estimator {}", to_string(Shape(scales_)), config_.codes,
                     dim(), to_string(config_.codebook), config_.estimator.text());
}

Shape MultiScaleQuantizer::index_shape(const Shape& z) const { return {z[0], tokens()}; }

Value MultiScaleQuantizer::down(Value map, std::int64_t side) const {
  return side == config_.side ? map : resize(map, area_weights(config_.side, side));
}

Value MultiScaleQuantizer::up(Value map) const {
  const std::int64_t side = map.shape()[1];
  return side == config_.side ? map : resize(map, bilinear_weights(side, config_.side));
}

Value MultiScaleQuantizer::phi(Value map, std::size_t scale) const {
  return phi_.empty() ? map : (1 - config_.phi) * map + config_.phi * phi_[scale](map);
}

Quantized MultiScaleQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, kWho, z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  if (shape.rank() != 4 || shape[1] != config_.side || shape[2] != config_.side)
    throw Error(ErrorKind::shape,
                fmt::format("{} '{}': input is {}, expected maps [N,{},{},{}]", kWho, path(),
                            to_string(z.value().type()), config_.side, config_.side, dim()),
                loc);
  const Scope scope(*z.value().tape, name(), loc);
  const std::int64_t n = shape[0];
  const Value row_mask = flatten_mask(context, z);
  const Value mask = row_mask ? reshape(row_mask, {n, config_.side, config_.side, 1}) : Value();

  Quantized out;
  out.z = zero_padding(Operand(flatten_rows(z), loc), row_mask);
  Value rest = reshape(out.z, shape), total;
  std::vector<Value> indices;
  for (std::size_t i = 0; i < scales_.size(); ++i) {
    const std::int64_t s = scales_[i];
    QuantizeContext inner = context;
    Value windows;
    if (mask) {
      const Value there = down(mask, s);
      windows = down(rest * mask, s) / maximum(there, 1e-12);
      inner.mask = reshape(cast(greater(there, 0.0), DType::f32), {n, s * s});
    } else {
      windows = down(rest, s);
    }
    Quantized part = book_(Operand(reshape(windows, {n, s * s, dim()}), loc), inner);
    const Value added = phi(up(reshape(part.q, {n, s, s, dim()})), i);
    total = total ? total + added : added;
    if (i + 1 < scales_.size()) rest = rest - stop_gradient(added);
    indices.push_back(part.indices);

    // What trains the codes and phi is the map so far, not the token's own window.
    const Value rows = flatten_rows(total);
    const double beta = phi_.empty() ? part.find("codebook")->weight : config_.beta;
    std::vector<LossTerm> losses{{"codebook", codebook_loss(out.z, rows, row_mask), beta},
                                 {"commitment", commitment_loss(out.z, rows, row_mask), config_.gamma}};
    for (LossTerm& term : part.losses)
      if (term.name != "codebook" && term.name != "commitment") losses.push_back(std::move(term));
    part.losses = std::move(losses);
    out.parts.push_back(std::move(part));
  }
  out.q = flatten_rows(total);
  out.lookup = sum_lookup(config_.estimator, out.z, out.q, row_mask, context);
  out.z_q = shaped_like(z, estimate_sum(config_.estimator, out.lookup, context), row_mask);
  out.indices = concat(indices, 1, loc);
  out.losses = mean_losses(out.parts);
  return out;
}

Value MultiScaleQuantizer::decode(Operand indices) const {
  const Shape& shape = indices.value().shape();
  if (shape.rank() != 2 || shape[1] != tokens())
    throw Error(ErrorKind::shape,
                fmt::format("{} '{}': indices are {}, expected [N,{}]", kWho, path(), to_string(indices.value().type()),
                            tokens()),
                indices.loc());
  const Scope scope(*indices.value().tape, name(), indices.loc());
  Value total;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < scales_.size(); ++i) {
    const std::int64_t s = scales_[i];
    const Value tokens = slice_axis(indices, 1, first, first + s * s);
    const Value codes = book_.decode(Operand(tokens, indices.loc()));
    const Value added = phi(up(reshape(codes, {shape[0], s, s, dim()})), i);
    total = total ? total + added : added;
    first += s * s;
  }
  return total;
}

Value MultiScaleQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return book_.requantize(indices);
}

void MultiScaleQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  const Scope scope(*quantized.z.tape, name());
  update_from_all(book_, quantized.parts, {}, context, updates);
}

void MultiScaleQuantizer::initialize(const Tensor& rows, Backend& backend) {
  const std::int64_t pixels = config_.side * config_.side;
  if (rows.shape().rank() != 2 || rows.shape()[0] % pixels != 0 || rows.shape()[1] != dim())
    fail(ErrorKind::shape, "{} '{}': initialize got {}, expected the rows of {} x {} maps, {} numbers each", kWho,
         path(), to_string(rows.type()), config_.side, config_.side, dim());
  const auto windows_of_all_scales = [&](Value z) {
    Value rest = reshape(z, {rows.shape()[0] / pixels, config_.side, config_.side, dim()});
    std::vector<Value> windows;
    for (std::size_t i = 0; i < scales_.size(); ++i) {
      const Value means = down(rest, scales_[i]);
      windows.push_back(flatten_rows(means));
      rest = rest - phi(up(means), i);
    }
    return concat(windows, 0);
  };
  book_.initialize(evaluate_rows(rows, backend, windows_of_all_scales), backend);
}

Value MultiScaleQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  const EstimatorDef& estimator = config_.estimator.def;
  return estimator.loss_term ? estimator.loss_term(loss, quantized.lookup, quantized.z_q) : Value();
}

}  // namespace sg
