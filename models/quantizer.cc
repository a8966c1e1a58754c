#include "models/quantizer.h"

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

template <class E>
struct Named {
  std::string_view name;
  E value;
};
constexpr Named<CodebookUpdate> kUpdates[] = {{"loss", CodebookUpdate::loss}, {"ema", CodebookUpdate::ema}};
constexpr Named<CodebookInit> kInits[] = {
    {"uniform", CodebookInit::uniform}, {"normal", CodebookInit::normal}, {"kmeans", CodebookInit::kmeans}};
constexpr Named<Metric> kMetrics[] = {{"euclidean", Metric::euclidean}, {"cosine", Metric::cosine}};

template <class E, std::size_t N>
E by_name(std::string_view what, const Named<E> (&table)[N], std::string_view name) {
  std::string known;
  for (const Named<E>& entry : table) {
    if (entry.name == name) return entry.value;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  fail(ErrorKind::usage, "unknown {} '{}'; known: {}", what, name, known);
}

template <class E, std::size_t N>
std::string_view name_of(const Named<E> (&table)[N], E value) {
  for (const Named<E>& entry : table)
    if (entry.value == value) return entry.name;
  return "?";
}

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
  if (!config.estimator.def.estimate) fail(ErrorKind::usage, "VectorQuantizer: no estimator");
  if (!(config.ema_decay >= 0 && config.ema_decay < 1))
    fail(ErrorKind::usage, "VectorQuantizer: EMA decay {} is not in [0, 1)", config.ema_decay);
  if (!(config.ema_eps >= 0)) fail(ErrorKind::usage, "VectorQuantizer: EMA eps {} is negative", config.ema_eps);
  if (!(config.revival >= 0) || !std::isfinite(config.revival))
    fail(ErrorKind::usage, "VectorQuantizer: revival threshold {} is negative", config.revival);
  if (!(config.normal_deviation > 0))
    fail(ErrorKind::usage, "VectorQuantizer: normal deviation {} is not positive", config.normal_deviation);
}

}  // namespace

std::string_view to_string(CodebookUpdate v) { return name_of(kUpdates, v); }
std::string_view to_string(CodebookInit v) { return name_of(kInits, v); }
std::string_view to_string(Metric v) { return name_of(kMetrics, v); }
CodebookUpdate codebook_update_by_name(std::string_view name) { return by_name("codebook update", kUpdates, name); }
CodebookInit codebook_init_by_name(std::string_view name) { return by_name("codebook initialisation", kInits, name); }
Metric metric_by_name(std::string_view name) { return by_name("metric", kMetrics, name); }

VectorQuantizer::VectorQuantizer(Module& parent, std::string_view name, VectorQuantizerConfig config)
    : Module(parent, name), config_(std::move(config)) {
  check(config_);
  Tensor codes = initial_codes(config_, seed(), full_name("codebook"));
  const bool ema = config_.codebook == CodebookUpdate::ema;
  codebook_ = ema ? &add_state("codebook", codes) : &add_parameter("codebook", codes);
  if (ema || config_.revival > 0) count_ = &add_state("count", Tensor::full({DType::f32, {config_.codes}}, 1));
  if (ema) sum_ = &add_state("sum", codes);
}

Value VectorQuantizer::codes(Tape& tape, Loc loc) const {
  const Value codebook = tape.read(*codebook_, loc);
  return config_.metric == Metric::cosine ? unit_rows(codebook, loc) : codebook;
}

Value VectorQuantizer::lookup(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return gather_rows(Operand(codes(*indices.value().tape, indices.loc()), indices.loc()), indices);
}

Value VectorQuantizer::nearest(Operand z) const {
  const Scope scope(*z.value().tape, name(), z.loc());
  const Value rows =
      config_.metric == Metric::cosine ? unit_rows(z.value(), z.loc()) : z.value();  // as operator() does, bit for bit
  return nearest_code(Operand(rows, z.loc()), Operand(codes(*z.value().tape, z.loc()), z.loc()), config_.metric);
}

Quantized VectorQuantizer::operator()(Operand z) const {
  const Value rows = z.value();
  if (rows.shape().rank() != 2 || rows.shape()[1] != config_.dim)
    throw Error(ErrorKind::shape,
                fmt::format("VectorQuantizer '{}': input is {}, expected rows of {}", path(), to_string(rows.type()),
                            config_.dim),
                z.loc());
  Tape& tape = *rows.tape;
  const Scope scope(tape, name(), z.loc());
  const bool cosine = config_.metric == Metric::cosine;
  const Value codes = this->codes(tape, z.loc());
  Quantized out;
  out.z = cosine ? unit_rows(rows, z.loc()) : rows;
  out.indices = nearest_code(out.z, codes, config_.metric);
  out.q = gather_rows(codes, out.indices);
  out.z_q = config_.estimator(out.z, out.q);
  if (cosine) out.z_q = unit_rows(out.z_q, z.loc());
  out.codebook_loss = codebook_loss(out.z, out.q);
  out.commitment_loss = commitment_loss(out.z, out.q);
  return out;
}

Value VectorQuantizer::update(const Quantized& quantized, Value trained, Value random_state, Loc loc) {
  Tape& tape = *quantized.z.tape;
  const Scope scope(tape, name(), loc);
  const std::int64_t k = config_.codes, n = quantized.z.shape()[0];
  const Value rows = stop_gradient(quantized.z);
  Value codes = trained;
  if (count_ == nullptr) return codes;

  const double keep = config_.ema_decay;
  const Value batch_count = cast(histogram(quantized.indices, k), DType::f32);
  Value count = keep * tape.read(*count_) + (1 - keep) * batch_count;
  Value total;
  if (sum_ != nullptr) {
    total = keep * tape.read(*sum_) + (1 - keep) * scatter_add_rows(quantized.indices, rows, k);
    const Value all = sum(count);
    const Value smoothed = (count + config_.ema_eps) / (all + static_cast<double>(k) * config_.ema_eps) * all;
    codes = total / reshape(smoothed, {k, 1});
  }
  if (config_.revival > 0) {
    // Uniform numbers are f32: above 2^24 rows some are never drawn, and u * n may round up to n.
    const Value draw = floor(uniform(random_state, {k}) * static_cast<double>(n));
    const Value fresh = gather_rows(rows, cast(minimum(draw, static_cast<double>(n - 1)), DType::i32));
    const Value dead = less(count, config_.revival);
    const Value dead_rows = reshape(dead, {k, 1});
    codes = where(dead_rows, fresh, codes);
    count = where(dead, config_.revival, count);
    if (sum_ != nullptr) total = where(dead_rows, config_.revival * fresh, total);
  }
  tape.assign(*count_, count, loc);
  if (sum_ != nullptr) tape.assign(*sum_, total, loc);
  return codes;
}

void VectorQuantizer::initialize(const Tensor& rows, Backend& backend, int iterations) {
  if (rows.shape().rank() != 2 || rows.shape()[1] != config_.dim)
    fail(ErrorKind::shape, "VectorQuantizer '{}': initialize got {}, expected rows of {}", path(),
         to_string(rows.type()), config_.dim);
  if (config_.metric == Metric::euclidean) {
    set_codebook(kmeans(rows, config_.codes, backend, {.iterations = iterations, .seed = seed()}).centres);
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
  set_codebook(kmeans(unit, config_.codes, backend, {.iterations = iterations, .seed = seed()}).centres);
}

void VectorQuantizer::set_codebook(const Tensor& codes) {
  codebook_->set(codes);
  if (count_ != nullptr) count_->set(Tensor::full(count_->type(), 1));
  if (sum_ != nullptr) sum_->set(codes);
}

}  // namespace sg
