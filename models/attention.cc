#include "models/attention.h"

#include <cmath>

#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

std::int64_t checked_heads(std::string_view path, std::int64_t dim, std::int64_t heads) {
  if (heads < 1 || dim < 1 || dim % heads != 0)
    fail(ErrorKind::attribute, "MultiHeadAttention '{}': {} numbers do not split evenly into {} heads", path, dim,
         heads);
  return heads;
}

// Order of axes with the last but one and the last but two exchanged.
std::vector<std::int64_t> exchanged(std::int64_t rank) {
  std::vector<std::int64_t> perm(static_cast<std::size_t>(rank));
  for (std::int64_t i = 0; i < rank; ++i) perm[static_cast<std::size_t>(i)] = i;
  std::swap(perm[static_cast<std::size_t>(rank - 2)], perm[static_cast<std::size_t>(rank - 3)]);
  return perm;
}

}  // namespace

Value attention(Operand q, Operand k, Operand v, Value bias, double scale) {
  const Loc loc = q.loc();
  const auto at = [loc](Value x) { return Operand(x, loc); };
  const Shape shape = q.value().shape();
  if (shape.rank() < 2)
    fail(ErrorKind::shape, "attention: queries are {}, expected (B...,T,dk)", to_string(q.value().type()));
  if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(shape[-1]));
  // The queries are scaled, not the scores: there are fewer of them.
  const Value scaled = scale == 1 ? q.value() : Operand(scale, loc) * q;
  Value scores = matmul(at(scaled), k, false, true);
  if (bias) scores = at(scores) + at(bias);
  return matmul(at(softmax(at(scores))), v);
}

Value causal_bias(Tape& tape, std::int64_t t, DType dtype, Loc loc) {
  if (t < 1) fail(ErrorKind::shape, "causal_bias: {} positions, at least 1 is needed", t);
  Tensor bias({dtype, {t, t}});
  for (std::int64_t i = 0; i < t; ++i)
    for (std::int64_t j = i + 1; j < t; ++j) bias.set(i * t + j, kMaskedScore);
  return tape.constant(bias, loc);
}

MultiHeadAttention::MultiHeadAttention(Module& parent, std::string_view name, std::int64_t dim, std::int64_t heads,
                                       bool bias)
    : Module(parent, name),
      heads_(checked_heads(path(), dim, heads)),
      dim_(dim),
      query_(*this, "query", dim, dim, bias),
      key_(*this, "key", dim, dim, bias),
      value_(*this, "value", dim, dim, bias),
      out_(*this, "out", dim, dim, bias) {}

Value MultiHeadAttention::split(const Linear& projection, const Operand& x) const {
  const Shape shape = x.value().shape();
  if (shape.rank() < 2 || shape[-1] != dim_)
    fail(ErrorKind::shape, "MultiHeadAttention '{}': input is {}, expected (B...,T,{})", path(),
         to_string(x.value().type()), dim_);
  std::vector<std::int64_t> by_head = shape.vec();
  by_head.back() = heads_;
  by_head.push_back(dim_ / heads_);
  const Value split = reshape(Operand(projection(x), x.loc()), by_head);
  return transpose(Operand(split, x.loc()), exchanged(split.shape().rank()));
}

Value MultiHeadAttention::merge(Operand out) const {
  const Value rows = transpose(out, exchanged(out.value().shape().rank()));
  std::vector<std::int64_t> merged = rows.shape().vec();
  merged.pop_back();
  merged.back() = dim_;
  return out_(Operand(reshape(Operand(rows, out.loc()), merged), out.loc()));
}

Value MultiHeadAttention::operator()(Operand x, Operand context, Value bias) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  const auto at = [&x](Value v) { return Operand(v, x.loc()); };
  return merge(at(attention(at(split(query_, x)), at(split(key_, context)), at(split(value_, context)), bias)));
}

}  // namespace sg
