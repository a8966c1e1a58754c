// Rows by index, counting, and the nearest-code search. gather_rows and scatter_add_rows are each other's derivative;
// what returns indices or depends on nothing but indices is piecewise.
#include "ops/index.h"

#include "ops/checks.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"

namespace sg {
namespace {

using Types = std::vector<TensorType>;

Shape with_last(std::string_view op, const Shape& s, std::int64_t extent) {
  if (s.rank() == Shape::kMaxRank)
    fail(ErrorKind::shape, "{}: indices {} leave no axis for the rows", op, to_string(s));
  std::vector<std::int64_t> dims = s.vec();
  dims.push_back(extent);
  return Shape(dims);
}

Types infer_gather_rows(std::span<const TensorType> in, const Attrs&) {
  checks::real("gather_rows", "table", in[0]);
  checks::rank("gather_rows", "table", in[0], 2, "(K,D)");
  checks::integer("gather_rows", "indices", in[1]);
  return {{in[0].dtype, with_last("gather_rows", in[1].shape, in[0].shape[1])}};
}

std::vector<Value> vjp_gather_rows(const VjpCtx& ctx) {
  return {scatter_add_rows(ctx.inputs[1], ctx.cotangents[0], ctx.inputs[0].shape()[0]), Value{}};
}

Types infer_scatter_add_rows(std::span<const TensorType> in, const Attrs& attrs) {
  const Shape &indices = in[0].shape, &updates = in[1].shape;
  checks::integer("scatter_add_rows", "indices", in[0]);
  checks::real("scatter_add_rows", "updates", in[1]);
  if (updates.rank() == 0 || with_last("scatter_add_rows", indices, updates[-1]) != updates)
    fail(ErrorKind::shape, "scatter_add_rows: indices {} need updates of {} and one more axis, got {}",
         to_string(indices), to_string(indices), to_string(updates));
  if (attrs.i("rows") < 1)
    fail(ErrorKind::attribute, "scatter_add_rows: rows must be at least 1, got {}", attrs.i("rows"));
  return {{in[1].dtype, Shape{attrs.i("rows"), updates[-1]}}};
}

std::vector<Value> vjp_scatter_add_rows(const VjpCtx& ctx) {
  return {Value{}, gather_rows(ctx.cotangents[0], ctx.inputs[0])};
}

Types infer_one_hot(std::span<const TensorType> in, const Attrs& attrs) {
  checks::integer("one_hot", "indices", in[0]);
  if (attrs.i("depth") < 1) fail(ErrorKind::attribute, "one_hot: depth must be at least 1, got {}", attrs.i("depth"));
  return {{static_cast<DType>(attrs.i("dtype")), with_last("one_hot", in[0].shape, attrs.i("depth"))}};
}

Types infer_histogram(std::span<const TensorType> in, const Attrs& attrs) {
  checks::integer("histogram", "indices", in[0]);
  if (attrs.i("bins") < 1) fail(ErrorKind::attribute, "histogram: bins must be at least 1, got {}", attrs.i("bins"));
  return {{DType::i32, Shape{attrs.i("bins")}}};
}

Types infer_nearest_code(std::span<const TensorType> in, const Attrs&) {
  const Shape &z = in[0].shape, &codes = in[1].shape;
  checks::real("nearest_code", "z", in[0]);
  checks::same_dtype("nearest_code", "z", in[0], "codes", in[1]);
  checks::rank("nearest_code", "z", in[0], 2, "(N,D)");
  checks::rank("nearest_code", "codes", in[1], 2, "(K,D)");
  if (z[1] != codes[1])
    fail(ErrorKind::shape, "nearest_code: rows of z have {} elements, codes have {}", z[1], codes[1]);
  if (codes[0] < 1) fail(ErrorKind::shape, "nearest_code: there is no code in {}", to_string(codes));
  return {{DType::i32, Shape{z[0]}}};
}

// Euclidean: |z - c|^2 less |z|^2, which is the same for all codes of a row. Cosine: z.c/|c|; a code of zeros, which
// has no direction, counts as orthogonal to everything.
std::vector<Value> decompose_nearest_code(Tape&, std::span<const Value> in, const Attrs& attrs) {
  const Value z = in[0], codes = in[1];
  const bool cosine = attrs.i("cosine") != 0;
  const Value squares = sum(square(codes), {1}, cosine);
  if (!cosine) return {argmin(squares - 2.0 * matmul(z, codes, false, true), 1)};
  const Value directions = codes * rsqrt(where(greater(squares, 0.0), squares, 1.0));
  return {argmax(matmul(z, directions, false, true), 1)};
}

}  // namespace

namespace defs {

OpDef gather_rows() { return {.name = "gather_rows", .arity = 2, .moves = true, .infer = infer_gather_rows, .vjp = vjp_gather_rows}; }
OpDef scatter_add_rows() {
  return {.name = "scatter_add_rows", .arity = 2, .infer = infer_scatter_add_rows, .vjp = vjp_scatter_add_rows};
}
OpDef one_hot() { return {.name = "one_hot", .arity = 1, .grad = GradKind::piecewise, .infer = infer_one_hot}; }
OpDef histogram() { return {.name = "histogram", .arity = 1, .grad = GradKind::piecewise, .infer = infer_histogram}; }
OpDef nearest_code() {
  return {.name = "nearest_code",
          .arity = 2,
          .grad = GradKind::piecewise,
          .infer = infer_nearest_code,
          .decompose = decompose_nearest_code};
}

}  // namespace defs

Value gather_rows(Operand table, Operand indices) {
  const Value v = table.value();
  return v.tape->emit1(OpId::gather_rows, {v, indices.value()}, {}, table.loc());
}

Value scatter_add_rows(Operand indices, Operand updates, std::int64_t rows) {
  const Value v = indices.value();
  return v.tape->emit1(OpId::scatter_add_rows, {v, updates.value()}, Attrs{{"rows", rows}}, indices.loc());
}

Value one_hot(Operand indices, std::int64_t depth, DType dtype) {
  const Value v = indices.value();
  return v.tape->emit1(OpId::one_hot, {v}, Attrs{{"depth", depth}, {"dtype", static_cast<std::int64_t>(dtype)}},
                       indices.loc());
}

Value histogram(Operand indices, std::int64_t bins) {
  const Value v = indices.value();
  return v.tape->emit1(OpId::histogram, {v}, Attrs{{"bins", bins}}, indices.loc());
}

Value nearest_code(Operand z, Operand codes, Metric metric) {
  const Value v = z.value();
  return v.tape->emit1(OpId::nearest_code, {v, codes.value()},
                       Attrs{{"cosine", std::int64_t{metric == Metric::cosine}}}, z.loc());
}

}  // namespace sg
