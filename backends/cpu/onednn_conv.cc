// Convolutions by oneDNN. Activations are NHWC in memory and (N,C,H,W) in oneDNN's descriptors; weights are described
// by their strides and packed into the layout that the primitive asks for. conv2d_transpose is the convolution's
// backward-data primitive itself: oneDNN's deconvolution costs 4 % more (35 % in bf16) for the same work.
#include <algorithm>
#include <array>

#include "backends/cpu/lowering.h"
#include "backends/cpu/onednn_ops.h"
#include "backends/cpu/onednn_step.h"
#include "backends/cpu/plain_loops.h"
#include "backends/cpu/tile_conv.h"
#include "backends/cpu/tune.h"
#include "backends/cpu/window_conv.h"
#include "backends/cpu/winograd.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

using cpu::ConvAlgorithm;
using cpu::ConvOp;
using onednn::Dims;
using onednn::Md;

constexpr auto kF32 = dnnl::memory::data_type::f32;
using onednn::data_type;
using Type = dnnl::memory::data_type;

Md nhwc(Type type, std::int64_t n, std::int64_t h, std::int64_t w, std::int64_t c) {
  return {{n, c, h, w}, type, dnnl::memory::format_tag::nhwc};
}

// Our (KH,KW,C/G,O), O counting group by group, as oneDNN sees it.
Md stored_weights(const ConvShape& s, Type type) {
  const std::int64_t cg = s.c / s.groups, og = s.o / s.groups;
  if (s.groups == 1) return {Dims{s.o, s.c, s.kh, s.kw}, type, Dims{1, s.o, s.kw * s.c * s.o, s.c * s.o}};
  return {Dims{s.groups, og, cg, s.kh, s.kw}, type, Dims{og, 1, s.o, s.kw * cg * s.o, cg * s.o}};
}

// `weights` is of another type than the rest where a weight's gradient is summed.
onednn::ConvDesc conv_desc(const ConvShape& s, ConvAlgorithm algorithm, Type type, Type weights) {
  onednn::ConvDesc d;
  if (algorithm == ConvAlgorithm::automatic) d.algorithm = dnnl::algorithm::convolution_auto;
  d.src = nhwc(type, s.n, s.h, s.w, s.c);
  d.dst = nhwc(type, s.n, s.ho, s.wo, s.o);
  const auto weights_of = [&s](Type t) -> Md {
    constexpr auto kAny = dnnl::memory::format_tag::any;
    if (s.groups == 1) return {{s.o, s.c, s.kh, s.kw}, t, kAny};
    return {{s.groups, s.o / s.groups, s.c / s.groups, s.kh, s.kw}, t, kAny};
  };
  d.weights = weights_of(weights);
  d.forward_weights = weights_of(type);
  d.strides = {s.stride_h, s.stride_w};
  d.dilation = {s.dilation_h - 1, s.dilation_w - 1};
  d.pad_before = {s.pad_top, s.pad_left};
  d.pad_after = {s.pad_bottom, s.pad_right};
  return d;
}

bool by_onednn(const LowerCtx& ctx, const ConvShape& s) { return ctx.in_type(0).dtype != DType::f64 && !s.empty(); }
bool in_f32(const LowerCtx& ctx) { return ctx.in_type(0).dtype == DType::f32; }

// f(T{}) with T the element type of the instruction. Without elements in some operand a result in bf16 is all zeros.
template <class F>
std::unique_ptr<Step> plain_step(LowerCtx& ctx, F f) {
  constexpr auto kDetail = "plain loops";
  const DType dtype = ctx.in_type(0).dtype;
  if (dtype == DType::bf16) return onednn::zeros(ctx);
  if (dtype == DType::f32) return std::make_unique<FunctionStep>([f] { f(float{}); }, kDetail);
  return std::make_unique<FunctionStep>([f] { f(double{}); }, kDetail);
}

// Not oneDNN's relu as a post-op: that one is max(x, 0), which turns a NaN into 0 and so hides it.
void relu_in_place(float* y, std::int64_t count) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < count; ++i) y[i] = y[i] < 0.0f ? 0.0f : y[i];
}
void relu_in_place(BFloat16* y, std::int64_t count) {
#pragma omp parallel for simd schedule(static)
  for (std::int64_t i = 0; i < count; ++i) y[i].bits = static_cast<float>(y[i]) < 0.0f ? std::uint16_t{0} : y[i].bits;
}

// The result is added to what lies in its place. oneDNN's sum of another array takes slower kernels, which round in
// another order.
dnnl::post_ops sum_with_result() {
  dnnl::post_ops ops;
  ops.append_sum(1.0f);
  return ops;
}

void copy(const float* src, float* dst, std::int64_t count) {
  cpu::parallel_chunks(count, cpu::kGrain, 16,
                       [&](std::int64_t begin, std::int64_t end) { std::copy(src + begin, src + end, dst + begin); });
}

// dst[0..count) += src[0..count)
inline void accumulate(float* dst, const float* src, std::int64_t count) {
#pragma omp simd
  for (std::int64_t i = 0; i < count; ++i) dst[i] += src[i];
}

// Rows of `big` for a transposed convolution with few channels: the product y w^T gives every tap of every position,
// `columns` [(n,ho,wo)][(kh,kw,c)]; each row of the image gathers the taps that fall on it, in a fixed order.
void gather_taps(const ConvShape& s, const float* columns, float* x) {
  const std::int64_t taps = s.kh * s.kw * s.c;
  // Without dilation the taps (kw,c) of one position lie side by side in the image too: one run.
  const std::int64_t runs = s.dilation_w == 1 ? 1 : s.kw, run = s.kw / runs;
#pragma omp parallel for schedule(static)
  for (std::int64_t row = 0; row < s.n * s.h; ++row) {
    const std::int64_t n = row / s.h, h = row % s.h;
    float* out = x + row * s.w * s.c;
    std::fill_n(out, s.w * s.c, 0.0f);
    for (std::int64_t kh = 0; kh < s.kh; ++kh) {
      const std::int64_t th = h + s.pad_top - kh * s.dilation_h;
      if (th < 0 || th % s.stride_h != 0 || th / s.stride_h >= s.ho) continue;
      const float* in = columns + (n * s.ho + th / s.stride_h) * s.wo * taps + kh * s.kw * s.c;
      for (std::int64_t wo = 0; wo < s.wo; ++wo, in += taps) {
        for (std::int64_t r = 0; r < runs; ++r) {
          const std::int64_t w = wo * s.stride_w - s.pad_left + r * s.dilation_w;
          const std::int64_t first = std::max<std::int64_t>(w, 0), last = std::min(w + run, s.w);
          if (first < last) accumulate(out + first * s.c, in + (r + first - w) * s.c, (last - first) * s.c);
        }
      }
    }
  }
}

// Up to this many channels the backward-data primitive leaves most lanes of its vectors empty: with 64 to 128 channels
// on the other side it takes 2.3 to 7 times as long as the product and the gathering (kernels 3x3 to 7x7); at 16
// channels it is the other way round, 3 times.
constexpr std::int64_t kFewChannels = 4;

// Up to this many the other way is worth a trial.
constexpr std::int64_t kColumnsPossible = 16;

ConvAlgorithm choose(const LowerCtx& ctx, const ConvShape& s, ConvOp op) {
  if (!in_f32(ctx)) {
    if (!cpu::windows_possible(s, op)) return ConvAlgorithm::formula;
    std::vector<ConvAlgorithm> possible{ConvAlgorithm::direct, ConvAlgorithm::windows};
    if (cpu::tiles_possible(s, op)) possible.push_back(ConvAlgorithm::tiles);
    return cpu::conv_algorithm(ctx, possible);
  }
  std::vector<ConvAlgorithm> possible{ConvAlgorithm::direct, ConvAlgorithm::automatic};
  if (winograd_use() != WinogradUse::never && cpu::winograd_takes(s, op, WinogradUse::always))
    possible.push_back(ConvAlgorithm::winograd);
  if (op == ConvOp::transposed && s.groups == 1 && s.c <= kColumnsPossible) possible.push_back(ConvAlgorithm::columns);
  return cpu::conv_algorithm(ctx, possible);
}

// Parts of the batch that a gradient of weights is summed in: enough for the threads of a usual machine, few enough
// that adding them up costs little beside making them and that they fit in memory.
std::int64_t parts_of(const ConvShape& s) {
  constexpr std::int64_t kMost = 8, kPositions = 256, kFloats = std::int64_t{1} << 23;
  const std::int64_t weights = s.kh * s.kw * s.c / s.groups * s.o, positions = s.n * s.ho * s.wo;
  return std::clamp<std::int64_t>(std::min(positions / kPositions, kFloats / weights), 1, std::min(s.n, kMost));
}

WinogradUse winograd_for(ConvAlgorithm algorithm) {
  return algorithm == ConvAlgorithm::formula    ? winograd_use()
         : algorithm == ConvAlgorithm::winograd ? WinogradUse::always
                                                : WinogradUse::never;
}

// In bf16.
bool by_tiles(const LowerCtx& ctx, const ConvShape& s, ConvOp op, ConvAlgorithm algorithm) {
  if (in_f32(ctx) || !cpu::tiles_possible(s, op)) return false;
  return algorithm == ConvAlgorithm::formula ? cpu::tiles_faster(s, op) : algorithm == ConvAlgorithm::tiles;
}
// Where tiles were not chosen.
bool by_windows(const LowerCtx& ctx, const ConvShape& s, ConvOp op, ConvAlgorithm algorithm) {
  if (in_f32(ctx) || !cpu::windows_possible(s, op)) return false;
  return algorithm == ConvAlgorithm::formula ? cpu::windows_faster(s, op) : algorithm == ConvAlgorithm::windows;
}

std::unique_ptr<Step> transpose_by_columns(LowerCtx& ctx, const ConvShape& s) {
  const std::int64_t rows = s.n * s.ho * s.wo, taps = s.kh * s.kw * s.c, elements = s.n * s.h * s.w * s.c;
  const Type type = data_type(ctx.in_type(0).dtype);
  const Md y({rows, s.o}, type, Dims{s.o, 1}), w({s.o, taps}, type, Dims{1, s.o}),
      columns({rows, taps}, kF32, Dims{taps, 1});
  auto step = std::make_unique<onednn::PrimitiveStep>();
  const auto pd = onednn::matmul_pd(y, w, {}, columns, onednn::user_scratchpad(), onednn::engine());
  const dnnl::memory product = step->in_scratch(columns);
  step->call<dnnl::matmul>(pd, {{DNNL_ARG_SRC, onednn::memory_at(y, ctx.in<void>(0))},
                                {DNNL_ARG_WEIGHTS, onednn::memory_at(w, ctx.in<void>(1))},
                                {DNNL_ARG_DST, product}});
  const auto gather = [s](const dnnl::memory& from, float* x) {
    gather_taps(s, static_cast<const float*>(from.get_data_handle()), x);
  };
  if (type == kF32) {
    step->then([gather, product, x = ctx.out<float>()] { gather(product, x); }, "gather of taps");
  } else {
    const dnnl::memory image = step->in_scratch(Md({elements}, kF32, Dims{1}));
    step->then(
        [gather, product, image, elements, &table = cpu::simd_table(), x = ctx.out<std::uint16_t>()] {
          auto* sums = static_cast<float*>(image.get_data_handle());
          gather(product, sums);
          cpu::parallel_chunks(elements, cpu::kGrain, 64, [&](std::int64_t begin, std::int64_t end) {
            table.narrow(sums + begin, x + begin, end - begin);
          });
        },
        "gather of taps");
  }
  step->reserve(ctx);
  return step;
}

}  // namespace

TakesSkip conv_takes_skip(const Tape& tape, const Instr& conv) {
  const auto shape = [&](std::int32_t v) -> const Shape& { return tape.type(v).shape; };
  const ConvShape s = conv_shape(conv.attrs, shape(conv.inputs[0]), shape(conv.outputs[0]), shape(conv.inputs[1]));
  if (tape.type(conv.inputs[0]).dtype != DType::f32 || s.empty()) return TakesSkip::never;
  if (cpu::winograd_takes(s, ConvOp::forward, winograd_use())) return TakesSkip::always;
  // Kernels of several groups add the skip before the bias: other bits than the sum by itself has.
  return s.groups == 1 ? TakesSkip::where_it_ends : TakesSkip::never;
}

std::unique_ptr<Step> lower_conv2d(LowerCtx& ctx) {
  const ConvShape s = conv_shape(ctx.attrs(), ctx.in_type(0).shape, ctx.out_type().shape, ctx.in_type(1).shape);
  const bool bias = ctx.instr().op == OpId::conv2d_bias, relu = bias && ctx.attrs().i("relu") != 0;
  if (!by_onednn(ctx, s)) {
    return plain_step(ctx, [s, relu, x = ctx.in<void>(0), w = ctx.in<void>(1), b = bias ? ctx.in<void>(2) : nullptr,
                            y = ctx.out<void>()](auto t) {
      using T = decltype(t);
      plain_conv(s, static_cast<const T*>(x), static_cast<const T*>(w), static_cast<const T*>(b), relu,
                 static_cast<T*>(y));
    });
  }
  const float* skip = ctx.instr().inputs.size() > 3 ? ctx.in<float>(3) : nullptr;
  const ConvAlgorithm algorithm = choose(ctx, s, ConvOp::forward);
  if (in_f32(ctx)) {
    const float* b = bias ? ctx.in<float>(2) : nullptr;
    if (auto step = cpu::winograd_forward(ctx, s, winograd_for(algorithm), b, skip, relu)) return step;
  }
  return onednn::guarded("conv2d", [&]() -> std::unique_ptr<Step> {
    if (by_tiles(ctx, s, ConvOp::forward, algorithm))
      return cpu::tiles_forward(ctx, s, bias ? ctx.in<void>(2) : nullptr, relu);
    if (by_windows(ctx, s, ConvOp::forward, algorithm))
      return cpu::windows_forward(ctx, s, bias ? ctx.in<void>(2) : nullptr, relu);
    const Type type = data_type(ctx.in_type(0).dtype);
    onednn::ConvDesc d = conv_desc(s, algorithm, type, type);
    d.has_bias = bias;
    if (bias) d.bias = Md({s.o}, type, dnnl::memory::format_tag::x);
    dnnl::primitive_attr attr = onednn::user_scratchpad();
    if (skip != nullptr) attr.set_post_ops(sum_with_result());
    const auto pd = onednn::forward_pd(d, attr, onednn::engine());
    onednn::PrimitiveStep::Args args{
        {DNNL_ARG_SRC, onednn::memory_at(d.src, ctx.in<void>(0))},
        {DNNL_ARG_WEIGHTS, onednn::packed(ctx, ctx.instr().inputs[1], stored_weights(s, type), pd.weights_desc())},
        {DNNL_ARG_DST, onednn::memory_at(d.dst, ctx.out<void>())}};
    if (bias) args.emplace_back(DNNL_ARG_BIAS, onednn::memory_at(d.bias, ctx.in<void>(2)));
    auto step = std::make_unique<onednn::PrimitiveStep>();
    const std::int64_t count = ctx.out_type().shape.elements();
    if (skip != nullptr && skip != ctx.out<float>())
      step->then([skip, y = ctx.out<float>(), count] { copy(skip, y, count); }, "copy of the skip");
    step->call<dnnl::convolution_forward>(pd, std::move(args));
    if (skip != nullptr) step->note("skip");
    if (relu && type == kF32)
      step->then([y = ctx.out<float>(), count] { relu_in_place(y, count); }, "relu");
    else if (relu)
      step->then([y = ctx.out<BFloat16>(), count] { relu_in_place(y, count); }, "relu");
    step->reserve(ctx);
    return step;
  });
}

std::unique_ptr<Step> lower_conv2d_transpose(LowerCtx& ctx) {
  const ConvShape s = conv_shape(ctx.attrs(), ctx.out_type().shape, ctx.in_type(0).shape, ctx.in_type(1).shape);
  if (!by_onednn(ctx, s)) {
    return plain_step(ctx, [s, y = ctx.in<void>(0), w = ctx.in<void>(1), x = ctx.out<void>()](auto t) {
      using T = decltype(t);
      plain_conv_transpose(s, static_cast<const T*>(y), static_cast<const T*>(w), static_cast<T*>(x));
    });
  }
  const ConvAlgorithm algorithm = choose(ctx, s, ConvOp::transposed);
  if (in_f32(ctx))
    if (auto step = cpu::winograd_transposed(ctx, s, winograd_for(algorithm))) return step;
  return onednn::guarded("conv2d_transpose", [&]() -> std::unique_ptr<Step> {
    const bool by_formula = algorithm == ConvAlgorithm::formula && s.groups == 1 && s.c <= kFewChannels;
    if (by_formula || algorithm == ConvAlgorithm::columns) return transpose_by_columns(ctx, s);
    if (by_tiles(ctx, s, ConvOp::transposed, algorithm)) return cpu::tiles_transposed(ctx, s);
    if (by_windows(ctx, s, ConvOp::transposed, algorithm)) return cpu::windows_transposed(ctx, s);
    const Type type = data_type(ctx.in_type(0).dtype);
    const onednn::ConvDesc d = conv_desc(s, algorithm, type, type);
    const auto pd = onednn::backward_data_pd(d, onednn::user_scratchpad(), onednn::engine());
    auto step = std::make_unique<onednn::PrimitiveStep>();
    step->call<dnnl::convolution_backward_data>(
        pd, {{DNNL_ARG_DIFF_DST, onednn::memory_at(d.dst, ctx.in<void>(0))},
             {DNNL_ARG_WEIGHTS, onednn::packed(ctx, ctx.instr().inputs[1], stored_weights(s, type), pd.weights_desc())},
             {DNNL_ARG_DIFF_SRC, onednn::memory_at(d.src, ctx.out<void>())}});
    step->reserve(ctx);
    return step;
  });
}

std::unique_ptr<Step> lower_conv2d_weight_grad(LowerCtx& ctx) {
  const ConvShape s = conv_shape(ctx.attrs(), ctx.in_type(0).shape, ctx.in_type(1).shape, ctx.out_type().shape);
  if (!by_onednn(ctx, s)) {
    return plain_step(ctx, [s, x = ctx.in<void>(0), y = ctx.in<void>(1), w = ctx.out<void>()](auto t) {
      using T = decltype(t);
      plain_conv_weight_grad(s, static_cast<const T*>(x), static_cast<const T*>(y), static_cast<T*>(w));
    });
  }
  const ConvAlgorithm algorithm = choose(ctx, s, ConvOp::weight_grad);
  if (in_f32(ctx))
    if (auto step = cpu::winograd_weight_grad(ctx, s, winograd_for(algorithm))) return step;
  return onednn::guarded("conv2d_weight_grad", [&]() -> std::unique_ptr<Step> {
    if (by_tiles(ctx, s, ConvOp::weight_grad, algorithm)) return cpu::tiles_weight_grad(ctx, s);
    if (by_windows(ctx, s, ConvOp::weight_grad, algorithm)) return cpu::windows_weight_grad(ctx, s);
    // Parts of the batch, each summed in f32 by one thread, cut by the shape alone.
    const std::int64_t images = (s.n + parts_of(s) - 1) / parts_of(s), parts = (s.n + images - 1) / images;
    auto step = std::make_unique<onednn::PrimitiveStep>();
    const Type type = data_type(ctx.in_type(0).dtype);
    const auto element = static_cast<std::int64_t>(size_of(ctx.in_type(0).dtype));
    const dnnl::memory stored = onednn::memory_at(stored_weights(s, data_type(ctx.out_type().dtype)), ctx.out<void>());
    std::vector<onednn::PrimitiveStep::Part> calls;
    std::vector<dnnl::memory> sums;
    std::string name;
    Md layout;
    const onednn::OneThread one;
    for (std::int64_t i = 0; i < parts; ++i) {
      ConvShape part = s;
      part.n = std::min(images, s.n - i * images);
      onednn::ConvDesc d = conv_desc(part, algorithm, type, kF32);
      if (i > 0) d.weights = layout;
      const auto pd = onednn::backward_weights_pd(d, onednn::user_scratchpad(), onednn::engine());
      if (i == 0) layout = pd.diff_weights_desc(), name = pd.impl_info_str();
      sums.push_back(i == 0 && layout == stored.get_desc() ? stored : step->in_scratch(layout));
      const std::byte* x = ctx.in<std::byte>(0) + i * images * s.h * s.w * s.c * element;
      const std::byte* y = ctx.in<std::byte>(1) + i * images * s.ho * s.wo * s.o * element;
      calls.push_back({dnnl::convolution_backward_weights(pd),
                       pd.scratchpad_desc(),
                       {{DNNL_ARG_SRC, onednn::memory_at(d.src, x)},
                        {DNNL_ARG_DIFF_DST, onednn::memory_at(d.dst, y)},
                        {DNNL_ARG_DIFF_WEIGHTS, sums.back()}}});
    }
    const dnnl::memory sum = sums[0];
    step->sum_of_parts(std::move(calls), std::move(sums), name);
    if (layout != stored.get_desc()) step->reorder(sum, stored);
    step->reserve(ctx);
    return step;
  });
}

}  // namespace sg
