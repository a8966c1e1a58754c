#include "models/layers.h"

#include "models/init.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

// The parameter as the layer's input wants it: its master in f32, or that rounded to bf16. The compiler makes one cast of
// all casts of a parameter in a step.
Operand read(const Operand& x, Variable* v) {
  const Value master = x.value().tape->read(*v, x.loc());
  if (x.value().dtype() != DType::bf16) return {master, x.loc()};
  return {cast(Operand(master, x.loc()), DType::bf16), x.loc()};
}

// Norms are sums: they take f32, with the masters, and give the input's type back.
template <class F>
Value in_f32(const Operand& x, F norm) {
  if (x.value().dtype() != DType::bf16) return norm(x);
  return cast(Operand(norm(Operand(cast(x, DType::f32), x.loc())), x.loc()), DType::bf16);
}

Value with_bias(Value y, const Operand& x, Variable* bias) {
  return bias == nullptr ? y : Operand(y, x.loc()) + read(x, bias);
}

void check_positive(const char* layer, std::string_view path, std::initializer_list<std::int64_t> extents) {
  for (const std::int64_t e : extents)
    if (e < 1)
      fail(ErrorKind::attribute, "{} '{}': an extent of {}: channels, kernel and stride are at least 1", layer, path,
           e);
}

}  // namespace

Linear::Linear(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, bool bias)
    : Module(parent, name) {
  check_positive("Linear", path(), {in, out});
  weight_ = &add_parameter("weight", fan_in_uniform({in, out}, in, seed(), full_name("weight")));
  bias_ = bias ? &add_parameter("bias", fan_in_uniform({out}, in, seed(), full_name("bias"))) : nullptr;
}

Value Linear::operator()(Operand x) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  const Value input = x.value();
  if (input.shape().rank() == 2) return with_bias(matmul(x, read(x, weight_)), x, bias_);
  // Rows of a higher-rank input are one long list of rows: a single product instead of a batched one.
  if (input.shape().rank() < 1) fail(ErrorKind::shape, "Linear '{}': a scalar has no features", path());
  std::vector<std::int64_t> out_shape = input.shape().vec();
  out_shape.back() = weight_->type().shape[1];
  const Value rows = reshape(x, std::vector<std::int64_t>{-1, input.shape()[-1]});
  const Value y = with_bias(matmul(Operand(rows, x.loc()), read(x, weight_)), x, bias_);
  return reshape(Operand(y, x.loc()), out_shape);
}

Conv2d::Conv2d(Module& parent, std::string_view name, std::int64_t in, std::int64_t out, std::int64_t kernel,
               std::int64_t stride, std::int64_t pad, bool bias)
    : Conv2d(parent, name, in, out, {kernel, kernel}, ConvOptions::square(stride, pad), bias) {}

Conv2d::Conv2d(Module& parent, std::string_view name, std::int64_t in, std::int64_t out,
               std::array<std::int64_t, 2> kernel, ConvOptions options, bool bias)
    : Module(parent, name), options_(options) {
  check_positive("Conv2d", path(),
                 {in, out, kernel[0], kernel[1], options.stride[0], options.stride[1], options.groups});
  if (in % options.groups != 0 || out % options.groups != 0)
    fail(ErrorKind::attribute, "Conv2d '{}': {} groups divide neither {} input nor {} output channels evenly", path(),
         options.groups, in, out);
  const std::int64_t fan_in = in / options.groups * kernel[0] * kernel[1];
  weight_ = &add_parameter(
      "weight", fan_in_uniform({kernel[0], kernel[1], in / options.groups, out}, fan_in, seed(), full_name("weight")));
  bias_ = bias ? &add_parameter("bias", fan_in_uniform({out}, fan_in, seed(), full_name("bias"))) : nullptr;
}

Value Conv2d::operator()(Operand x) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  return with_bias(conv2d(x, read(x, weight_), options_), x, bias_);
}

ConvTranspose2d::ConvTranspose2d(Module& parent, std::string_view name, std::int64_t in, std::int64_t out,
                                 std::int64_t kernel, std::int64_t stride, std::int64_t pad, bool bias)
    : Module(parent, name), options_(ConvOptions::square(stride, pad)) {
  check_positive("ConvTranspose2d", path(), {in, out, kernel, stride});
  const std::int64_t fan_in = out * kernel * kernel;
  weight_ = &add_parameter("weight", fan_in_uniform({kernel, kernel, out, in}, fan_in, seed(), full_name("weight")));
  bias_ = bias ? &add_parameter("bias", fan_in_uniform({out}, fan_in, seed(), full_name("bias"))) : nullptr;
}

Value ConvTranspose2d::operator()(Operand x) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  return with_bias(conv2d_transpose(x, read(x, weight_), options_), x, bias_);
}

GroupNorm::GroupNorm(Module& parent, std::string_view name, std::int64_t groups, std::int64_t channels, double eps)
    : Module(parent, name), groups_(groups), eps_(eps) {
  check_positive("GroupNorm", path(), {groups, channels});
  if (channels % groups != 0)
    fail(ErrorKind::attribute, "GroupNorm '{}': {} channels are no multiple of {} groups", path(), channels, groups);
  gamma_ = &add_parameter("weight", Tensor::full({DType::f32, {channels}}, 1));
  beta_ = &add_parameter("bias", Tensor({DType::f32, {channels}}));
}

Value GroupNorm::operator()(Operand x) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  return in_f32(x, [this](const Operand& f) { return group_norm(f, read(f, gamma_), read(f, beta_), groups_, eps_); });
}

LayerNorm::LayerNorm(Module& parent, std::string_view name, std::int64_t features, double eps)
    : Module(parent, name), eps_(eps) {
  check_positive("LayerNorm", path(), {features});
  gamma_ = &add_parameter("weight", Tensor::full({DType::f32, {features}}, 1));
  beta_ = &add_parameter("bias", Tensor({DType::f32, {features}}));
}

Value LayerNorm::operator()(Operand x) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  return in_f32(x, [this](const Operand& f) { return layer_norm(f, read(f, gamma_), read(f, beta_), eps_); });
}

Embedding::Embedding(Module& parent, std::string_view name, std::int64_t rows, std::int64_t dim)
    : Module(parent, name) {
  check_positive("Embedding", path(), {rows, dim});
  weight_ = &add_parameter("weight", normal_init({rows, dim}, 0, 1, seed(), full_name("weight")));
}

Value Embedding::operator()(Operand indices) const {
  const Scope scope(*indices.value().tape, name(), indices.loc());
  return gather_rows(read(indices, weight_), indices);
}

ResidualBlock::ResidualBlock(Module& parent, std::string_view name, std::int64_t channels, std::int64_t hidden)
    : Module(parent, name),
      conv1_(*this, "conv1", channels, hidden, 3, 1, 1),
      conv2_(*this, "conv2", hidden, channels, 1) {}

Value ResidualBlock::operator()(Operand x) const {
  const Scope scope(*x.value().tape, name(), x.loc());
  const auto at = [&x](Value v) { return Operand(v, x.loc()); };
  return x + at(conv2_(at(relu(at(conv1_(at(relu(x))))))));
}

}  // namespace sg
