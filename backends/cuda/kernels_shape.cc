// Ops that move elements are strided copies in words as wide as the shapes allow, or tiles where the innermost axes of
// source and destination differ.
#include <algorithm>
#include <bit>

#include "backends/cuda/kernels.h"
#include "core/bfloat16.h"

namespace sg::cuda {
namespace {

using Strides = std::array<Index, kMaxAxes>;
static_assert(kMaxAxes == Shape::kMaxRank);

Strides dense_strides(const Shape& s) {
  Strides strides{};
  Index stride = 1;
  for (int d = s.rank() - 1; d >= 0; --d) {
    strides[static_cast<std::size_t>(d)] = stride;
    stride *= s[d];
  }
  return strides;
}

// dst[i . dst] = src[i . src], collected from the outermost axis inwards; axes that follow each other on both sides are
// one.
class Copy {
 public:
  void push(Index extent, Index src, Index dst) {
    elements_ *= extent;
    if (extent == 1) return;
    if (!axes_.empty() && axes_.back().src == src * extent && axes_.back().dst == dst * extent) {
      axes_.back() = {axes_.back().extent * extent, src, dst};
    } else {
      axes_.push_back({extent, src, dst});
    }
  }

  // offsets in elements
  void add_to(Launches& step, const LowerCtx& ctx, DType dtype, const void* src, Index src_offset, void* dst,
              Index dst_offset) const {
    if (elements_ == 0) return;
    std::size_t word = size_of(dtype);
    const auto* from = static_cast<const std::byte*>(src) + static_cast<std::size_t>(src_offset) * word;
    auto* to = static_cast<std::byte*>(dst) + static_cast<std::size_t>(dst_offset) * word;
    if (add_tiles(step, ctx, word, from, to)) return;

    std::vector<Axis> axes = axes_;
    if (axes.empty()) axes.push_back({1, 1, 1});
    Axis& inner = axes.back();
    const auto aligned = [&] {
      return std::all_of(axes.begin(), axes.end() - 1,
                         [](const Axis& a) { return a.src % 2 == 0 && a.dst % 2 == 0; }) &&
             std::bit_cast<std::uintptr_t>(from) % (2 * word) == 0 &&
             std::bit_cast<std::uintptr_t>(to) % (2 * word) == 0;
    };
    while (word < 16 && inner.src == 1 && inner.dst == 1 && inner.extent % 2 == 0 && aligned()) {
      word *= 2;
      inner.extent /= 2;
      for (std::size_t a = 0; a + 1 < axes.size(); ++a) axes[a].src /= 2, axes[a].dst /= 2;
    }
    const StridedCopy copy = packed(ctx, axes);
    step.add("shape", fmt::format("copy_strided_{}", word), spread(copy.n), from, to, copy);
  }

 private:
  struct Axis {
    Index extent, src, dst;
  };

  static StridedCopy packed(const LowerCtx& ctx, std::span<const Axis> axes) {
    StridedCopy copy;
    Index n = 1;
    for (std::size_t k = 0; k < axes.size(); ++k) {
      const Axis& a = axes[axes.size() - 1 - k];
      copy.dims[k] = divisor(a.extent);
      copy.src[k] = a.src;
      copy.dst[k] = a.dst;
      n *= a.extent;
    }
    copy.rank = static_cast<int>(axes.size());
    copy.n = count31(ctx, n);
    return copy;
  }

  // Where the last axis is contiguous in dst only and another one in src.
  bool add_tiles(Launches& step, const LowerCtx& ctx, std::size_t word, const std::byte* from, std::byte* to) const {
    constexpr Index kTile = 32, kWorthIt = 8;
    if (axes_.size() < 2 || axes_.back().dst != 1 || axes_.back().src <= 1) return false;
    const Axis rows = axes_.back();
    const auto found = std::find_if(axes_.begin(), axes_.end() - 1, [](const Axis& a) { return a.src == 1; });
    if (found == axes_.end() - 1 || found->extent < kWorthIt || rows.extent < kWorthIt) return false;
    std::vector<Axis> outer;
    for (auto a = axes_.begin(); a != axes_.end() - 1; ++a)
      if (a != found) outer.push_back(*a);
    TiledCopy tiles;
    tiles.rows = count31(ctx, rows.extent);
    tiles.cols = count31(ctx, found->extent);
    tiles.src_row = rows.src;
    tiles.dst_col = found->dst;
    tiles.outer = packed(ctx, outer);
    tiles.row_tiles = divisor(ceil_div(rows.extent, kTile));
    tiles.col_tiles = divisor(ceil_div(found->extent, kTile));
    const Index blocks = Index{tiles.row_tiles.d} * tiles.col_tiles.d * tiles.outer.n;
    step.add("shape", fmt::format("copy_tiled_{}", word), Launch{{count31(ctx, blocks)}, {32, 8}}, from, to, tiles);
    return true;
  }

  std::vector<Axis> axes_;
  Index elements_ = 1;
};

StepPtr copy_step(Device& device, LowerCtx& ctx, const Copy& copy, Index src_offset = 0) {
  auto step = std::make_unique<Launches>(device);
  copy.add_to(*step, ctx, ctx.out_type().dtype, ctx.in<void>(0), src_offset, ctx.out<void>(), 0);
  return step;
}

template <class T>
T bits_of(DType t, double value) {
  if (t == DType::bf16) return static_cast<T>(BFloat16(value).bits);
  if (t == DType::f32) return static_cast<T>(std::bit_cast<std::uint32_t>(static_cast<float>(value)));
  if (t == DType::i32) return static_cast<T>(static_cast<std::uint32_t>(static_cast<std::int32_t>(value)));
  return static_cast<T>(std::bit_cast<std::uint64_t>(value));
}

}  // namespace

StepPtr lower_transpose(Device& device, LowerCtx& ctx) {
  const Shape& out = ctx.out_type().shape;
  const Strides src = dense_strides(ctx.in_type(0).shape), dst = dense_strides(out);
  const auto& perm = ctx.attrs().ints("perm");
  Copy copy;
  for (std::size_t d = 0; d < perm.size(); ++d)
    copy.push(out[static_cast<int>(d)], src[static_cast<std::size_t>(perm[d])], dst[d]);
  return copy_step(device, ctx, copy);
}

StepPtr lower_broadcast(Device& device, LowerCtx& ctx) {
  const Shape &in = ctx.in_type(0).shape, &out = ctx.out_type().shape;
  const Strides src = dense_strides(in), dst = dense_strides(out);
  Copy copy;
  for (int d = 0; d < out.rank(); ++d) {
    const int own = d - (out.rank() - in.rank());
    const bool has = own >= 0 && in[own] != 1;
    copy.push(out[d], has ? src[static_cast<std::size_t>(own)] : 0, dst[static_cast<std::size_t>(d)]);
  }
  return copy_step(device, ctx, copy);
}

StepPtr lower_slice(Device& device, LowerCtx& ctx) {
  const Shape& out = ctx.out_type().shape;
  const Strides src = dense_strides(ctx.in_type(0).shape), dst = dense_strides(out);
  const auto &start = ctx.attrs().ints("start"), &step = ctx.attrs().ints("step");
  Copy copy;
  Index offset = 0;
  for (std::size_t d = 0; d < start.size(); ++d) {
    copy.push(out[static_cast<int>(d)], src[d] * step[d], dst[d]);
    offset += start[d] * src[d];
  }
  return copy_step(device, ctx, copy, offset);
}

// x (N,H,W,C) -> (N, H, fh, W, fw, C)
StepPtr lower_upsample(Device& device, LowerCtx& ctx) {
  const Shape& s = ctx.in_type(0).shape;
  const auto& factor = ctx.attrs().ints("factor");
  const Index h = s[1], w = s[2], c = s[3], fh = factor[0], fw = factor[1];
  Copy copy;
  copy.push(s[0], h * w * c, h * fh * w * fw * c);
  copy.push(h, w * c, fh * w * fw * c);
  copy.push(fh, 0, w * fw * c);
  copy.push(w, c, fw * c);
  copy.push(fw, 0, c);
  copy.push(c, 1, 1);
  return copy_step(device, ctx, copy);
}

StepPtr lower_concat(Device& device, LowerCtx& ctx) {
  const auto axis = static_cast<int>(ctx.attrs().i("axis"));
  const Shape& out = ctx.out_type().shape;
  Index outer = 1, inner = 1;
  for (int d = 0; d < axis; ++d) outer *= out[d];
  for (int d = axis + 1; d < out.rank(); ++d) inner *= out[d];
  auto step = std::make_unique<Launches>(device);
  Index begin = 0;
  for (int i = 0; i < static_cast<int>(ctx.instr().inputs.size()); ++i) {
    const Index extent = ctx.in_type(i).shape[axis];
    Copy copy;
    copy.push(outer, extent * inner, out[axis] * inner);
    copy.push(extent * inner, 1, 1);
    copy.add_to(*step, ctx, ctx.out_type().dtype, ctx.in<void>(i), 0, ctx.out<void>(), begin * inner);
    begin += extent;
  }
  return step;
}

StepPtr lower_pad(Device& device, LowerCtx& ctx) {
  const Shape &in = ctx.in_type(0).shape, &out = ctx.out_type().shape;
  const Strides src = dense_strides(in);
  const auto &before = ctx.attrs().ints("before"), &interior = ctx.attrs().ints("interior");
  PadAxes axes;
  axes.n = count31(ctx, out.elements());
  axes.rank = out.rank();
  for (int k = 0; k < out.rank(); ++k) {  // from the innermost
    const int d = out.rank() - 1 - k;
    const auto at = static_cast<std::size_t>(d);
    axes.out[k] = divisor(out[d]);
    axes.step[k] = divisor(interior[at] + 1);
    axes.before[k] = static_cast<int>(before[at]);
    axes.in[k] = count31(ctx, in[d]);
    axes.src[k] = src[at];
  }
  auto step = std::make_unique<Launches>(device);
  const DType t = ctx.out_type().dtype;
  const auto add = [&](auto word) {
    using W = decltype(word);
    step->add("shape", fmt::format("pad_{}", sizeof(W)), spread(axes.n), ctx.in<W>(0), ctx.out<W>(),
              bits_of<W>(t, ctx.attrs().d("value")), axes);
  };
  if (size_of(t) == 8) add(std::uint64_t{});
  if (size_of(t) == 4) add(std::uint32_t{});
  if (size_of(t) == 2) add(std::uint16_t{});
  return step;
}

StepPtr lower_avg_pool(Device& device, LowerCtx& ctx) {
  const Shape &in = ctx.in_type(0).shape, &out = ctx.out_type().shape;
  const auto &window = ctx.attrs().ints("window"), &stride = ctx.attrs().ints("stride"), &pad = ctx.attrs().ints("pad");
  Pooling p;
  p.n = count31(ctx, out.elements());
  p.channels = divisor(out[3]), p.width = divisor(out[2]), p.height = divisor(out[1]);
  p.in_height = static_cast<int>(in[1]), p.in_width = static_cast<int>(in[2]);
  p.window_h = static_cast<int>(window[0]), p.window_w = static_cast<int>(window[1]);
  p.stride_h = static_cast<int>(stride[0]), p.stride_w = static_cast<int>(stride[1]);
  p.top = static_cast<int>(pad[0]), p.left = static_cast<int>(pad[1]);
  p.scale = 1.0 / static_cast<double>(window[0] * window[1]);
  auto step = std::make_unique<Launches>(device);
  step->add("image", "avg_pool_" + name_of(ctx.out_type().dtype), spread(p.n), ctx.in<void>(0), ctx.out<void>(), p);
  return step;
}

}  // namespace sg::cuda
