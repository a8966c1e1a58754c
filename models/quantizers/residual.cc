#include "models/quantizers/residual.h"

#include "models/quantizers/composition.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/random.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr const char* kWho = "ResidualQuantizer";

void check(const QuantizerConfig& config) {
  if (config.levels < 1) fail(ErrorKind::usage, "{}: {} levels: at least one", kWho, config.levels);
  if (!(config.level_dropout >= 0 && config.level_dropout <= 1))
    fail(ErrorKind::usage, "{}: level dropout {} is not a share in [0, 1]", kWho, config.level_dropout);
  if (config.metric != Metric::euclidean)
    fail(ErrorKind::usage,
         "{}: the {} metric compares directions, but what a level leaves over has a length too; take euclidean", kWho,
         to_string(config.metric));
  const EstimatorDef& estimator = config.estimator.def;
  if (!estimator.assign) return check_sum_estimator(kWho, config.estimator);
  if (!estimator.exact_forward)
    fail(ErrorKind::usage, "{}: estimator '{}' replaces rows by what is no code, which no level can be left over from",
         kWho, estimator.name);
}

// How many levels count in this step: f32 scalar.
Value draw_levels(const QuantizerConfig& config, const QuantizeContext& context) {
  const Value u = uniform(context.random, {2});
  const auto at = [&](std::int64_t i) { return reshape(slice_axis(u, 0, i, i + 1), Shape{}); };
  const double all = static_cast<double>(config.levels);
  const Value some = minimum(1.0 + floor(all * at(1)), all);  // u * L may round up to L
  return where(less(at(0), config.level_dropout), some, all);
}

}  // namespace

ResidualQuantizer::ResidualQuantizer(Module& parent, std::string_view name, QuantizerConfig config)
    : Quantizer(parent, name), config_(std::move(config)) {
  check(config_);
  QuantizerConfig book = config_;
  if (!level_by_level()) book.estimator = "ste";
  const std::int64_t count = config_.shared_books ? 1 : config_.levels;
  for (std::int64_t i = 1; i <= count; ++i)
    books_.push_back(std::make_unique<VectorQuantizer>(
        *this, config_.shared_books ? std::string("shared") : fmt::format("level{}", i), book));
}

std::vector<Value> ResidualQuantizer::shares(Value count) const {
  std::vector<Value> out;
  for (std::int64_t i = 0; i < config_.levels; ++i)
    out.push_back(cast(greater(count, static_cast<double>(i)), DType::f32));
  return out;
}

Quantized ResidualQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, kWho, z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  const Scope scope(*z.value().tape, name(), loc);
  QuantizeContext inner = context;
  inner.mask = flatten_mask(context, z);
  std::vector<Value> counts;
  Value levels;
  if (context.training() && config_.level_dropout > 0) {
    levels = draw_levels(config_, context);
    counts = shares(levels);
  }

  Quantized out;
  out.z = zero_padding(Operand(flatten_rows(z), loc), inner.mask);
  Value rest = out.z, estimates;
  std::vector<Value> indices;
  for (std::int64_t i = 0; i < config_.levels; ++i) {
    const Quantized& part = out.parts.emplace_back(level(i)(Operand(rest, loc), inner));
    // The first level always counts.
    const auto counted = [&](Value x) { return i > 0 && levels ? counts[static_cast<std::size_t>(i)] * x : x; };
    out.q = out.q ? out.q + counted(part.q) : part.q;
    estimates = estimates ? estimates + counted(part.z_q) : part.z_q;
    indices.push_back(reshape(part.indices, {-1, 1}));
    if (i + 1 < config_.levels) rest = Operand(rest, loc) - Operand(stop_gradient(Operand(part.q, loc)), loc);
  }

  out.lookup = sum_lookup(config_.estimator, out.z, out.q, inner.mask, context);
  out.losses = mean_losses(out.parts, counts);
  if (!level_by_level()) {
    estimates = estimate_sum(config_.estimator, out.lookup, context);
    if (context.training() && config_.estimator.def.losses)
      for (const EstimatorDef::Term& term : config_.estimator.def.losses(out.lookup))
        out.losses.push_back({term.name, term.value, term.weight});
  }
  if (levels) out.losses.push_back({"levels", levels, 0});
  out.z_q = shaped_like(z, estimates, inner.mask);
  out.indices = reshape(concat(indices, 1, loc), index_shape(shape));
  return out;
}

Value ResidualQuantizer::indices_of(Operand indices, std::int64_t level) const {
  const Shape& shape = indices.value().shape();
  if (config_.levels == 1) return indices.value();
  if (shape.rank() < 1 || shape[-1] != config_.levels)
    throw Error(ErrorKind::shape,
                fmt::format("{} '{}': indices are {}, expected {} of each row", kWho, path(),
                            to_string(indices.value().type()), config_.levels),
                indices.loc());
  const Value one = slice_axis(indices, shape.rank() - 1, level, level + 1);
  return reshape(Operand(one, indices.loc()), std::vector<std::int64_t>(shape.begin(), shape.end() - 1));
}

Value ResidualQuantizer::decode(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  Value total;
  for (std::int64_t i = 0; i < config_.levels; ++i) {
    const Value codes = level(i).decode(Operand(indices_of(indices, i), indices.loc()));
    total = total ? total + codes : codes;
  }
  return total;
}

Value ResidualQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  std::vector<Value> found;
  for (std::int64_t i = 0; i < config_.levels; ++i)
    found.push_back(reshape(level(i).requantize(Operand(indices_of(indices, i), indices.loc())), {-1, 1}));
  return reshape(concat(found, 1, indices.loc()), indices.value().shape());
}

std::string ResidualQuantizer::describe() const {
  return fmt::format("{} levels of {}{} codes of {} by {}, estimator {}", config_.levels,
                     config_.shared_books ? "the same " : "", config_.codes, config_.dim, to_string(config_.codebook),
                     config_.estimator.text());
}

void ResidualQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  const Scope scope(*quantized.z.tape, name());
  const LossTerm* levels = quantized.find("levels");
  const std::vector<Value> counts = levels == nullptr ? std::vector<Value>{} : shares(levels->value);
  QuantizeContext inner = context;
  inner.mask = quantized.lookup.mask;
  if (!config_.shared_books || config_.levels == 1) {
    for (std::int64_t i = 0; i < config_.levels; ++i) {
      const auto at = static_cast<std::size_t>(i);
      update_where(levels && i > 0 ? counts[at] : Value(), level(i), quantized.parts[at], inner, updates);
    }
    return;
  }
  update_from_all(*books_[0], quantized.parts, counts, context, updates);
}

Value ResidualQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  const EstimatorDef& estimator = config_.estimator.def;
  return estimator.loss_term ? estimator.loss_term(loss, quantized.lookup, quantized.z_q) : Value();
}

void ResidualQuantizer::initialize(const Tensor& rows, Backend& backend) {
  Tensor rest = rows;
  for (std::size_t i = 0; i < books_.size(); ++i) {
    books_[i]->initialize(rest, backend);
    if (i + 1 < books_.size()) rest = evaluate_rows(rest, backend, [&](Value r) { return r - (*books_[i])(r).q; });
  }
}

}  // namespace sg
