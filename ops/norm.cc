// Softmax, cross-entropy and normalisations. Each states its meaning as a composition; the softmax family has VJPs by
// hand (short and stable), the normalisations are differentiated through the composition.
#include "ops/norm.h"

#include "ops/checks.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

using Types = std::vector<TensorType>;

void check_rows(std::string_view op, std::string_view what, const TensorType& t) {
  checks::real(op, what, t);
  if (t.shape.rank() < 1 || t.shape[-1] < 1)
    fail(ErrorKind::shape, "{}: {} {} has no elements along a last axis", op, what, to_string(t.shape));
}

void check_per_channel(std::string_view op, std::string_view what, const TensorType& t, const TensorType& x) {
  checks::same_dtype(op, "input", x, what, t);
  if (t.shape != Shape{x.shape[-1]})
    fail(ErrorKind::shape, "{}: input has {} channels, {} is {}", op, x.shape[-1], what, to_string(t.shape));
}

void check_eps(std::string_view op, const Attrs& attrs) {
  if (!(attrs.d("eps") >= 0)) fail(ErrorKind::attribute, "{}: eps must not be negative, got {}", op, attrs.d("eps"));
}

Types infer_softmax(std::span<const TensorType> in, const Attrs&) {
  check_rows("softmax", "input", in[0]);
  return {in[0]};
}

Types infer_log_softmax(std::span<const TensorType> in, const Attrs&) {
  check_rows("log_softmax", "input", in[0]);
  return {in[0]};
}

// The greatest element of a row only guards exp against overflow: both results do not depend on it, so it is cut out of
// the derivative.
Value shifted(Value x) { return x - stop_gradient(max(x, {-1}, true)); }

std::vector<Value> decompose_softmax(Tape&, std::span<const Value> in, const Attrs&) {
  const Value e = exp(shifted(in[0]));
  return {e * (1.0 / sum(e, {-1}, true))};
}

std::vector<Value> vjp_softmax(const VjpCtx& ctx) {
  const Value y = ctx.outputs[0], g = ctx.cotangents[0];
  return {y * (g - sum(g * y, {-1}, true))};
}

std::vector<Value> decompose_log_softmax(Tape&, std::span<const Value> in, const Attrs&) {
  const Value s = shifted(in[0]);
  return {s - log(sum(exp(s), {-1}, true))};
}

std::vector<Value> vjp_log_softmax(const VjpCtx& ctx) {
  const Value y = ctx.outputs[0], g = ctx.cotangents[0];
  return {g - exp(y) * sum(g, {-1}, true)};
}

Types infer_cross_entropy(std::span<const TensorType> in, const Attrs&) {
  check_rows("cross_entropy", "logits", in[0]);
  checks::integer("cross_entropy", "labels", in[1]);
  const Shape& logits = in[0].shape;
  const Shape rows(logits.dims().first(static_cast<std::size_t>(logits.rank() - 1)));
  if (in[1].shape != rows)
    fail(ErrorKind::shape, "cross_entropy: logits {} need labels {}, got {}", to_string(logits), to_string(rows),
         to_string(in[1].shape));
  return {{in[0].dtype, rows}};
}

// The label's entry is selected, not multiplied by 0 and 1: a class of log-probability -inf must not make a NaN.
std::vector<Value> decompose_cross_entropy(Tape&, std::span<const Value> in, const Attrs&) {
  const Value chosen = one_hot(in[1], in[0].shape()[-1], DType::i32);
  return {-sum(where(chosen, log_softmax(in[0]), 0.0), {-1})};
}

std::vector<Value> vjp_cross_entropy(const VjpCtx& ctx) {
  if (!ctx.need[0]) return {Value{}, Value{}};
  const Value logits = ctx.inputs[0];
  const Shape shape = logits.shape();
  const Value g = reshape(ctx.cotangents[0], shape.with(shape.rank() - 1, 1));
  return {(softmax(logits) - one_hot(ctx.inputs[1], shape[-1], logits.dtype())) * g, Value{}};
}

Types infer_layer_norm(std::span<const TensorType> in, const Attrs& attrs) {
  check_rows("layer_norm", "input", in[0]);
  check_per_channel("layer_norm", "gamma", in[1], in[0]);
  check_per_channel("layer_norm", "beta", in[2], in[0]);
  check_eps("layer_norm", attrs);
  return {in[0]};
}

std::vector<Value> decompose_layer_norm(Tape&, std::span<const Value> in, const Attrs& attrs) {
  const Value centered = in[0] - mean(in[0], {-1}, true);
  return {centered * rsqrt(mean(square(centered), {-1}, true) + attrs.d("eps")) * in[1] + in[2]};
}

Types infer_rms_norm(std::span<const TensorType> in, const Attrs& attrs) {
  check_rows("rms_norm", "input", in[0]);
  check_per_channel("rms_norm", "gamma", in[1], in[0]);
  check_eps("rms_norm", attrs);
  return {in[0]};
}

std::vector<Value> decompose_rms_norm(Tape&, std::span<const Value> in, const Attrs& attrs) {
  const Value x = in[0];
  return {x * rsqrt(mean(square(x), {-1}, true) + attrs.d("eps")) * in[1]};
}

Types infer_group_norm(std::span<const TensorType> in, const Attrs& attrs) {
  check_rows("group_norm", "input", in[0]);
  if (in[0].shape.rank() < 2)
    fail(ErrorKind::shape, "group_norm: input must be (N,...,C), got {}", to_string(in[0].shape));
  check_per_channel("group_norm", "gamma", in[1], in[0]);
  check_per_channel("group_norm", "beta", in[2], in[0]);
  check_eps("group_norm", attrs);
  const std::int64_t groups = attrs.i("groups"), channels = in[0].shape[-1];
  if (groups < 1 || channels % groups != 0)
    fail(ErrorKind::attribute, "group_norm: {} groups do not divide {} channels", groups, channels);
  return {in[0]};
}

// (x - mean) / sqrt(variance + eps) per sample and group. What is as large as x is a sum per sample and channel or
// takes one number per sample and channel: three passes over x, and few numbers between them.
std::vector<Value> decompose_group_norm(Tape&, std::span<const Value> in, const Attrs& attrs) {
  const Shape shape = in[0].shape();
  const std::int64_t groups = attrs.i("groups"), images = shape[0], channels = shape[-1], width = channels / groups;
  std::int64_t positions = 1;
  for (int i = 1; i + 1 < shape.rank(); ++i) positions *= shape[i];
  const Shape by_group{images * groups, width}, by_channel{images, 1, channels};
  const Value x = reshape(in[0], Shape{images, positions, channels});
  const auto group_mean = [&](Value v) {
    return sum(reshape(sum(v, {1}), by_group), {-1}, true) / static_cast<double>(positions * width);
  };
  const auto of_channels = [&](Value v) { return reshape(broadcast(v, by_group), by_channel); };
  const Value centered = x - of_channels(group_mean(x));
  const Value scale = of_channels(rsqrt(group_mean(square(centered)) + attrs.d("eps"))) * in[1];
  return {reshape(centered * scale + in[2], shape)};
}

}  // namespace

namespace defs {

OpDef softmax() {
  return {.name = "softmax", .arity = 1, .infer = infer_softmax, .vjp = vjp_softmax, .decompose = decompose_softmax};
}
OpDef log_softmax() {
  return {.name = "log_softmax",
          .arity = 1,
          .infer = infer_log_softmax,
          .vjp = vjp_log_softmax,
          .decompose = decompose_log_softmax};
}
OpDef cross_entropy() {
  return {.name = "cross_entropy",
          .arity = 2,
          .infer = infer_cross_entropy,
          .vjp = vjp_cross_entropy,
          .decompose = decompose_cross_entropy};
}
OpDef layer_norm() {
  return {.name = "layer_norm", .arity = 3, .infer = infer_layer_norm, .decompose = decompose_layer_norm};
}
OpDef rms_norm() { return {.name = "rms_norm", .arity = 2, .infer = infer_rms_norm, .decompose = decompose_rms_norm}; }
OpDef group_norm() {
  return {.name = "group_norm", .arity = 3, .infer = infer_group_norm, .decompose = decompose_group_norm};
}

}  // namespace defs

Value softmax(Operand x) {
  const Value v = x.value();
  return v.tape->emit1(OpId::softmax, {v}, {}, x.loc());
}

Value log_softmax(Operand x) {
  const Value v = x.value();
  return v.tape->emit1(OpId::log_softmax, {v}, {}, x.loc());
}

Value cross_entropy(Operand logits, Operand labels) {
  const Value v = logits.value();
  return v.tape->emit1(OpId::cross_entropy, {v, labels.value()}, {}, logits.loc());
}

Value layer_norm(Operand x, Operand gamma, Operand beta, double eps) {
  const Value v = x.value();
  return v.tape->emit1(OpId::layer_norm, {v, gamma.value(), beta.value()}, Attrs{{"eps", eps}}, x.loc());
}

Value rms_norm(Operand x, Operand gamma, double eps) {
  const Value v = x.value();
  return v.tape->emit1(OpId::rms_norm, {v, gamma.value()}, Attrs{{"eps", eps}}, x.loc());
}

Value group_norm(Operand x, Operand gamma, Operand beta, std::int64_t groups, double eps) {
  const Value v = x.value();
  return v.tape->emit1(OpId::group_norm, {v, gamma.value(), beta.value()}, Attrs{{"groups", groups}, {"eps", eps}},
                       x.loc());
}

Value unit_rows(Operand x) {
  const auto at = [loc = x.loc()](Value v) { return Operand(v, loc); };
  const Value squared = sum(at(square(x)), {-1}, true);
  return x * at(rsqrt(at(at(squared) + Operand(kUnitRowEps, x.loc()))));
}

}  // namespace sg
