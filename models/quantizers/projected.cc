#include "models/quantizers/projected.h"

#include <cmath>
#include <utility>

#include "models/init.h"
#include "models/losses.h"
#include "models/quantizers/composition.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

const QuantizerConfig& checked(const QuantizerConfig& config) {
  if (config.code_dim < 1)
    fail(ErrorKind::usage, "{} quantizer: codes of {} dimensions: at least one", config.quantizer, config.code_dim);
  if (config.dim < 1) fail(ErrorKind::usage, "{} quantizer: rows of {}: at least one", config.quantizer, config.dim);
  return config;
}

QuantizerConfig in_code_dim(const QuantizerConfig& config) {
  QuantizerConfig book = checked(config);
  book.dim = config.code_dim;
  return book;
}

QuantizerConfig random_book(const QuantizerConfig& config) {
  QuantizerConfig book = in_code_dim(config);
  book.metric = Metric::cosine;
  book.codebook = CodebookUpdate::frozen;
  book.init = CodebookInit::normal;
  book.normal_deviation = 1;
  book.assignment = Assignment::nearest;
  book.estimator = "ste";
  book.revival = book.orthogonal = book.entropy = book.diversity = 0;
  return book;
}

// (A^T A)^-1 A^T of a matrix A (D,C) of full rank, f32, by Gauss-Jordan elimination with pivots.
Tensor pseudo_inverse(const Tensor& a) {
  const std::int64_t d = a.shape()[0], c = a.shape()[1], width = c + d;
  std::vector<double> m(static_cast<std::size_t>(c * width));  // [A^T A | A^T]
  const auto at = [&](std::int64_t row, std::int64_t column) -> double& {
    return m[static_cast<std::size_t>(row * width + column)];
  };
  for (std::int64_t i = 0; i < c; ++i)
    for (std::int64_t r = 0; r < d; ++r) {
      at(i, c + r) = a.at(r * c + i);
      for (std::int64_t j = 0; j < c; ++j) at(i, j) += a.at(r * c + i) * a.at(r * c + j);
    }
  for (std::int64_t i = 0; i < c; ++i) {
    std::int64_t pivot = i;
    for (std::int64_t r = i; r < c; ++r)
      if (std::abs(at(r, i)) > std::abs(at(pivot, i))) pivot = r;
    for (std::int64_t j = 0; j < width; ++j) std::swap(at(i, j), at(pivot, j));
    const double scale = 1 / at(i, i);
    for (std::int64_t j = 0; j < width; ++j) at(i, j) *= scale;
    for (std::int64_t r = 0; r < c; ++r) {
      const double factor = at(r, i);
      if (r == i || factor == 0) continue;
      for (std::int64_t j = 0; j < width; ++j) at(r, j) -= factor * at(i, j);
    }
  }
  Tensor out({DType::f32, {c, d}});
  for (std::int64_t i = 0; i < c; ++i)
    for (std::int64_t r = 0; r < d; ++r) out.set(i * d + r, at(i, c + r));
  return out;
}

}  // namespace

FactorisedQuantizer::FactorisedQuantizer(Module& parent, std::string_view name, QuantizerConfig config)
    : Quantizer(parent, name),
      dim_(checked(config).dim),
      in_(*this, "in", config.dim, config.code_dim),
      book_(*this, "book", in_code_dim(config)),
      out_(*this, "out", config.code_dim, config.dim) {}

Quantized FactorisedQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "FactorisedQuantizer", z);
  const Loc loc = z.loc();
  const Scope scope(*z.value().tape, name(), loc);
  Quantized out;
  const Value mask = flatten_mask(context, z);
  const Value rows = zero_padding(Operand(flatten_rows(z), loc), mask);
  QuantizeContext inner = context;
  inner.mask = mask;
  const Quantized& part = out.parts.emplace_back(book_(Operand(in_(Operand(rows, loc)), loc), inner));
  out.z_q = shaped_like(z, out_(Operand(part.z_q, loc)), mask);
  out.indices = reshape(Operand(part.indices, loc), index_shape(z.value().shape()));
  out.losses = part.losses;
  out.z = part.z;
  out.q = part.q;
  return out;
}

Value FactorisedQuantizer::decode(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return out_(Operand(book_.decode(indices), indices.loc()));
}

Value FactorisedQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return book_.requantize(indices);
}

void FactorisedQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  const Scope scope(*quantized.z.tape, name());
  QuantizeContext inner = context;
  inner.mask = quantized.parts[0].lookup.mask;
  book_.update(quantized.parts[0], inner, updates);
}

Value FactorisedQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  return book_.estimator_term(loss, quantized.parts[0]);
}

void FactorisedQuantizer::initialize(const Tensor& rows, Backend& backend) {
  book_.initialize(evaluate_rows(rows, backend, [&](Value r) { return in_(r); }), backend);
}

RandomProjectionQuantizer::RandomProjectionQuantizer(Module& parent, std::string_view name, QuantizerConfig config)
    : Quantizer(parent, name), config_(std::move(config)), book_(*this, "book", random_book(config_)) {
  check_sum_estimator("RandomProjectionQuantizer", config_.estimator);
  if (config_.code_dim > config_.dim)
    fail(ErrorKind::usage, "RandomProjectionQuantizer: codes of {} dimensions: at most the {} of the rows",
         config_.code_dim, config_.dim);
  const double bound = std::sqrt(6.0 / static_cast<double>(config_.dim + config_.code_dim));
  const Tensor a = uniform_init({config_.dim, config_.code_dim}, -bound, bound, seed(), full_name("projection"));
  projection_ = &add_state("projection", a);
  back_projection_ = &add_state("back_projection", pseudo_inverse(a));
}

Value RandomProjectionQuantizer::back(Value codes) const {
  std::vector<std::int64_t> shape = codes.shape().vec();
  shape.back() = config_.dim;
  return reshape(matmul(flatten_rows(codes), codes.tape->read(*back_projection_)), shape);
}

Quantized RandomProjectionQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "RandomProjectionQuantizer", z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  Tape& tape = *z.value().tape;
  const Scope scope(tape, name(), loc);
  QuantizeContext rows = context;
  rows.mask = flatten_mask(context, z);
  Quantized out;
  out.z = zero_padding(Operand(flatten_rows(z), loc), rows.mask);
  const Value projected = matmul(Operand(stop_gradient(Operand(out.z, loc)), loc), tape.read(*projection_, loc));
  const Quantized& part = out.parts.emplace_back(book_(Operand(projected, loc), rows));
  out.q = back(part.q);
  out.lookup = sum_lookup(config_.estimator, out.z, out.q, rows.mask, context);
  out.z_q = shaped_like(z, estimate_sum(config_.estimator, out.lookup, context), rows.mask);
  out.indices = reshape(Operand(part.indices, loc), index_shape(shape));
  out.losses = {{"commitment", commitment_loss(out.z, out.q, rows.mask), config_.gamma}};
  return out;
}

Value RandomProjectionQuantizer::decode(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return back(book_.decode(indices));
}

Value RandomProjectionQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return book_.requantize(indices);
}

Value RandomProjectionQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  const EstimatorDef& estimator = config_.estimator.def;
  return estimator.loss_term ? estimator.loss_term(loss, quantized.lookup, quantized.z_q) : Value();
}

}  // namespace sg
