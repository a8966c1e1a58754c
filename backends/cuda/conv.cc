// The three convolutions as products, in NHWC. With X the matrix of windows, (N HO WO) x (KH KW C) for each group:
//   conv2d: Y = X W,  conv2d_transpose: X = Y W^T and each pixel gathers its windows,  conv2d_weight_grad: W = X^T Y.
// A pointwise convolution's X is the image itself. Others make X in slices of whole images, so that it stays below
// a limit however large the batch is.
#include "backends/cuda/conv.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <utility>

#include "backends/cuda/kernels/params.h"
#include "backends/cuda/launches.h"
#include "backends/cuda/products.h"

namespace sg::cuda {
namespace {

std::atomic<std::size_t> g_most_columns{std::size_t{256} << 20};  // bytes of X, unless one image needs more

// x (N,H,W,C), w (KH,KW,C/groups,O), y (N,HO,WO,O).
struct Geometry {
  Geometry(const Attrs& attrs, const Shape& xs, const Shape& ws, const Shape& ys)
      : n(xs[0]),
        h(xs[1]),
        w(xs[2]),
        c(xs[3]),
        kh(ws[0]),
        kw(ws[1]),
        ho(ys[1]),
        wo(ys[2]),
        o(ys[3]),
        groups(attrs.i("groups")),
        stride_h(attrs.ints("stride")[0]),
        stride_w(attrs.ints("stride")[1]),
        dilation_h(attrs.ints("dilation")[0]),
        dilation_w(attrs.ints("dilation")[1]),
        top(attrs.ints("pad")[0]),
        left(attrs.ints("pad")[1]),
        pointwise(kh == 1 && kw == 1 && stride_h == 1 && stride_w == 1 && h == ho && w == wo && top == 0 && left == 0) {
  }
  Index taps() const { return kh * kw * c; }  // a row of X, all groups
  Index windows(Index images) const { return images * ho * wo; }
  Index pixels(Index images) const { return images * h * w * c; }
  Index results(Index images) const { return images * ho * wo * o; }

  // `channels`: those of a group, in words.
  Columns columns(Index channels, Index elements, const LowerCtx& ctx) const {
    Columns p;
    p.n = count31(ctx, elements);
    p.channels = divisor(channels);
    p.groups = divisor(groups);
    p.kernel_w = divisor(kw);
    p.kernel_h = divisor(kh);
    p.out_w = divisor(wo);
    p.out_h = divisor(ho);
    p.width = divisor(w);
    p.height = divisor(h);
    p.stride_h = static_cast<int>(stride_h);
    p.stride_w = static_cast<int>(stride_w);
    p.dilation_h = static_cast<int>(dilation_h);
    p.dilation_w = static_cast<int>(dilation_w);
    p.top = static_cast<int>(top);
    p.left = static_cast<int>(left);
    return p;
  }

  Index n, h, w, c, kh, kw, ho, wo, o, groups, stride_h, stride_w, dilation_h, dilation_w, top, left;
  bool pointwise;
};

std::size_t bytes_of(Index elements, DType t) { return static_cast<std::size_t>(elements) * size_of(t); }

// Sums of bf16 products, before their one rounding.
DType sum_type(DType t) { return t == DType::bf16 ? DType::f32 : t; }

// What the address of each slice is a multiple of, the first being one of 64.
unsigned alignment_of(std::size_t slice_bytes) {
  return slice_bytes == 0 ? 64u : static_cast<unsigned>(std::min<std::size_t>(64, slice_bytes & (~slice_bytes + 1)));
}

std::byte* offset(const void* p, std::size_t bytes) {
  return const_cast<std::byte*>(static_cast<const std::byte*>(p)) + bytes;
}

struct Slice {
  Index first, images;
};

std::vector<Slice> slices_of(const Geometry& g, DType columns, bool whole) {
  const std::size_t image = std::max<std::size_t>(bytes_of(g.windows(1) * g.taps(), columns), 1);
  const Index most = whole ? std::max<Index>(g.n, 1) : std::max<Index>(1, static_cast<Index>(g_most_columns / image));
  std::vector<Slice> slices;
  for (Index first = 0; first == 0 || first < g.n; first += most)
    slices.push_back({first, std::min(most, g.n - first)});
  return slices;
}

// Launches whose products share one workspace, behind the parts of the scratch memory that were asked for.
class Plan {
 public:
  Plan(Device& device, LowerCtx& ctx) : device_(device), ctx_(ctx), step_(std::make_unique<Launches>(device)) {}

  std::size_t part(std::size_t bytes) { return std::exchange(parts_, parts_ + align256(bytes)); }
  Gemm product(const Product& p) {
    Gemm made(device_, p);
    workspace_ = std::max(workspace_, made.workspace_bytes());
    return made;
  }
  // All parts and products are known.
  void reserve() { scratch_ = Scratch(ctx_, std::max<std::size_t>(parts_ + workspace_, 1)); }
  Scratch::Pointer<void> at(std::size_t part) const { return scratch_.at<void>(part); }
  template <class A, class B, class C>
  void run(const Gemm& product, A a, B b, C c) {
    step_->call([=, workspace = at(parts_)] { product.run(resolve(a), resolve(b), resolve(c), resolve(workspace)); },
                product.detail());
  }
  Launches& step() { return *step_; }
  StepPtr finish() { return std::move(step_); }

 private:
  Device& device_;
  LowerCtx& ctx_;
  std::unique_ptr<Launches> step_;
  Scratch scratch_;
  std::size_t parts_ = 0, workspace_ = 0;
};

// The windows of a slice of x, by words as wide as the channels of a group allow.
template <class To>
void make_columns(Plan& plan, LowerCtx& ctx, const Geometry& g, DType type, const Slice& s, const void* x, To columns) {
  const std::size_t channels = bytes_of(g.c / g.groups, type), image = bytes_of(g.pixels(1), type);
  const std::size_t aligned = s.first == 0 ? 16 : alignment_of(image);
  std::size_t word = size_of(type);
  while (word < 16 && channels % (2 * word) == 0 && aligned % (2 * word) == 0) word *= 2;
  const auto words = static_cast<Index>(channels / word);
  const Index elements = g.windows(s.images) * g.kh * g.kw * g.groups * words;
  plan.step().add("columns", fmt::format("to_columns_{}", 8 * word), spread(elements),
                  static_cast<const void*>(offset(x, image * static_cast<std::size_t>(s.first))), columns,
                  g.columns(words, elements, ctx));
}

// X or Y of `images` images as an operand, all groups side by side: the product of each group is one of a batch.
Product grouped(const Geometry& g, DType in, DType out, unsigned alignment) {
  Product p;
  p.batch = g.groups;
  p.in = in;
  p.out = out;
  p.alignment = alignment;
  return p;
}

}  // namespace

std::size_t set_most_columns(std::size_t bytes) { return g_most_columns.exchange(bytes); }

StepPtr lower_conv2d(Device& device, LowerCtx& ctx) {
  const Geometry g(ctx.attrs(), ctx.in_type(0).shape, ctx.in_type(1).shape, ctx.out_type().shape);
  const DType type = ctx.out_type().dtype;
  Plan plan(device, ctx);
  if (ctx.out_type().shape.elements() == 0) return plan.finish();
  const bool bias = ctx.instr().inputs.size() == 3, wide = bias && type == DType::bf16;
  const bool empty = g.pixels(1) == 0;  // nothing but padding
  const std::vector<Slice> slices = slices_of(g, type, g.pointwise || empty);
  const Index most = slices.front().images;
  const bool windows = !g.pointwise && !empty;
  const std::size_t columns = plan.part(windows ? bytes_of(g.windows(most) * g.taps(), type) : 0);
  const std::size_t sums = plan.part(wide ? bytes_of(g.results(most), DType::f32) : 0);
  std::vector<Gemm> products;
  for (const Slice& s : slices) {
    Product p = grouped(g, type, wide ? DType::f32 : type,
                        slices.size() == 1 || wide ? 64 : alignment_of(bytes_of(g.results(1), type)));
    p.m = g.windows(s.images);
    p.n = g.o / g.groups;
    p.k = empty ? 0 : g.taps() / g.groups;
    p.lda = g.taps();
    p.ldb = p.ldc = g.o;
    p.stride_a = p.k;
    p.stride_b = p.stride_c = p.n;
    products.push_back(plan.product(p));
  }
  plan.reserve();
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const Slice& s = slices[i];
    void* const y = offset(ctx.out<void>(), bytes_of(g.results(s.first), type));
    const auto run = [&](auto a) {
      if (wide)
        plan.run(products[i], a, ctx.in<void>(1), plan.at(sums));
      else
        plan.run(products[i], a, ctx.in<void>(1), y);
    };
    if (windows) {
      make_columns(plan, ctx, g, type, s, ctx.in<void>(0), plan.at(columns));
      run(plan.at(columns));
    } else {
      run(ctx.in<void>(0));
    }
    if (!bias) continue;
    const Index elements = g.results(s.images);
    const auto finish = [&](auto from) {
      plan.step().add("columns", "finish_" + name_of(type), spread(elements), from, ctx.in<void>(2), y,
                      count31(ctx, elements), divisor(g.o), static_cast<int>(ctx.attrs().i("relu")));
    };
    if (wide)
      finish(plan.at(sums));
    else
      finish(static_cast<const void*>(y));
  }
  return plan.finish();
}

StepPtr lower_conv2d_transpose(Device& device, LowerCtx& ctx) {
  const Geometry g(ctx.attrs(), ctx.out_type().shape, ctx.in_type(1).shape, ctx.in_type(0).shape);
  const DType type = ctx.out_type().dtype, sums = g.pointwise ? type : sum_type(type);
  Plan plan(device, ctx);
  if (ctx.out_type().shape.elements() == 0) return plan.finish();
  const std::vector<Slice> slices = slices_of(g, sums, g.pointwise);
  const std::size_t columns = plan.part(g.pointwise ? 0 : bytes_of(g.windows(slices.front().images) * g.taps(), sums));
  std::vector<Gemm> products;
  for (const Slice& s : slices) {
    Product p = grouped(g, type, sums, slices.size() == 1 ? 64 : alignment_of(bytes_of(g.results(1), type)));
    p.m = g.windows(s.images);
    p.n = g.taps() / g.groups;
    p.k = g.o / g.groups;
    p.transpose_b = true;
    p.lda = p.ldb = g.o;
    p.ldc = g.taps();
    p.stride_a = p.stride_b = p.k;
    p.stride_c = p.n;
    products.push_back(plan.product(p));
  }
  plan.reserve();
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const Slice& s = slices[i];
    const void* const y = offset(ctx.in<void>(0), bytes_of(g.results(s.first), type));
    if (g.pointwise) {
      plan.run(products[i], y, ctx.in<void>(1), ctx.out<void>());
      continue;
    }
    plan.run(products[i], y, ctx.in<void>(1), plan.at(columns));
    const Index elements = g.pixels(s.images);
    plan.step().add("columns", "from_columns_" + name_of(type), spread(elements), plan.at(columns),
                    static_cast<void*>(offset(ctx.out<void>(), bytes_of(g.pixels(s.first), type))),
                    g.columns(g.c / g.groups, elements, ctx));
  }
  return plan.finish();
}

StepPtr lower_conv2d_weight_grad(Device& device, LowerCtx& ctx) {
  const Geometry g(ctx.attrs(), ctx.in_type(0).shape, ctx.out_type().shape, ctx.in_type(1).shape);
  const DType type = ctx.in_type(0).dtype, out = ctx.out_type().dtype;
  Plan plan(device, ctx);
  const Index weights = ctx.out_type().shape.elements();
  if (weights == 0) return plan.finish();
  const bool empty = g.pixels(1) == 0;
  const std::vector<Slice> slices = slices_of(g, type, g.pointwise || empty);
  // Slices add up in f32, and bf16 is rounded to when they are all there.
  const bool wide = slices.size() > 1 && out == DType::bf16;
  const bool windows = !g.pointwise && !empty;
  const std::size_t columns = plan.part(windows ? bytes_of(g.windows(slices.front().images) * g.taps(), type) : 0);
  const std::size_t sums = plan.part(wide ? bytes_of(weights, DType::f32) : 0);
  std::vector<Gemm> products;
  for (const Slice& s : slices) {
    Product p =
        grouped(g, type, wide ? DType::f32 : out, slices.size() == 1 ? 64 : alignment_of(bytes_of(g.results(1), type)));
    p.m = g.taps() / g.groups;
    p.n = g.o / g.groups;
    p.k = empty ? 0 : g.windows(s.images);
    p.transpose_a = true;
    p.lda = g.taps();
    p.ldb = p.ldc = g.o;
    p.stride_a = p.m;
    p.stride_b = p.stride_c = p.n;
    p.accumulate = s.first > 0;
    products.push_back(plan.product(p));
  }
  plan.reserve();
  for (std::size_t i = 0; i < slices.size(); ++i) {
    const Slice& s = slices[i];
    const void* const y = offset(ctx.in<void>(1), bytes_of(g.results(s.first), type));
    const auto run = [&](auto a) {
      if (wide)
        plan.run(products[i], a, y, plan.at(sums));
      else
        plan.run(products[i], a, y, ctx.out<void>());
    };
    if (windows) {
      make_columns(plan, ctx, g, type, s, ctx.in<void>(0), plan.at(columns));
      run(plan.at(columns));
    } else {
      run(ctx.in<void>(0));
    }
  }
  if (wide)
    plan.step().add("columns", std::string("finish_bf16"), spread(weights), plan.at(sums),
                    static_cast<const void*>(nullptr), ctx.out<void>(), count31(ctx, weights), divisor(g.o), 0);
  return plan.finish();
}

}  // namespace sg::cuda
