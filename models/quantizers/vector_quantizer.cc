#include "models/quantizers/vector_quantizer.h"

#include <algorithm>
#include <cmath>

#include "models/init.h"
#include "models/kmeans.h"
#include "models/losses.h"
#include "models/quantizers/assignment.h"
#include "models/quantizers/revival.h"
#include "models/statistics.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kLeastScale = 1e-6;  // of the affine rule, when a code is set to a row: below it c would overflow

Tensor initial_codes(const VectorQuantizerConfig& config, std::uint32_t seed, std::string_view name) {
  const Shape shape{config.codes, config.dim};
  if (config.codebook == CodebookUpdate::simvq)
    return normal_init(shape, 0, 1 / std::sqrt(static_cast<double>(config.dim)), seed, name);
  const double bound = 1.0 / static_cast<double>(config.codes);
  if (config.init == CodebookInit::uniform) return uniform_init(shape, -bound, bound, seed, name);
  return normal_init(shape, 0, config.normal_deviation, seed, name);
}

Tensor identity(std::int64_t n) {
  Tensor t({DType::f32, {n, n}});
  for (std::int64_t i = 0; i < n; ++i) t.set(i * n + i, 1);
  return t;
}

Tensor filled(Shape shape, double value) { return Tensor::full({DType::f32, shape}, value); }

// Rows divided by their lengths, as unit_rows does on the tape.
Tensor unit_rows_on_host(Tensor rows, std::int64_t dim) {
  const std::span<float> x = rows.span<float>();
  const std::size_t width = static_cast<std::size_t>(dim);
  for (std::size_t i = 0; i < x.size(); i += width) {
    double squared = kUnitRowEps;
    for (std::size_t d = 0; d < width; ++d) squared += static_cast<double>(x[i + d]) * static_cast<double>(x[i + d]);
    for (std::size_t d = 0; d < width; ++d)
      x[i + d] = static_cast<float>(static_cast<double>(x[i + d]) / std::sqrt(squared));
  }
  return rows;
}

Tensor mean_on_host(const Tensor& rows) {
  const std::int64_t n = rows.shape()[0], dim = rows.shape()[1];
  Tensor mean({DType::f32, {dim}});
  for (std::int64_t d = 0; d < dim; ++d) {
    double total = 0;
    for (std::int64_t i = 0; i < n; ++i) total += rows.at(i * dim + d);
    mean.set(d, total / static_cast<double>(std::max<std::int64_t>(n, 1)));
  }
  return mean;
}

}  // namespace

VectorQuantizer::VectorQuantizer(Module& parent, std::string_view name, VectorQuantizerConfig config)
    : Quantizer(parent, name), config_(std::move(config)) {
  check_codebook_config(config_);
  const CodebookUpdate rule = config_.codebook;
  const std::int64_t k = config_.codes, d = config_.dim;
  const Tensor codes = initial_codes(config_, seed(), full_name("codebook"));
  const bool parameter = rule == CodebookUpdate::loss || rule == CodebookUpdate::affine;
  codebook_ = parameter ? &add_parameter("codebook", codes) : &add_state("codebook", codes);
  if (rule == CodebookUpdate::simvq) transform_ = &add_parameter("transform", identity(d));
  if (rule == CodebookUpdate::affine) {
    scale_ = &add_parameter("scale", filled({d}, 1));
    shift_ = &add_parameter("shift", filled({d}, 0));
  }
  const bool lru = config_.revival > 0 && config_.revival_policy == Revival::lru;
  if (averaged(rule) || (config_.revival > 0 && !lru)) count_ = &add_state("count", filled({k}, 1));
  if (averaged(rule)) sum_ = &add_state("sum", codes);
  if (lru) idle_ = &add_state("idle", filled({k}, 0));
  if (config_.estimator.def.needs_origin) {
    origin_ = &add_state("origin", filled({d}, 0));
    origin_known_ = &add_state("origin_known", filled({}, 0));
  }
}

std::string VectorQuantizer::describe() const {
  return fmt::format("{} codes of {} by {}, estimator {}", config_.codes, config_.dim, to_string(config_.codebook),
                     config_.estimator.text());
}

Value VectorQuantizer::stored_codes(Tape& tape, Loc loc) const {
  const auto at = [loc](Value v) { return Operand(v, loc); };
  const Value stored = tape.read(*codebook_, loc);
  switch (config_.codebook) {
    case CodebookUpdate::loss:
      return stored;
    case CodebookUpdate::affine:
      return at(at(tape.read(*scale_, loc)) * at(stored)) + at(tape.read(*shift_, loc));
    case CodebookUpdate::simvq:
      return matmul(at(stop_gradient(at(stored))), at(tape.read(*transform_, loc)));
    default:
      return stop_gradient(at(stored));
  }
}

Value VectorQuantizer::compared_codes(Value stored, Loc loc) const {
  return config_.metric == Metric::cosine ? unit_rows(Operand(stored, loc)) : stored;
}

Value VectorQuantizer::stepped_codes(Value stored, Value z, const Lookup& lookup) const {
  const Value codes = compared_codes(stored, Loc::current());
  return inner_step(codes, z, lookup.indices, lookup.mask, config_.inner_rate);
}

Value VectorQuantizer::decode(Operand indices) const {
  Tape& tape = *indices.value().tape;
  const Loc loc = indices.loc();
  const Scope scope(tape, name(), loc);
  const Value codes = compared_codes(stored_codes(tape, loc), loc);
  return gather_rows(Operand(codes, loc), indices);
}

Value VectorQuantizer::requantize(Operand indices) const {
  Tape& tape = *indices.value().tape;
  const Loc loc = indices.loc();
  const Scope scope(tape, name(), loc);
  const Value codes = compared_codes(stored_codes(tape, loc), loc);
  const Value rows = flatten_rows(gather_rows(Operand(codes, loc), indices));
  return reshape(nearest_code(rows, codes, config_.metric), indices.value().shape());
}

Value VectorQuantizer::assign(const Lookup& lookup) const {
  if (config_.assignment == Assignment::sinkhorn && lookup.random)
    return sinkhorn_assignment(lookup.z, lookup.codes, lookup.mask);
  if (config_.estimator.def.assign) return config_.estimator.def.assign(lookup);
  return nearest_code(lookup.z, lookup.codes, config_.metric);
}

Value VectorQuantizer::origin(const Lookup& lookup) const {
  Tape& tape = *lookup.z.tape;
  const Value of_batch = mean_row(stop_gradient(lookup.z), lookup.mask);
  return where(greater(tape.read(*origin_known_), 0.0), tape.read(*origin_), of_batch);
}

void VectorQuantizer::add_losses(Quantized& out, bool training) const {
  const Lookup& lookup = out.lookup;
  out.losses = {{"codebook", codebook_loss(out.z, out.q, lookup.mask), trained_by_loss() ? config_.beta : 0.0},
                {"commitment", commitment_loss(out.z, out.q, lookup.mask), config_.gamma}};
  if (config_.orthogonal > 0) out.losses.push_back({"orthogonal", orthogonal_loss(lookup.codes), config_.orthogonal});
  if (config_.entropy > 0 || config_.diversity > 0) {
    const EntropyLosses terms = entropy_losses(out.z, lookup.codes, config_.entropy_temperature, lookup.mask);
    if (config_.entropy > 0) out.losses.push_back({"entropy", terms.entropy, config_.entropy});
    if (config_.diversity > 0) out.losses.push_back({"diversity", terms.diversity, config_.diversity});
  }
  if (!training || !config_.estimator.def.losses) return;
  for (const EstimatorDef::Term& term : config_.estimator.def.losses(lookup)) {
    if (out.find(term.name) != nullptr)
      fail(ErrorKind::usage, "VectorQuantizer '{}': the estimator {} has a loss '{}' of its own; set that weight to 0",
           path(), config_.estimator.text(), term.name);
    out.losses.push_back({term.name, term.value, term.weight});
  }
}

Quantized VectorQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "VectorQuantizer", z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  Tape& tape = *z.value().tape;
  const Scope scope(tape, name(), loc);
  const bool cosine = config_.metric == Metric::cosine;
  const EstimatorDef& estimator = config_.estimator.def;
  Quantized out;
  Lookup& lookup = out.lookup;
  lookup.mask = flatten_mask(context, z);
  const Value rows = zero_padding(Operand(flatten_rows(z), loc), lookup.mask);
  lookup.z = out.z = cosine ? unit_rows(Operand(rows, loc)) : rows;
  const Value stored = stored_codes(tape, loc);
  lookup.codes = compared_codes(stored, loc);
  lookup.random = context.random;
  lookup.progress = context.progress ? context.progress : tape.constant(1.0, {DType::f32, {}}, loc);
  lookup.arguments = config_.estimator.arguments;
  if (origin_ != nullptr) lookup.origin = origin(lookup);
  const Value indices = lookup.indices = assign(lookup);
  if (config_.codebook == CodebookUpdate::alternating && context.training())
    lookup.codes = compared_codes(stepped_codes(stored, out.z, lookup), loc);
  lookup.q = out.q = zero_padding(gather_rows(lookup.codes, indices), lookup.mask);
  if (context.training() || (estimator.rows_only && estimator.exact_forward)) {
    out.z_q = estimator.estimate(lookup);
    if (cosine) out.z_q = estimator.exact_forward ? graft(out.q, unit_rows(out.z_q)) : unit_rows(out.z_q);
    out.z_q = zero_padding(out.z_q, lookup.mask);
  } else {
    out.z_q = out.q;
  }
  out.z_q = reshape(out.z_q, shape);
  out.indices = reshape(indices, index_shape(shape));
  add_losses(out, context.training());
  return out;
}

Value VectorQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  const EstimatorDef& estimator = config_.estimator.def;
  return estimator.loss_term ? estimator.loss_term(loss, quantized.lookup, quantized.z_q) : Value();
}

void VectorQuantizer::update_origin(Value rows, Value mask, StepUpdates& updates) const {
  const Value of_batch = mean_row(rows, mask), origin = updates.next(*origin_), known = updates.next(*origin_known_);
  const Value moved = config_.origin_decay * origin + (1 - config_.origin_decay) * of_batch;
  Value next = where(greater(known, 0.0), moved, of_batch), next_known = maximum(known, 1.0);
  if (mask) {  // a batch without rows has no mean
    const Value any = greater(sum(mask), 0.0);
    next = where(any, next, origin);
    next_known = where(any, next_known, known);
  }
  updates.set(*origin_, next);
  updates.set(*origin_known_, next_known);
}

void VectorQuantizer::revive_codes(const Quantized& quantized, Value random, Value counts, StepUpdates& updates) const {
  const Loc loc = Loc::current();
  const std::int64_t k = config_.codes;
  const bool affine = scale_ != nullptr;
  const Value stored = updates.next(*codebook_);
  CodeState next;
  next.codes = compared_codes(affine ? updates.next(*scale_) * stored + updates.next(*shift_) : stored, loc);
  if (count_ != nullptr) next.count = updates.next(*count_);
  if (sum_ != nullptr) next.sum = updates.next(*sum_);
  if (idle_ != nullptr) next.idle = updates.next(*idle_);
  const Lookup& lookup = quantized.lookup;
  const Revived revived = revive(config_.revival_policy, config_.revival, next,
                                 {.rows = stop_gradient(quantized.z),
                                  .q = stop_gradient(quantized.q),
                                  .indices = lookup.indices,
                                  .counts = counts,
                                  .mask = lookup.mask,
                                  .random = random});
  Value fresh = revived.replacement;
  if (affine) {
    const Value scale = updates.next(*scale_);
    fresh = (fresh - updates.next(*shift_)) / where(less(abs(scale), kLeastScale), kLeastScale, scale);
  }
  updates.set(*codebook_, where(reshape(revived.dead, {k, 1}), fresh, stored));
  if (count_ != nullptr) updates.set(*count_, revived.state.count);
  if (sum_ != nullptr) updates.set(*sum_, revived.state.sum);
  if (idle_ != nullptr) updates.set(*idle_, revived.state.idle);
}

void VectorQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  Tape& tape = *quantized.z.tape;
  const Scope scope(tape, name());
  const Lookup& lookup = quantized.lookup;
  if (origin_ != nullptr) update_origin(stop_gradient(quantized.z), lookup.mask, updates);
  if (config_.codebook == CodebookUpdate::alternating)
    updates.set(*codebook_, stepped_codes(updates.next(*codebook_), quantized.z, lookup));
  Value counts;
  if (averaged(config_.codebook)) {
    const CodeSums batch = sums_by_code(stop_gradient(quantized.z), lookup.indices, config_.codes, lookup.mask);
    const CodeSums averages{updates.next(*count_), updates.next(*sum_)};
    const CodeSums next = config_.codebook == CodebookUpdate::ema
                              ? moved_averages(averages, batch, config_.ema_decay)
                              : stepped_by_ema_loss(averages, batch, config_.ema_decay);
    updates.set(*count_, next.count);
    updates.set(*sum_, next.sum);
    updates.set(*codebook_, averaged_codes(next, config_.ema_eps));
    counts = batch.count;
  }
  if (config_.revival == 0) return;
  if (!counts) counts = code_counts(lookup.indices, config_.codes, lookup.mask);
  if (count_ != nullptr && sum_ == nullptr)
    updates.set(*count_, config_.ema_decay * updates.next(*count_) + (1 - config_.ema_decay) * counts);
  if (idle_ != nullptr) updates.set(*idle_, where(greater(counts, 0.0), 0.0, updates.next(*idle_) + 1.0));
  revive_codes(quantized, context.random, counts, updates);
}

void VectorQuantizer::initialize(const Tensor& rows, Backend& backend) {
  if (rows.shape().rank() != 2 || rows.shape()[1] != config_.dim)
    fail(ErrorKind::shape, "VectorQuantizer '{}': initialize got {}, expected rows of {}", path(),
         to_string(rows.type()), config_.dim);
  const Tensor compared = config_.metric == Metric::cosine ? unit_rows_on_host(rows, config_.dim) : rows;
  if (wants_rows()) {
    const KMeansStart start = config_.init == CodebookInit::kmeans ? KMeansStart::plus_plus : KMeansStart::rows;
    set_codebook(kmeans(compared, config_.codes, backend, {.seed = seed(), .start = start}).centres);
  }
  if (origin_ != nullptr) {
    origin_->set(mean_on_host(compared));
    origin_known_->set(filled({}, 1));
  }
}

void VectorQuantizer::set_codebook(const Tensor& codes) {
  codebook_->set(codes);
  if (transform_ != nullptr) transform_->set(identity(config_.dim));
  if (scale_ != nullptr) scale_->set(filled({config_.dim}, 1));
  if (shift_ != nullptr) shift_->set(filled({config_.dim}, 0));
  if (count_ != nullptr) count_->set(filled({config_.codes}, 1));
  if (sum_ != nullptr) sum_->set(codes);
  if (idle_ != nullptr) idle_->set(filled({config_.codes}, 0));
}

}  // namespace sg
