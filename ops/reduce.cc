// Reductions: sum, max and min over any axes, argmax and argmin over one, quantiles of everything, and what is composed
// of them (mean, norm, dot).
#include "ops/reduce.h"

#include <algorithm>

#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

using Types = std::vector<TensorType>;
using Values = std::vector<Value>;

// The shape with the axes reduced to extents of 1.
Shape kept_shape(Shape shape, std::span<const std::int64_t> axes) {
  for (const std::int64_t a : axes) shape = shape.with(static_cast<int>(a), 1);
  return shape;
}

void check_axis(std::string_view op, std::int64_t axis, int rank) {
  if (axis < 0 || axis >= rank)
    fail(ErrorKind::attribute, "{}: axis {} does not exist in an operand of rank {}", op, axis, rank);
}

Shape dropped_shape(const Shape& shape, std::span<const std::int64_t> axes) {
  std::vector<std::int64_t> dims;
  for (int i = 0; i < shape.rank(); ++i)
    if (std::find(axes.begin(), axes.end(), i) == axes.end()) dims.push_back(shape[i]);
  return Shape(dims);
}

template <OpId op, bool needs_elements>
Types infer_reduction(std::span<const TensorType> in, const Attrs& attrs) {
  const Shape& shape = in[0].shape;
  const auto& axes = attrs.ints("axes");
  for (std::size_t i = 0; i < axes.size(); ++i) {
    check_axis(op_def(op).name, axes[i], shape.rank());
    if (i > 0 && axes[i] <= axes[i - 1])
      fail(ErrorKind::attribute, "{}: axis {} is given twice or out of order", op_def(op).name, axes[i]);
    if (needs_elements && shape[static_cast<int>(axes[i])] == 0)
      fail(ErrorKind::shape, "{}: axis {} of {} has no elements", op_def(op).name, axes[i], to_string(shape));
  }
  return {{in[0].dtype, attrs.i("keep") != 0 ? kept_shape(shape, axes) : dropped_shape(shape, axes)}};
}

template <OpId op>
Types infer_arg_reduction(std::span<const TensorType> in, const Attrs& attrs) {
  const Shape& shape = in[0].shape;
  const std::int64_t axis = attrs.i("axis");
  check_axis(op_def(op).name, axis, shape.rank());
  if (shape[static_cast<int>(axis)] == 0)
    fail(ErrorKind::shape, "{}: axis {} of {} has no elements", op_def(op).name, axis, to_string(shape));
  return {{DType::i32, dropped_shape(shape, {&axis, 1})}};
}

Types infer_quantile(std::span<const TensorType> in, const Attrs& attrs) {
  const auto& q = attrs.reals("q");
  if (!is_real(in[0].dtype)) fail(ErrorKind::dtype, "quantile: takes a real operand, got {}", to_string(in[0].dtype));
  if (in[0].shape.elements() == 0) fail(ErrorKind::shape, "quantile: the operand has no elements");
  if (q.empty()) fail(ErrorKind::attribute, "quantile: no quantile is asked for");
  for (const double p : q)
    if (!(p >= 0 && p <= 1)) fail(ErrorKind::attribute, "quantile: {} is not in [0, 1]", p);
  return {{in[0].dtype, Shape{static_cast<std::int64_t>(q.size())}}};
}

// A value of the reduced shape under the shape that broadcasts against the reduction's operand.
Value keep_axes(const VjpCtx& c, Value reduced) {
  const Shape kept = kept_shape(c.inputs[0].shape(), c.attrs.ints("axes"));
  return reduced.shape() == kept ? reduced : reshape(reduced, kept);
}

Values sum_vjp(const VjpCtx& c) { return {broadcast(keep_axes(c, c.cotangents[0]), c.inputs[0].shape())}; }

Values extremum_vjp(const VjpCtx& c) {
  const Value x = c.inputs[0];
  const Value hit = equal(x, keep_axes(c, c.outputs[0]));
  const Value ties =
      c.tape.emit1(OpId::sum, {cast(hit, x.dtype())}, {{"axes", c.attrs.ints("axes")}, {"keep", std::int64_t{1}}});
  return {where(hit, keep_axes(c, c.cotangents[0]) / ties, 0.0)};
}

}  // namespace

namespace defs {

OpDef sum() { return {.name = "sum", .arity = 1, .reduction = true, .accumulates = true, .infer = infer_reduction<OpId::sum, false>, .vjp = sum_vjp}; }
OpDef reduce_max() {
  return {.name = "reduce_max", .arity = 1, .reduction = true, .infer = infer_reduction<OpId::reduce_max, true>, .vjp = extremum_vjp};
}
OpDef reduce_min() {
  return {.name = "reduce_min", .arity = 1, .reduction = true, .infer = infer_reduction<OpId::reduce_min, true>, .vjp = extremum_vjp};
}
OpDef argmax() {
  return {.name = "argmax", .arity = 1, .grad = GradKind::piecewise, .infer = infer_arg_reduction<OpId::argmax>};
}
OpDef argmin() {
  return {.name = "argmin", .arity = 1, .grad = GradKind::piecewise, .infer = infer_arg_reduction<OpId::argmin>};
}
OpDef quantile() { return {.name = "quantile", .arity = 1, .grad = GradKind::piecewise, .infer = infer_quantile}; }

}  // namespace defs

namespace {

// Counts negative axes from the end and sorts; none given means all. What is out of range is left for inference to
// report.
Axes resolve_axes(Value x, Axes axes) {
  const std::int64_t rank = x.shape().rank();
  if (axes.empty())
    for (std::int64_t i = 0; i < rank; ++i) axes.push_back(i);
  for (std::int64_t& a : axes)
    if (a < 0 && a >= -rank) a += rank;
  std::sort(axes.begin(), axes.end());
  return axes;
}

Value emit_reduction(OpId op, const Operand& x, Axes axes, bool keep) {
  const Value v = x.value();
  return v.tape->emit1(op, {v}, {{"axes", resolve_axes(v, std::move(axes))}, {"keep", std::int64_t{keep}}}, x.loc());
}

Value emit_arg_reduction(OpId op, const Operand& x, std::int64_t axis) {
  const Value v = x.value();
  return v.tape->emit1(op, {v}, {{"axis", resolve_axes(v, {axis})[0]}}, x.loc());
}

}  // namespace

Value sum(Operand x, Axes axes, bool keep) { return emit_reduction(OpId::sum, x, std::move(axes), keep); }

Value mean(Operand x, Axes axes, bool keep) {
  const Value total = sum(x, std::move(axes), keep);
  const std::int64_t results = total.shape().elements();
  const std::int64_t count = results == 0 ? 0 : x.value().shape().elements() / results;
  return Operand(total, x.loc()) / Operand(static_cast<double>(count), x.loc());
}

Value max(Operand x, Axes axes, bool keep) { return emit_reduction(OpId::reduce_max, x, std::move(axes), keep); }
Value min(Operand x, Axes axes, bool keep) { return emit_reduction(OpId::reduce_min, x, std::move(axes), keep); }
Value argmax(Operand x, std::int64_t axis) { return emit_arg_reduction(OpId::argmax, x, axis); }
Value argmin(Operand x, std::int64_t axis) { return emit_arg_reduction(OpId::argmin, x, axis); }

Value quantile(Operand x, std::vector<double> q) {
  const Value v = x.value();
  return v.tape->emit1(OpId::quantile, {v}, {{"q", std::move(q)}}, x.loc());
}

Value norm(Operand x, Axes axes, bool keep) {
  const Value squares = sum(Operand(square(x), x.loc()), std::move(axes), keep);
  return sqrt(Operand(squares, x.loc()));
}

Value dot(Operand a, Operand b, bool keep) { return sum(Operand(a * b, a.loc()), {-1}, keep); }

}  // namespace sg
