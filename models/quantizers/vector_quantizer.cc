#include "models/quantizers/vector_quantizer.h"

#include <cmath>

#include "models/init.h"
#include "models/kmeans.h"
#include "models/losses.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kNormEps = 1e-12;  // under the root: |x| = 0 gives 0 with a finite derivative

Value unit_rows(Value x, Loc loc) {
  const auto at = [loc](Value v) { return Operand(v, loc); };
  const Value squared = sum(at(square(at(x))), {-1}, true);
  return at(x) * at(rsqrt(at(at(squared) + Operand(kNormEps, loc))));
}

Tensor initial_codes(const VectorQuantizerConfig& config, std::uint32_t seed, std::string_view name) {
  const Shape shape{config.codes, config.dim};
  const double bound = 1.0 / static_cast<double>(config.codes);
  if (config.init == CodebookInit::uniform) return uniform_init(shape, -bound, bound, seed, name);
  return normal_init(shape, 0, config.normal_deviation, seed, name);
}

void check(const VectorQuantizerConfig& config) {
  if (config.codes < 1) fail(ErrorKind::usage, "VectorQuantizer: {} codes: a codebook has at least one", config.codes);
  if (config.dim < 1) fail(ErrorKind::usage, "VectorQuantizer: codes of {} dimensions: at least one", config.dim);
  if (!config.estimator.def.estimate) fail(ErrorKind::usage, "VectorQuantizer: the estimator has no function");
  if (!(config.ema_decay >= 0 && config.ema_decay < 1))
    fail(ErrorKind::usage, "VectorQuantizer: EMA decay {} is not in [0, 1)", config.ema_decay);
  if (!(config.ema_eps >= 0)) fail(ErrorKind::usage, "VectorQuantizer: EMA eps {} is negative", config.ema_eps);
  if (!(config.revival >= 0) || !std::isfinite(config.revival))
    fail(ErrorKind::usage, "VectorQuantizer: revival threshold {} is negative", config.revival);
  if (!(config.normal_deviation > 0))
    fail(ErrorKind::usage, "VectorQuantizer: normal deviation {} is not positive", config.normal_deviation);
}

}  // namespace

VectorQuantizer::VectorQuantizer(Module& parent, std::string_view name, VectorQuantizerConfig config)
    : Quantizer(parent, name), config_(std::move(config)) {
  check(config_);
  Tensor codes = initial_codes(config_, seed(), full_name("codebook"));
  const bool ema = config_.codebook == CodebookUpdate::ema;
  codebook_ = ema ? &add_state("codebook", codes) : &add_parameter("codebook", codes);
  if (ema || config_.revival > 0) count_ = &add_state("count", Tensor::full({DType::f32, {config_.codes}}, 1));
  if (ema) sum_ = &add_state("sum", codes);
}

std::string VectorQuantizer::describe() const {
  return fmt::format("{} codes of {} by {}, estimator {}", config_.codes, config_.dim, to_string(config_.codebook),
                     config_.estimator.text());
}

Value VectorQuantizer::compared_codes(Tape& tape, Loc loc) const {
  const Value codebook = tape.read(*codebook_, loc);
  return config_.metric == Metric::cosine ? unit_rows(codebook, loc) : codebook;
}

Value VectorQuantizer::decode(Operand indices) const {
  Tape& tape = *indices.value().tape;
  const Scope scope(tape, name(), indices.loc());
  const Value codes = compared_codes(tape, indices.loc());
  return gather_rows(Operand(codes, indices.loc()), indices);
}

Value VectorQuantizer::requantize(Operand indices) const {
  Tape& tape = *indices.value().tape;
  const Scope scope(tape, name(), indices.loc());
  const Value codes = compared_codes(tape, indices.loc());
  const Value rows = flatten_rows(gather_rows(Operand(codes, indices.loc()), indices));
  return reshape(nearest_code(rows, codes, config_.metric), indices.value().shape());
}

Quantized VectorQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "VectorQuantizer", z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  Tape& tape = *z.value().tape;
  const Scope scope(tape, name(), loc);
  const bool cosine = config_.metric == Metric::cosine;
  const Value rows = flatten_rows(z);
  const EstimatorDef& estimator = config_.estimator.def;
  Quantized out;
  Lookup& lookup = out.lookup;
  lookup.z = out.z = cosine ? unit_rows(rows, loc) : rows;
  lookup.codes = compared_codes(tape, loc);
  lookup.random = context.random;
  lookup.progress = context.progress ? context.progress : tape.constant(1.0, {DType::f32, {}}, loc);
  lookup.arguments = config_.estimator.arguments;
  const Value indices = estimator.assign ? estimator.assign(lookup) : nearest_code(out.z, lookup.codes, config_.metric);
  lookup.indices = indices;
  lookup.q = out.q = gather_rows(lookup.codes, indices);
  if (context.training() || (estimator.rows_only && estimator.exact_forward)) {
    out.z_q = estimator.estimate(lookup);
    if (cosine) out.z_q = unit_rows(out.z_q, loc);
  } else {
    out.z_q = out.q;
  }
  out.z_q = reshape(out.z_q, shape);
  out.indices = reshape(indices, index_shape(shape));
  out.losses = {{"codebook", codebook_loss(out.z, out.q), trained_by_loss() ? config_.beta : 0.0},
                {"commitment", commitment_loss(out.z, out.q), config_.gamma}};
  if (context.training() && estimator.losses)
    for (const EstimatorDef::Term& term : estimator.losses(lookup))
      out.losses.push_back({term.name, term.value, term.weight});
  return out;
}

Value VectorQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  const EstimatorDef& estimator = config_.estimator.def;
  return estimator.loss_term ? estimator.loss_term(loss, quantized.lookup, quantized.z_q) : Value();
}

void VectorQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  if (count_ == nullptr) return;
  Tape& tape = *quantized.z.tape;
  const Scope scope(tape, name());
  const std::int64_t k = config_.codes, n = quantized.z.shape()[0];
  const Value rows = stop_gradient(quantized.z);
  const Value indices = quantized.lookup.indices;
  Value codes = updates.next(*codebook_);

  const double keep = config_.ema_decay;
  const Value batch_count = cast(histogram(indices, k), DType::f32);
  Value count = keep * tape.read(*count_) + (1 - keep) * batch_count;
  Value total;
  if (sum_ != nullptr) {
    total = keep * tape.read(*sum_) + (1 - keep) * scatter_add_rows(indices, rows, k);
    const Value all = sum(count);
    const Value smoothed = (count + config_.ema_eps) / (all + static_cast<double>(k) * config_.ema_eps) * all;
    codes = total / reshape(smoothed, {k, 1});
  }
  if (config_.revival > 0) {
    // Uniform numbers are f32: above 2^24 rows some are never drawn, and u * n may round up to n.
    const Value draw = floor(uniform(context.random, {k}) * static_cast<double>(n));
    const Value fresh = gather_rows(rows, cast(minimum(draw, static_cast<double>(n - 1)), DType::i32));
    const Value dead = less(count, config_.revival);
    const Value dead_rows = reshape(dead, {k, 1});
    codes = where(dead_rows, fresh, codes);
    count = where(dead, config_.revival, count);
    if (sum_ != nullptr) total = where(dead_rows, config_.revival * fresh, total);
  }
  updates.set(*count_, count);
  if (sum_ != nullptr) updates.set(*sum_, total);
  updates.set(*codebook_, codes);
}

void VectorQuantizer::initialize(const Tensor& rows, Backend& backend) {
  if (rows.shape().rank() != 2 || rows.shape()[1] != config_.dim)
    fail(ErrorKind::shape, "VectorQuantizer '{}': initialize got {}, expected rows of {}", path(),
         to_string(rows.type()), config_.dim);
  if (config_.metric == Metric::euclidean) {
    set_codebook(kmeans(rows, config_.codes, backend, {.seed = seed()}).centres);
    return;
  }
  Tensor unit = rows;
  const std::span<float> x = unit.span<float>();
  const std::size_t dim = static_cast<std::size_t>(config_.dim);
  for (std::size_t i = 0; i < x.size(); i += dim) {
    double squared = kNormEps;
    for (std::size_t d = 0; d < dim; ++d) squared += static_cast<double>(x[i + d]) * static_cast<double>(x[i + d]);
    for (std::size_t d = 0; d < dim; ++d)
      x[i + d] = static_cast<float>(static_cast<double>(x[i + d]) / std::sqrt(squared));
  }
  set_codebook(kmeans(unit, config_.codes, backend, {.seed = seed()}).centres);
}

void VectorQuantizer::set_codebook(const Tensor& codes) {
  codebook_->set(codes);
  if (count_ != nullptr) count_->set(Tensor::full(count_->type(), 1));
  if (sum_ != nullptr) sum_->set(codes);
}

}  // namespace sg
