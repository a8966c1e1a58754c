// Convolutions, upsampling and pooling in NHWC. conv2d is linear in x and in w; conv2d_transpose and conv2d_weight_grad
// are its two adjoints, so with <y, conv2d(x, w)> as the one trilinear form, the VJP of each of the three is the other
// two:
//   d/dx = conv2d_transpose(y, w), d/dw = conv2d_weight_grad(x, y), d/dy = conv2d(x, w).
// Where a stride does not divide the extent, several sizes of x and of w give the same (HO, WO): the adjoints carry the
// exact {size} and {kernel}.
#include "ops/conv.h"

#include "ops/checks.h"
#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

using Ints = std::vector<std::int64_t>;
using Types = std::vector<TensorType>;
using std::string_view;

template <std::size_t N>
Ints to_ints(const std::array<std::int64_t, N>& a) {
  return {a.begin(), a.end()};
}

Attrs conv_attrs(const ConvOptions& o) {
  return Attrs{
      {"stride", to_ints(o.stride)}, {"pad", to_ints(o.pad)}, {"dilation", to_ints(o.dilation)}, {"groups", o.groups}};
}

ConvOptions conv_options(const Attrs& attrs) {
  const Ints &s = attrs.ints("stride"), &p = attrs.ints("pad"), &d = attrs.ints("dilation");
  return {{s[0], s[1]}, {p[0], p[1], p[2], p[3]}, {d[0], d[1]}, attrs.i("groups")};
}

// Elements along one axis of the output; 0 where the window does not fit once.
std::int64_t out_extent(std::int64_t in, std::int64_t pads, std::int64_t kernel, std::int64_t dilation,
                        std::int64_t stride) {
  const std::int64_t room = in + pads - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

struct Extents {
  std::int64_t h, w;
};

Extents out_extents(Extents in, Extents kernel, const ConvOptions& o) {
  return {out_extent(in.h, o.pad[0] + o.pad[2], kernel.h, o.dilation[0], o.stride[0]),
          out_extent(in.w, o.pad[1] + o.pad[3], kernel.w, o.dilation[1], o.stride[1])};
}

ConvOptions checked_options(string_view op, const Attrs& attrs) {
  checks::entries(op, "stride", attrs.ints("stride"), 2, 1);
  checks::entries(op, "pad", attrs.ints("pad"), 4, 0);
  checks::entries(op, "dilation", attrs.ints("dilation"), 2, 1);
  if (attrs.i("groups") < 1) fail(ErrorKind::attribute, "{}: groups must be at least 1, got {}", op, attrs.i("groups"));
  return conv_options(attrs);
}

void check_pair(string_view op, string_view what_a, const TensorType& a, string_view axes_a, string_view what_b,
                const TensorType& b, string_view axes_b) {
  checks::real(op, what_a, a);
  checks::same_dtype(op, what_a, a, what_b, b);
  checks::rank(op, what_a, a, 4, axes_a);
  checks::rank(op, what_b, b, 4, axes_b);
}

void check_weight(string_view op, const Shape& w, std::int64_t groups) {
  if (w[0] < 1 || w[1] < 1 || w[2] < 1 || w[3] < 1)
    fail(ErrorKind::shape, "{}: weight {} has an empty axis", op, to_string(w));
  if (w[3] % groups != 0)
    fail(ErrorKind::shape, "{}: weight makes {} channels, which {} groups do not divide", op, w[3], groups);
}

void check_fits(string_view op, Extents out, Extents in, Extents kernel, const ConvOptions& o) {
  if (out.h >= 1 && out.w >= 1) return;
  fail(ErrorKind::shape, "{}: kernel {}x{} with dilation {}x{} is larger than the padded input {}x{}", op, kernel.h,
       kernel.w, o.dilation[0], o.dilation[1], in.h + o.pad[0] + o.pad[2], in.w + o.pad[1] + o.pad[3]);
}

Types infer_forward(string_view op, std::span<const TensorType> in, const Attrs& attrs) {
  check_pair(op, "input", in[0], "(N,H,W,C)", "weight", in[1], "(KH,KW,C/groups,O)");
  const ConvOptions o = checked_options(op, attrs);
  const Shape &x = in[0].shape, &w = in[1].shape;
  check_weight(op, w, o.groups);
  if (x[3] != w[2] * o.groups)
    fail(ErrorKind::shape, "{}: input has {} channels, weight expects {}{}", op, x[3], w[2] * o.groups,
         o.groups == 1 ? "" : fmt::format(" ({} groups of {})", o.groups, w[2]));
  const Extents size{x[1], x[2]}, kernel{w[0], w[1]}, out = out_extents(size, kernel, o);
  check_fits(op, out, size, kernel, o);
  return {{in[0].dtype, Shape{x[0], out.h, out.w, w[3]}}};
}

Types infer_conv2d(std::span<const TensorType> in, const Attrs& attrs) { return infer_forward("conv2d", in, attrs); }

Types infer_conv2d_bias(std::span<const TensorType> in, const Attrs& attrs) {
  if (in.size() != 3 && in.size() != 4)
    fail(ErrorKind::usage, "conv2d_bias: takes (x, w, b) or (x, w, b, skip), got {} operands", in.size());
  Types out = infer_forward("conv2d_bias", in.first(2), attrs);
  checks::same_dtype("conv2d_bias", "input", in[0], "bias", in[2]);
  if (const std::int64_t relu = attrs.i("relu"); relu != 0 && relu != 1)
    fail(ErrorKind::attribute, "conv2d_bias: relu must be 0 or 1, got {}", relu);
  if (in[2].shape != Shape{in[1].shape[3]})
    fail(ErrorKind::shape, "conv2d_bias: bias is {}, weight makes {} channels", to_string(in[2].shape), in[1].shape[3]);
  if (in.size() == 4) checks::same_type("conv2d_bias", "skip", in[3], "the result", out[0]);
  return out;
}

Types infer_conv2d_transpose(std::span<const TensorType> in, const Attrs& attrs) {
  constexpr string_view op = "conv2d_transpose";
  check_pair(op, "input", in[0], "(N,HO,WO,O)", "weight", in[1], "(KH,KW,C/groups,O)");
  const ConvOptions o = checked_options(op, attrs);
  const Shape &y = in[0].shape, &w = in[1].shape;
  check_weight(op, w, o.groups);
  if (y[3] != w[3]) fail(ErrorKind::shape, "{}: input has {} channels, weight expects {}", op, y[3], w[3]);
  const Ints& s = attrs.ints("size");
  checks::entries(op, "size", s, 2, 1);
  const Extents out = out_extents({s[0], s[1]}, {w[0], w[1]}, o);
  if (out.h != y[1] || out.w != y[2])
    fail(ErrorKind::shape, "{}: input is {}x{}, but conv2d maps the output size {}x{} to {}x{}", op, y[1], y[2], s[0],
         s[1], out.h, out.w);
  return {{in[0].dtype, Shape{y[0], s[0], s[1], w[2] * o.groups}}};
}

Types infer_conv2d_weight_grad(std::span<const TensorType> in, const Attrs& attrs) {
  constexpr string_view op = "conv2d_weight_grad";
  check_pair(op, "x", in[0], "(N,H,W,C)", "y", in[1], "(N,HO,WO,O)");
  const ConvOptions o = checked_options(op, attrs);
  const Shape &x = in[0].shape, &y = in[1].shape;
  if (x[0] != y[0]) fail(ErrorKind::shape, "{}: x has {} images, y has {}", op, x[0], y[0]);
  if (x[3] % o.groups != 0 || y[3] % o.groups != 0)
    fail(ErrorKind::shape, "{}: x has {} channels and y {}, which {} groups do not divide", op, x[3], y[3], o.groups);
  const Ints& k = attrs.ints("kernel");
  checks::entries(op, "kernel", k, 2, 1);
  const Extents size{x[1], x[2]}, kernel{k[0], k[1]}, out = out_extents(size, kernel, o);
  check_fits(op, out, size, kernel, o);
  if (out.h != y[1] || out.w != y[2])
    fail(ErrorKind::shape, "{}: y is {}x{}, but conv2d with a {}x{} kernel maps {}x{} to {}x{}", op, y[1], y[2], k[0],
         k[1], x[1], x[2], out.h, out.w);
  return {{checks::sum_dtype(op, in[0], attrs), Shape{k[0], k[1], x[3] / o.groups, y[3]}}};
}

std::array<std::int64_t, 2> image_size(Value x) { return {x.shape()[1], x.shape()[2]}; }
std::array<std::int64_t, 2> kernel_size(Value w) { return {w.shape()[0], w.shape()[1]}; }

std::vector<Value> vjp_conv2d(const VjpCtx& ctx) {
  const ConvOptions o = conv_options(ctx.attrs);
  const Value x = ctx.inputs[0], w = ctx.inputs[1], g = ctx.cotangents[0];
  std::vector<Value> grads(2);
  if (ctx.need[0]) grads[0] = conv2d_transpose(g, w, o, image_size(x));
  if (ctx.need[1]) grads[1] = conv2d_weight_grad(x, g, kernel_size(w), o);
  return grads;
}

std::vector<Value> vjp_conv2d_transpose(const VjpCtx& ctx) {
  const ConvOptions o = conv_options(ctx.attrs);
  const Value y = ctx.inputs[0], w = ctx.inputs[1], g = ctx.cotangents[0];
  std::vector<Value> grads(2);
  if (ctx.need[0]) grads[0] = conv2d(g, w, o);
  if (ctx.need[1]) grads[1] = conv2d_weight_grad(g, y, kernel_size(w), o);
  return grads;
}

std::vector<Value> vjp_conv2d_weight_grad(const VjpCtx& ctx) {
  const ConvOptions o = conv_options(ctx.attrs);
  const Value x = ctx.inputs[0], y = ctx.inputs[1], g = ctx.cotangents[0];
  std::vector<Value> grads(2);
  if (ctx.need[0]) grads[0] = conv2d_transpose(y, g, o, image_size(x));
  if (ctx.need[1]) grads[1] = conv2d(x, g, o);
  return grads;
}

std::vector<Value> decompose_conv2d_bias(Tape&, std::span<const Value> in, const Attrs& attrs) {
  Value y = conv2d(in[0], in[1], conv_options(attrs)) + in[2];
  if (in.size() == 4) y = y + in[3];
  return {attrs.i("relu") != 0 ? relu(y) : y};
}

Types infer_upsample(std::span<const TensorType> in, const Attrs& attrs) {
  checks::rank("upsample", "input", in[0], 4, "(N,H,W,C)");
  checks::real("upsample", "input", in[0]);
  const Ints& f = attrs.ints("factor");
  checks::entries("upsample", "factor", f, 2, 1);
  const Shape& x = in[0].shape;
  return {{in[0].dtype, Shape{x[0], x[1] * f[0], x[2] * f[1], x[3]}}};
}

std::vector<Value> vjp_upsample(const VjpCtx& ctx) {
  const Ints f = ctx.attrs.ints("factor");
  return {avg_pool(ctx.cotangents[0], {f[0], f[1]}) * static_cast<double>(f[0] * f[1])};
}

std::vector<Value> decompose_upsample(Tape&, std::span<const Value> in, const Attrs& attrs) {
  const Shape s = in[0].shape();
  const Ints f = attrs.ints("factor");
  const Value cells = reshape(in[0], Shape{s[0], s[1], 1, s[2], 1, s[3]});
  const Value copies = broadcast(cells, Shape{s[0], s[1], f[0], s[2], f[1], s[3]});
  return {reshape(copies, Shape{s[0], s[1] * f[0], s[2] * f[1], s[3]})};
}

struct Pool {
  std::array<std::int64_t, 2> window, stride;
  std::array<std::int64_t, 4> pad;
};

Pool pool_of(const Attrs& attrs) {
  const Ints &w = attrs.ints("window"), &s = attrs.ints("stride"), &p = attrs.ints("pad");
  return {{w[0], w[1]}, {s[0], s[1]}, {p[0], p[1], p[2], p[3]}};
}

Types infer_avg_pool(std::span<const TensorType> in, const Attrs& attrs) {
  constexpr string_view op = "avg_pool";
  checks::rank(op, "input", in[0], 4, "(N,H,W,C)");
  checks::real(op, "input", in[0]);
  checks::entries(op, "window", attrs.ints("window"), 2, 1);
  checks::entries(op, "stride", attrs.ints("stride"), 2, 1);
  checks::entries(op, "pad", attrs.ints("pad"), 4, 0);
  const Pool p = pool_of(attrs);
  const Shape& x = in[0].shape;
  const ConvOptions o{p.stride, p.pad, {1, 1}, 1};
  const Extents size{x[1], x[2]}, window{p.window[0], p.window[1]}, out = out_extents(size, window, o);
  check_fits(op, out, size, window, o);
  return {{in[0].dtype, Shape{x[0], out.h, out.w, x[3]}}};
}

// Average pooling is a depthwise convolution with equal weights.
ConvOptions depthwise(const Pool& p, std::int64_t channels) { return {p.stride, p.pad, {1, 1}, channels}; }

Value mean_weights(Tape& tape, const Pool& p, DType dtype, std::int64_t channels) {
  const double mean = 1.0 / static_cast<double>(p.window[0] * p.window[1]);
  return tape.constant(mean, {dtype, Shape{p.window[0], p.window[1], 1, channels}});
}

std::vector<Value> decompose_avg_pool(Tape& tape, std::span<const Value> in, const Attrs& attrs) {
  const Pool p = pool_of(attrs);
  const std::int64_t channels = in[0].shape()[3];
  return {conv2d(in[0], mean_weights(tape, p, in[0].dtype(), channels), depthwise(p, channels))};
}

std::vector<Value> vjp_avg_pool(const VjpCtx& ctx) {
  const Pool p = pool_of(ctx.attrs);
  const Value g = ctx.cotangents[0];
  const Shape x = ctx.inputs[0].shape();
  const bool tiles = p.stride == p.window && p.pad == std::array<std::int64_t, 4>{} && x[1] % p.window[0] == 0 &&
                     x[2] % p.window[1] == 0;
  if (tiles) return {upsample(g, p.window[0], p.window[1]) * (1.0 / static_cast<double>(p.window[0] * p.window[1]))};
  return {conv2d_transpose(g, mean_weights(ctx.tape, p, g.dtype(), x[3]), depthwise(p, x[3]), {x[1], x[2]})};
}

}  // namespace

namespace defs {

OpDef conv2d() { return {.name = "conv2d", .arity = 2, .infer = infer_conv2d, .vjp = vjp_conv2d}; }
OpDef conv2d_transpose() {
  return {.name = "conv2d_transpose", .arity = 2, .infer = infer_conv2d_transpose, .vjp = vjp_conv2d_transpose};
}
OpDef conv2d_weight_grad() {
  return {.name = "conv2d_weight_grad", .arity = 2, .infer = infer_conv2d_weight_grad, .vjp = vjp_conv2d_weight_grad};
}
OpDef conv2d_bias() {
  return {.name = "conv2d_bias", .arity = kVariadic, .infer = infer_conv2d_bias, .decompose = decompose_conv2d_bias};
}
OpDef upsample() {
  return {
      .name = "upsample", .arity = 1, .infer = infer_upsample, .vjp = vjp_upsample, .decompose = decompose_upsample};
}
OpDef avg_pool() {
  return {
      .name = "avg_pool", .arity = 1, .infer = infer_avg_pool, .vjp = vjp_avg_pool, .decompose = decompose_avg_pool};
}

}  // namespace defs

Value conv2d(Operand x, Operand w, ConvOptions options) {
  const Value v = x.value();
  return v.tape->emit1(OpId::conv2d, {v, w.value()}, conv_attrs(options), x.loc());
}

Value conv2d_transpose(Operand y, Operand w, ConvOptions options, std::array<std::int64_t, 2> size) {
  const Value v = y.value(), weight = w.value();
  if (v.shape().rank() == 4 && weight.shape().rank() == 4) {  // other ranks are inference's to refuse
    for (int i = 0; i < 2; ++i) {
      const auto u = static_cast<std::size_t>(i);
      if (size[u] == 0)
        size[u] = (v.shape()[i + 1] - 1) * options.stride[u] - options.pad[u] - options.pad[u + 2] +
                  options.dilation[u] * (weight.shape()[i] - 1) + 1;
    }
  }
  Attrs attrs = conv_attrs(options);
  attrs.set("size", to_ints(size));
  return v.tape->emit1(OpId::conv2d_transpose, {v, weight}, std::move(attrs), y.loc());
}

Value conv2d_weight_grad(Operand x, Operand y, std::array<std::int64_t, 2> kernel, ConvOptions options) {
  const Value v = x.value();
  Attrs attrs = conv_attrs(options);
  attrs.set("kernel", to_ints(kernel));
  return v.tape->emit1(OpId::conv2d_weight_grad, {v, y.value()}, std::move(attrs), x.loc());
}

Value upsample(Operand x, std::int64_t factor_h, std::int64_t factor_w) {
  const Value v = x.value();
  return v.tape->emit1(OpId::upsample, {v}, Attrs{{"factor", Ints{factor_h, factor_w}}}, x.loc());
}

Value avg_pool(Operand x, std::array<std::int64_t, 2> window, std::array<std::int64_t, 2> stride,
               std::array<std::int64_t, 4> pad) {
  const Value v = x.value();
  if (stride == std::array<std::int64_t, 2>{}) stride = window;
  return v.tape->emit1(OpId::avg_pool, {v},
                       Attrs{{"window", to_ints(window)}, {"stride", to_ints(stride)}, {"pad", to_ints(pad)}}, x.loc());
}

}  // namespace sg
