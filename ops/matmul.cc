// Matrix product. The op itself takes equal batch extents; matmul() broadcasts and folds before it records one.
#include "ops/matmul.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

Value emit_matmul(Value a, Value b, bool transpose_a, bool transpose_b, Loc loc = {}) {
  return a.tape->emit1(OpId::matmul, {a, b},
                       Attrs{{"transpose_a", std::int64_t{transpose_a}}, {"transpose_b", std::int64_t{transpose_b}}},
                       loc);
}

Shape batch_of(const Shape& s) { return Shape(s.dims().first(static_cast<std::size_t>(s.rank() - 2))); }

Shape with_batch(const Shape& batch, std::int64_t rows, std::int64_t columns) {
  std::vector<std::int64_t> dims = batch.vec();
  dims.insert(dims.end(), {rows, columns});
  return Shape(dims);
}

std::vector<TensorType> infer_product(std::string_view op, std::span<const TensorType> in, const Attrs& attrs) {
  const Shape &a = in[0].shape, &b = in[1].shape;
  const bool ta = attrs.i("transpose_a") != 0, tb = attrs.i("transpose_b") != 0;
  checks::real(op, "a", in[0]);
  checks::same_dtype(op, "a", in[0], "b", in[1]);
  if (a.rank() < 2 || b.rank() < 2)
    fail(ErrorKind::shape, "{}: both sides need at least 2 axes, got {} and {}", op, to_string(a), to_string(b));
  const std::int64_t ka = a[ta ? -2 : -1], kb = b[tb ? -1 : -2];
  if (ka != kb)
    fail(ErrorKind::shape, "{}: inner extents disagree: a {}{} has {}, b {}{} has {}", op, to_string(a),
         ta ? " transposed" : "", ka, to_string(b), tb ? " transposed" : "", kb);
  if (batch_of(a) != batch_of(b))
    fail(ErrorKind::shape, "{}: batch extents {} and {} do not fit", op, to_string(batch_of(a)),
         to_string(batch_of(b)));
  return {{checks::sum_dtype(op, in[0], attrs), with_batch(batch_of(a), a[ta ? -1 : -2], b[tb ? -2 : -1])}};
}

std::vector<TensorType> infer_matmul(std::span<const TensorType> in, const Attrs& attrs) {
  return infer_product("matmul", in, attrs);
}

// C = A' B', where ' is the optional transposition: dA' = G B'^T, dB' = A'^T G, and the same transposed.
std::vector<Value> vjp_matmul(const VjpCtx& ctx) {
  const bool ta = ctx.attrs.i("transpose_a") != 0, tb = ctx.attrs.i("transpose_b") != 0;
  const Value a = ctx.inputs[0], b = ctx.inputs[1], g = ctx.cotangents[0];
  std::vector<Value> grads(2);
  if (ctx.need[0]) grads[0] = ta ? emit_matmul(b, g, tb, true) : emit_matmul(g, b, false, !tb);
  if (ctx.need[1]) grads[1] = tb ? emit_matmul(g, a, true, ta) : emit_matmul(a, g, !ta, false);
  return grads;
}

bool broadcastable(const Shape& a, const Shape& b) {
  for (int i = 1; i <= std::min(a.rank(), b.rank()); ++i)
    if (a[-i] != b[-i] && a[-i] != 1 && b[-i] != 1) return false;
  return true;
}

std::vector<TensorType> infer_matmul_bias(std::span<const TensorType> in, const Attrs& attrs) {
  constexpr std::string_view op = "matmul_bias";
  if (in.size() != 3 && in.size() != 4)
    fail(ErrorKind::usage, "{}: takes (a, b, bias) or (a, b, bias, skip), got {} operands", op, in.size());
  std::vector<TensorType> out = infer_product(op, in.first(2), attrs);
  checks::same_dtype(op, "a", in[0], "bias", in[2]);
  if (in[2].shape != Shape{out[0].shape[-1]})
    fail(ErrorKind::shape, "{}: bias is {}, the product has {} columns", op, to_string(in[2].shape), out[0].shape[-1]);
  if (in.size() == 4) checks::same_type(op, "skip", in[3], "the result", out[0]);
  return out;
}

std::vector<Value> decompose_matmul_bias(Tape&, std::span<const Value> in, const Attrs& attrs) {
  const Value y = emit_matmul(in[0], in[1], attrs.i("transpose_a") != 0, attrs.i("transpose_b") != 0) + in[2];
  return {in.size() > 3 ? y + in[3] : y};
}

}  // namespace

namespace defs {
OpDef matmul_bias() {
  return {.name = "matmul_bias", .arity = kVariadic, .infer = infer_matmul_bias, .decompose = decompose_matmul_bias};
}
OpDef matmul() { return {.name = "matmul", .arity = 2, .infer = infer_matmul, .vjp = vjp_matmul}; }
}  // namespace defs

Value matmul(Operand a, Operand b, bool transpose_a, bool transpose_b) {
  const Loc loc = a.loc();
  const Value va = a.value(), vb = b.value();
  const Shape sa = va.shape(), sb = vb.shape();
  const bool matrices = sa.rank() >= 2 && sb.rank() >= 2;
  const bool inner_fits = matrices && sa[transpose_a ? -2 : -1] == sb[transpose_b ? -1 : -2];
  // Operands that do not fit go to inference as they are, so that the error shows what the user wrote.
  if (!inner_fits || batch_of(sa) == batch_of(sb) || !broadcastable(batch_of(sa), batch_of(sb)))
    return emit_matmul(va, vb, transpose_a, transpose_b, loc);

  if (sb.rank() == 2 && !transpose_a) {  // one b for all of a's rows: one large product
    const std::int64_t rows = batch_of(sa).elements() * sa[-2];
    const Value flat = reshape(Operand(va, loc), Shape{rows, sa[-1]});
    const Value product = emit_matmul(flat, vb, false, transpose_b, loc);
    return reshape(Operand(product, loc), with_batch(batch_of(sa), sa[-2], product.shape()[-1]));
  }
  const Shape batch = broadcast_shapes(batch_of(sa), batch_of(sb));
  const auto expand = [&](Value v, const Shape& s) {
    return batch_of(s) == batch ? v : broadcast(Operand(v, loc), with_batch(batch, s[-2], s[-1]));
  };
  const Value ea = expand(va, sa), eb = expand(vb, sb);
  return emit_matmul(ea, eb, transpose_a, transpose_b, loc);
}

}  // namespace sg
