// Ops that move elements. The set is closed under VJP: reshape and transpose are inverted, broadcast becomes a sum,
// slice and pad (with interior elements for steps) are each other's derivative, concat becomes slices.
#include "ops/shape_ops.h"

#include <algorithm>

#include "ops/checks.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

using Ints = std::vector<std::int64_t>;
using Types = std::vector<TensorType>;

Ints ones(int n) { return Ints(static_cast<std::size_t>(n), 1); }
Ints zeros(int n) { return Ints(static_cast<std::size_t>(n), 0); }

Value emit_slice(Value x, Ints start, Ints stop, Ints step, Loc loc) {
  return x.tape->emit1(OpId::slice, {x},
                       Attrs{{"start", std::move(start)}, {"stop", std::move(stop)}, {"step", std::move(step)}}, loc);
}

Value emit_pad(Value x, Ints before, Ints after, Ints interior, double value, Loc loc) {
  return x.tape->emit1(OpId::pad, {x},
                       Attrs{{"before", std::move(before)},
                             {"after", std::move(after)},
                             {"interior", std::move(interior)},
                             {"value", value}},
                       loc);
}

// The extent of n elements spread with `interior` elements between neighbours.
std::int64_t spread(std::int64_t n, std::int64_t interior) { return n == 0 ? 0 : n + (n - 1) * interior; }

Types infer_reshape(std::span<const TensorType> in, const Attrs& attrs) {
  const Ints& to = attrs.ints("shape");
  if (to.size() > static_cast<std::size_t>(Shape::kMaxRank))
    fail(ErrorKind::shape, "reshape: {} has more than {} axes", checks::list(to), Shape::kMaxRank);
  const bool known = std::all_of(to.begin(), to.end(), [](std::int64_t e) { return e >= 0; });
  if (!known || Shape(to).elements() != in[0].shape.elements())
    fail(ErrorKind::shape, "reshape: {} ({} elements) does not fit {}", to_string(in[0].shape), in[0].shape.elements(),
         checks::list(to));
  return {{in[0].dtype, Shape(to)}};
}

std::vector<Value> vjp_reshape(const VjpCtx& ctx) { return {reshape(ctx.cotangents[0], ctx.inputs[0].shape())}; }

Types infer_transpose(std::span<const TensorType> in, const Attrs& attrs) {
  const Ints& perm = attrs.ints("perm");
  const Shape& shape = in[0].shape;
  Ints sorted = perm;
  std::sort(sorted.begin(), sorted.end());
  bool ok = static_cast<int>(perm.size()) == shape.rank();
  for (std::size_t i = 0; ok && i < sorted.size(); ++i) ok = sorted[i] == static_cast<std::int64_t>(i);
  if (!ok)
    fail(ErrorKind::attribute, "transpose: {} is not a permutation of the {} axes of {}", checks::list(perm),
         shape.rank(), to_string(shape));
  Ints out(perm.size());
  for (std::size_t i = 0; i < perm.size(); ++i) out[i] = shape[static_cast<int>(perm[i])];
  return {{in[0].dtype, Shape(out)}};
}

std::vector<Value> vjp_transpose(const VjpCtx& ctx) {
  const Ints perm = ctx.attrs.ints("perm");
  Ints inverse(perm.size());
  for (std::size_t i = 0; i < perm.size(); ++i)
    inverse[static_cast<std::size_t>(perm[i])] = static_cast<std::int64_t>(i);
  return {transpose(ctx.cotangents[0], inverse)};
}

Types infer_broadcast(std::span<const TensorType> in, const Attrs& attrs) {
  const Shape& from = in[0].shape;
  const Shape to(attrs.ints("shape"));
  bool ok = from.rank() <= to.rank();
  for (int i = 1; ok && i <= from.rank(); ++i) ok = from[-i] == to[-i] || from[-i] == 1;
  if (!ok) fail(ErrorKind::shape, "broadcast: {} does not broadcast to {}", to_string(from), to_string(to));
  return {{in[0].dtype, to}};
}

std::vector<Value> vjp_broadcast(const VjpCtx& ctx) {
  const Shape shape = ctx.inputs[0].shape();
  return {sum_to_shape(ctx.cotangents[0], shape, Loc{})};
}

Types infer_slice(std::span<const TensorType> in, const Attrs& attrs) {
  const Shape& shape = in[0].shape;
  const Ints &start = attrs.ints("start"), &stop = attrs.ints("stop"), &step = attrs.ints("step");
  const auto rank = static_cast<std::size_t>(shape.rank());
  if (start.size() != rank || stop.size() != rank || step.size() != rank)
    fail(ErrorKind::attribute, "slice: start {}, stop {} and step {} need one entry for each axis of {}",
         checks::list(start), checks::list(stop), checks::list(step), to_string(shape));
  Ints out(rank);
  for (std::size_t i = 0; i < rank; ++i) {
    const std::int64_t extent = shape[static_cast<int>(i)];
    if (start[i] < 0 || stop[i] < start[i] || stop[i] > extent)
      fail(ErrorKind::attribute, "slice: [{}, {}) is outside axis {} of {}", start[i], stop[i], i, to_string(shape));
    if (step[i] < 1) fail(ErrorKind::attribute, "slice: step {} on axis {} must be at least 1", step[i], i);
    out[i] = (stop[i] - start[i] + step[i] - 1) / step[i];
  }
  return {{in[0].dtype, Shape(out)}};
}

std::vector<Value> vjp_slice(const VjpCtx& ctx) {
  const Value g = ctx.cotangents[0];
  const Shape in = ctx.inputs[0].shape(), out = g.shape();
  const Ints start = ctx.attrs.ints("start"), step = ctx.attrs.ints("step");
  Ints after(start.size()), interior(start.size());
  for (std::size_t i = 0; i < start.size(); ++i) {
    interior[i] = step[i] - 1;
    after[i] = in[static_cast<int>(i)] - start[i] - spread(out[static_cast<int>(i)], interior[i]);
  }
  return {emit_pad(g, start, after, interior, 0.0, Loc{})};
}

Types infer_pad(std::span<const TensorType> in, const Attrs& attrs) {
  const Shape& shape = in[0].shape;
  const Ints &before = attrs.ints("before"), &after = attrs.ints("after"), &interior = attrs.ints("interior");
  checks::entries("pad", "before", before, shape.rank(), 0);
  checks::entries("pad", "after", after, shape.rank(), 0);
  checks::entries("pad", "interior", interior, shape.rank(), 0);
  Ints out(before.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = before[i] + spread(shape[static_cast<int>(i)], interior[i]) + after[i];
  return {{in[0].dtype, Shape(out)}};
}

std::vector<Value> vjp_pad(const VjpCtx& ctx) {
  const Shape in = ctx.inputs[0].shape();
  const Ints before = ctx.attrs.ints("before"), interior = ctx.attrs.ints("interior");
  Ints stop(before.size()), step(before.size());
  for (std::size_t i = 0; i < before.size(); ++i) {
    stop[i] = before[i] + spread(in[static_cast<int>(i)], interior[i]);
    step[i] = interior[i] + 1;
  }
  return {emit_slice(ctx.cotangents[0], before, stop, step, Loc{})};
}

Types infer_concat(std::span<const TensorType> in, const Attrs& attrs) {
  const std::int64_t axis = attrs.i("axis");
  const Shape& first = in[0].shape;
  if (axis < 0 || axis >= first.rank())
    fail(ErrorKind::attribute, "concat: axis {} is out of range for rank {}", axis, first.rank());
  std::int64_t extent = 0;
  for (const TensorType& t : in) {
    checks::same_dtype("concat", "the first part", in[0], "another part", t);
    if (t.shape.rank() != first.rank() ||
        t.shape.with(static_cast<int>(axis), 0) != first.with(static_cast<int>(axis), 0))
      fail(ErrorKind::shape, "concat: {} and {} differ outside axis {}", to_string(first), to_string(t.shape), axis);
    extent += t.shape[static_cast<int>(axis)];
  }
  return {{in[0].dtype, first.with(static_cast<int>(axis), extent)}};
}

std::vector<Value> vjp_concat(const VjpCtx& ctx) {
  const std::int64_t axis = ctx.attrs.i("axis");
  std::vector<Value> grads(ctx.inputs.size());
  std::int64_t start = 0;
  for (std::size_t i = 0; i < grads.size(); ++i) {
    const std::int64_t stop = start + ctx.inputs[i].shape()[static_cast<int>(axis)];
    if (ctx.need[i]) grads[i] = slice_axis(ctx.cotangents[0], axis, start, stop);
    start = stop;
  }
  return grads;
}

}  // namespace

namespace defs {

OpDef reshape() {
  return {.name = "reshape", .arity = 1, .moves = true, .role = Role::alias, .infer = infer_reshape, .vjp = vjp_reshape};
}
OpDef transpose() { return {.name = "transpose", .arity = 1, .moves = true, .infer = infer_transpose, .vjp = vjp_transpose}; }
OpDef broadcast() { return {.name = "broadcast", .arity = 1, .moves = true, .infer = infer_broadcast, .vjp = vjp_broadcast}; }
OpDef slice() { return {.name = "slice", .arity = 1, .moves = true, .infer = infer_slice, .vjp = vjp_slice}; }
OpDef concat() { return {.name = "concat", .arity = kVariadic, .infer = infer_concat, .vjp = vjp_concat}; }
OpDef after() {
  return {.name = "after",
          .arity = 2,
          .role = Role::after,
          .infer = [](std::span<const TensorType> in, const Attrs&) { return Types{in[0]}; },
          .vjp = [](const VjpCtx& ctx) { return std::vector<Value>{ctx.cotangents[0], {}}; }};
}
OpDef pad() { return {.name = "pad", .arity = 1, .infer = infer_pad, .vjp = vjp_pad}; }

}  // namespace defs

Value reshape(Operand x, Shape shape) { return reshape(x, shape.vec()); }

Value reshape(Operand x, std::initializer_list<std::int64_t> shape) { return reshape(x, Ints(shape)); }

Value reshape(Operand x, std::vector<std::int64_t> shape) {
  const Value v = x.value();
  if (std::count(shape.begin(), shape.end(), -1) == 1) {
    std::int64_t known = 1;
    for (const std::int64_t e : shape) known *= e == -1 ? 1 : e;
    const std::int64_t elements = v.shape().elements();
    if (known > 0 && elements % known == 0)
      std::replace(shape.begin(), shape.end(), std::int64_t{-1}, elements / known);
  }
  return v.tape->emit1(OpId::reshape, {v}, Attrs{{"shape", std::move(shape)}}, x.loc());
}

Value after(Operand x, Operand y) { return x.value().tape->emit1(OpId::after, {x.value(), y.value()}, {}, x.loc()); }

Value transpose(Operand x, std::vector<std::int64_t> perm) {
  const Value v = x.value();
  for (std::int64_t& p : perm) p += p < 0 ? v.shape().rank() : 0;
  return v.tape->emit1(OpId::transpose, {v}, Attrs{{"perm", std::move(perm)}}, x.loc());
}

Value broadcast(Operand x, Shape shape) {
  const Value v = x.value();
  return v.tape->emit1(OpId::broadcast, {v}, Attrs{{"shape", shape.vec()}}, x.loc());
}

Value slice(Operand x, std::vector<std::int64_t> start, std::vector<std::int64_t> stop,
            std::vector<std::int64_t> step) {
  const Value v = x.value();
  if (step.empty()) step = ones(v.shape().rank());
  return emit_slice(v, std::move(start), std::move(stop), std::move(step), x.loc());
}

Value slice_axis(Operand x, std::int64_t axis, std::int64_t start, std::int64_t stop) {
  const Value v = x.value();
  const int rank = v.shape().rank();
  const std::int64_t a = axis < 0 ? axis + rank : axis;
  if (a < 0 || a >= rank)
    checks::fail_at(x.loc(), ErrorKind::attribute, "slice: axis {} is out of range for {}", axis, to_string(v.shape()));
  Ints starts = zeros(rank), stops = v.shape().vec();
  starts[static_cast<std::size_t>(a)] = start;
  stops[static_cast<std::size_t>(a)] = stop;
  return emit_slice(v, std::move(starts), std::move(stops), ones(rank), x.loc());
}

Value concat(std::vector<Value> parts, std::int64_t axis, Loc loc) {
  if (parts.empty()) checks::fail_at(loc, ErrorKind::usage, "concat: no parts were given");
  if (axis < 0) axis += parts[0].shape().rank();
  return parts[0].tape->emit(OpId::concat, parts, Attrs{{"axis", axis}}, loc)[0];
}

Value pad(Operand x, std::vector<std::int64_t> before, std::vector<std::int64_t> after, double value) {
  const Value v = x.value();
  Ints interior = zeros(v.shape().rank());
  return emit_pad(v, std::move(before), std::move(after), std::move(interior), value, x.loc());
}

Value zeros_like(Operand x) {
  const Value v = x.value();
  return v.tape->constant(0.0, v.type(), x.loc());
}

}  // namespace sg
