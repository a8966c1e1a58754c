#include "models/quantizers/grouped.h"

#include "models/quantizers/composition.h"
#include "models/quantizers/residual.h"
#include "ops/elementwise.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

QuantizerConfig config_of_group(const QuantizerConfig& config) {
  if (config.heads < 1) fail(ErrorKind::usage, "{} quantizer: {} heads: at least one", config.quantizer, config.heads);
  if (config.dim % config.heads != 0)
    fail(ErrorKind::usage, "{} quantizer: {} heads do not divide rows of {} evenly", config.quantizer, config.heads,
         config.dim);
  QuantizerConfig group = config;
  group.dim = config.dim / config.heads;
  return group;
}

// The last extent of x becomes `extents`.
Value split_last(Operand x, std::vector<std::int64_t> extents) {
  const Shape& shape = x.value().shape();
  std::vector<std::int64_t> dims(shape.begin(), shape.end() - 1);
  dims.insert(dims.end(), extents.begin(), extents.end());
  return reshape(x, dims);
}

// S + [H, D] -> S + [H D]
Value join_last(Operand x) {
  const Shape& shape = x.value().shape();
  std::vector<std::int64_t> dims(shape.begin(), shape.end() - 2);
  dims.push_back(shape[-1] * shape[-2]);
  return reshape(x, dims);
}

Value concat_last(const std::vector<Value>& parts, Loc loc) { return concat(parts, parts[0].shape().rank() - 1, loc); }

void check_indices(const Quantizer& q, std::string_view what, Operand indices) {
  const Shape& shape = indices.value().shape();
  if (q.books() > 1 && (shape.rank() < 1 || shape[-1] != q.books()))
    throw Error(ErrorKind::shape,
                fmt::format("{} '{}': indices are {}, expected {} of each row", what, q.path(),
                            to_string(indices.value().type()), q.books()),
                indices.loc());
}

}  // namespace

SharedHeadsQuantizer::SharedHeadsQuantizer(Module& parent, std::string_view name, QuantizerConfig config)
    : Quantizer(parent, name),
      dim_(config.dim),
      heads_(config.heads),
      book_(*this, "shared", config_of_group(config)) {}

QuantizeContext SharedHeadsQuantizer::pieces(const QuantizeContext& context) const {
  QuantizeContext inner = context;
  if (context.mask) {
    std::vector<std::int64_t> shape = context.mask.shape().vec();
    shape.push_back(1);
    const Value column = reshape(context.mask, Shape(shape));
    shape.back() = heads_;
    inner.mask = broadcast(column, Shape(shape));
  }
  return inner;
}

Quantized SharedHeadsQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "SharedHeadsQuantizer", z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  const Scope scope(*z.value().tape, name(), loc);
  Quantized out;
  Quantized& part =
      out.parts.emplace_back(book_(Operand(split_last(z, {heads_, dim_ / heads_}), loc), pieces(context)));
  out.z_q = reshape(Operand(part.z_q, loc), shape);
  out.indices = reshape(Operand(part.indices, loc), index_shape(shape));
  out.losses = part.losses;
  out.z = part.z;
  out.q = part.q;
  return out;
}

Value SharedHeadsQuantizer::decode(Operand indices) const {
  check_indices(*this, "SharedHeadsQuantizer", indices);
  const Scope scope(*indices.value().tape, name(), indices.loc());
  const Value codes = book_.decode(indices);
  return heads_ == 1 ? codes : join_last(Operand(codes, indices.loc()));
}

Value SharedHeadsQuantizer::requantize(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return book_.requantize(indices);
}

void SharedHeadsQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  const Scope scope(*quantized.z.tape, name());
  book_.update(quantized.parts[0], pieces(context), updates);
}

Value SharedHeadsQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  return book_.estimator_term(loss, quantized.parts[0]);
}

void SharedHeadsQuantizer::initialize(const Tensor& rows, Backend& backend) {
  book_.initialize(evaluate_rows(rows, backend, [&](Value r) { return reshape(r, {-1, dim_ / heads_}); }), backend);
}

GroupedQuantizer::GroupedQuantizer(Module& parent, std::string_view name, const QuantizerConfig& config,
                                   const MakePart& make)
    : Quantizer(parent, name), dim_(config.dim) {
  const QuantizerConfig group = config_of_group(config);
  for (std::int64_t i = 1; i <= config.heads; ++i) parts_.push_back(make(*this, fmt::format("group{}", i), group));
}

Value GroupedQuantizer::slice_of(Operand x, std::int64_t part) const {
  const Shape& shape = x.value().shape();
  const std::int64_t width = shape[-1] / heads();
  return heads() == 1 ? x.value() : slice_axis(x, shape.rank() - 1, part * width, (part + 1) * width);
}

Value GroupedQuantizer::indices_of(Operand indices, std::int64_t part) const {
  if (heads() == 1) return indices.value();
  const Value mine = slice_of(indices, part);
  return parts_[0]->books() > 1 ? mine : split_last(Operand(mine, indices.loc()), {});
}

Quantized GroupedQuantizer::operator()(Operand z, const QuantizeContext& context) const {
  check_dim(*this, "GroupedQuantizer", z);
  const Loc loc = z.loc();
  const Shape shape = z.value().shape();
  const Scope scope(*z.value().tape, name(), loc);
  Quantized out;
  std::vector<Value> z_q, indices, rows, codes;
  for (std::int64_t i = 0; i < heads(); ++i) {
    const Quantized& p = out.parts.emplace_back(part(i)(Operand(slice_of(z, i), loc), context));
    z_q.push_back(p.z_q);
    indices.push_back(reshape(Operand(p.indices, loc), {-1, part(i).books()}));
    rows.push_back(p.z);
    codes.push_back(p.q);
  }
  out.z_q = concat_last(z_q, loc);
  out.indices = reshape(Operand(concat_last(indices, loc), loc), index_shape(shape));
  const std::int64_t width = rows[0].shape()[-1];
  out.z = reshape(Operand(concat_last(rows, loc), loc), {-1, width});
  out.q = reshape(Operand(concat_last(codes, loc), loc), {-1, width});
  out.losses = mean_losses(out.parts);
  return out;
}

Value GroupedQuantizer::decode(Operand indices) const {
  check_indices(*this, "GroupedQuantizer", indices);
  const Scope scope(*indices.value().tape, name(), indices.loc());
  std::vector<Value> codes;
  for (std::int64_t i = 0; i < heads(); ++i)
    codes.push_back(part(i).decode(Operand(indices_of(indices, i), indices.loc())));
  return concat_last(codes, indices.loc());
}

Value GroupedQuantizer::requantize(Operand indices) const {
  check_indices(*this, "GroupedQuantizer", indices);
  const Scope scope(*indices.value().tape, name(), indices.loc());
  std::vector<Value> found;
  for (std::int64_t i = 0; i < heads(); ++i) {
    const Value again = part(i).requantize(Operand(indices_of(indices, i), indices.loc()));
    found.push_back(reshape(Operand(again, indices.loc()), {-1, part(i).books()}));
  }
  return reshape(Operand(concat_last(found, indices.loc()), indices.loc()), indices.value().shape());
}

void GroupedQuantizer::update(const Quantized& quantized, const QuantizeContext& context, StepUpdates& updates) {
  const Scope scope(*quantized.z.tape, name());
  for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i]->update(quantized.parts[i], context, updates);
}

Value GroupedQuantizer::estimator_term(Value loss, const Quantized& quantized) const {
  Value total;
  for (std::size_t i = 0; i < parts_.size(); ++i)
    if (const Value term = parts_[i]->estimator_term(loss, quantized.parts[i])) total = total ? total + term : term;
  return total;
}

void GroupedQuantizer::initialize(const Tensor& rows, Backend& backend) {
  for (std::int64_t i = 0; i < heads(); ++i)
    part(i).initialize(evaluate_rows(rows, backend, [&](Value r) { return slice_of(r, i); }), backend);
}

std::unique_ptr<Quantizer> make_multi_head(Module& parent, std::string_view name, const QuantizerConfig& config) {
  if (config.shared_books) return std::make_unique<SharedHeadsQuantizer>(parent, name, config);
  return make_product(parent, name, config);
}

std::unique_ptr<Quantizer> make_product(Module& parent, std::string_view name, const QuantizerConfig& config) {
  if (config.shared_books)
    fail(ErrorKind::usage, "{} quantizer: each group has its own codebook; take multi-head for shared books",
         config.quantizer);
  return std::make_unique<GroupedQuantizer>(parent, name, config,
                                            [](Module& group, std::string_view in_group, const QuantizerConfig& c) {
                                              return std::make_unique<VectorQuantizer>(group, in_group, c);
                                            });
}

std::unique_ptr<Quantizer> make_grouped_residual(Module& parent, std::string_view name, const QuantizerConfig& config) {
  return std::make_unique<GroupedQuantizer>(parent, name, config,
                                            [](Module& group, std::string_view in_group, const QuantizerConfig& c) {
                                              return std::make_unique<ResidualQuantizer>(group, in_group, c);
                                            });
}

}  // namespace sg
