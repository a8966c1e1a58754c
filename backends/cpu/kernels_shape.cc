// Ops that move elements: transpose, broadcast, slice, concat, pad, upsample are one strided copy each (a part of
// concat each), avg_pool is a loop over windows.
#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "backends/cpu/lowering.h"

namespace sg::cpu {
namespace {

constexpr Index kTile = 32;
constexpr Index kPoolBlock = 128;  // channels whose sums are made at a time

// dst[i . dst_stride] = src[i . src_stride] for all i in dims, last axis fastest.
struct StridedCopy {
  std::size_t rank = 0;
  std::array<Index, Shape::kMaxRank> dims{}, src{}, dst{};
  Index elements = 1;
  std::size_t across = 0;  // axis that is contiguous in src where the last is not: the two are walked in tiles
  bool tiled = false;

  void push(Index extent, Index src_stride, Index dst_stride) {  // from the outermost axis inwards
    elements *= extent;
    if (extent == 1) return;
    if (rank > 0 && src[rank - 1] == src_stride * extent && dst[rank - 1] == dst_stride * extent) {
      dims[rank - 1] *= extent;
      src[rank - 1] = src_stride;
      dst[rank - 1] = dst_stride;
    } else {
      dims[rank] = extent;
      src[rank] = src_stride;
      dst[rank++] = dst_stride;
    }
  }
  void finish() {
    if (rank == 0) dims[rank] = 1, src[rank] = 1, dst[rank++] = 1;
    const std::size_t last = rank - 1;
    if (src[last] == 1 || src[last] == 0 || dst[last] != 1) return;
    for (std::size_t d = 0; d < last; ++d)
      if (src[d] == 1) across = d, tiled = true;
  }
};

template <class W>
void copy_row(const W* src, Index src_stride, W* dst, Index dst_stride, Index n) {
  if (src_stride == 1 && dst_stride == 1) {
    if (n >= 32) {
      std::memcpy(dst, src, static_cast<std::size_t>(n) * sizeof(W));
    } else {
      for (Index i = 0; i < n; ++i) dst[i] = src[i];
    }
  } else if (src_stride == 0 && dst_stride == 1) {
    std::fill_n(dst, n, *src);
  } else {
    for (Index i = 0; i < n; ++i) dst[i * dst_stride] = src[i * src_stride];
  }
}

// Calls f(src offset, dst offset) for positions begin .. end of the axes other than those in `skip`.
template <class F>
void walk_outer(const StridedCopy& c, std::size_t skip_a, std::size_t skip_b, Index begin, Index end, F&& f) {
  std::array<Index, Shape::kMaxRank> at{};
  Index rest = begin, from = 0, to = 0;
  for (std::size_t d = c.rank; d-- > 0;) {
    if (d == skip_a || d == skip_b) continue;
    at[d] = rest % c.dims[d];
    rest /= c.dims[d];
    from += at[d] * c.src[d];
    to += at[d] * c.dst[d];
  }
  for (Index i = begin; i < end; ++i) {
    f(from, to);
    for (std::size_t d = c.rank; d-- > 0;) {
      if (d == skip_a || d == skip_b) continue;
      from += c.src[d];
      to += c.dst[d];
      if (++at[d] < c.dims[d]) break;
      from -= c.dims[d] * c.src[d];
      to -= c.dims[d] * c.dst[d];
      at[d] = 0;
    }
  }
}

template <class W>
void run_copy(const StridedCopy& c, const W* src, W* dst) {
  if (c.elements == 0) return;
  const std::size_t last = c.rank - 1;
  const Index inner = c.dims[last];
  if (c.rank == 1) {
    parallel_chunks(inner, kGrain, 64, [&](Index begin, Index end) {
      copy_row(src + begin * c.src[0], c.src[0], dst + begin * c.dst[0], c.dst[0], end - begin);
    });
    return;
  }
  if (!c.tiled) {
    parallel_rows(c.elements / inner, inner, kGrain, [&](Index begin, Index end) {
      walk_outer(c, last, last, begin, end,
                 [&](Index from, Index to) { copy_row(src + from, c.src[last], dst + to, c.dst[last], inner); });
    });
    return;
  }
  const Index extent = c.dims[c.across], strips = ceil_div(extent, kTile), outer = c.elements / inner / extent;
  parallel_rows(outer * strips, inner * std::min(kTile, extent), kGrain, [&](Index begin, Index end) {
    for (Index t = begin; t < end; ++t) {
      const Index j0 = t % strips * kTile, j1 = std::min(extent, j0 + kTile);
      walk_outer(c, last, c.across, t / strips, t / strips + 1, [&](Index from, Index to) {
        for (Index i0 = 0; i0 < inner; i0 += kTile) {
          const Index i1 = std::min(inner, i0 + kTile);
          for (Index j = j0; j < j1; ++j) {
            const W* s = src + from + j;
            W* d = dst + to + j * c.dst[c.across];
            for (Index i = i0; i < i1; ++i) d[i] = s[i * c.src[last]];
          }
        }
      });
    }
  });
}

// f(W{}) with W an integer as wide as an element.
template <class F>
StepPtr with_width(DType t, F f) {
  return size_of(t) == 8 ? f(std::uint64_t{}) : size_of(t) == 2 ? f(std::uint16_t{}) : f(std::uint32_t{});
}

StepPtr copy_step(LowerCtx& ctx, StridedCopy copy, Index src_offset) {
  copy.finish();
  return with_width(ctx.out_type().dtype, [&](auto word) {
    using W = decltype(word);
    return make_step([copy, src = ctx.in<W>(0) + src_offset, dst = ctx.out<W>()] { run_copy(copy, src, dst); });
  });
}

std::array<Index, Shape::kMaxRank> dense_strides(const Shape& s) {
  std::array<Index, Shape::kMaxRank> strides{};
  Index stride = 1;
  for (int d = s.rank() - 1; d >= 0; --d) {
    strides[static_cast<std::size_t>(d)] = stride;
    stride *= s[d];
  }
  return strides;
}

}  // namespace

StepPtr lower_transpose(LowerCtx& ctx, int) {
  const Shape& out = ctx.out_type().shape;
  const auto src = dense_strides(ctx.in_type(0).shape), dst = dense_strides(out);
  const auto& perm = ctx.attrs().ints("perm");
  StridedCopy copy;
  for (std::size_t d = 0; d < perm.size(); ++d)
    copy.push(out[static_cast<int>(d)], src[static_cast<std::size_t>(perm[d])], dst[d]);
  return copy_step(ctx, copy, 0);
}

StepPtr lower_broadcast(LowerCtx& ctx, int) {
  const Shape &in = ctx.in_type(0).shape, &out = ctx.out_type().shape;
  const auto src = dense_strides(in), dst = dense_strides(out);
  StridedCopy copy;
  for (int d = 0; d < out.rank(); ++d) {
    const int own = d - (out.rank() - in.rank());
    const bool has = own >= 0 && in[own] != 1;
    copy.push(out[d], has ? src[static_cast<std::size_t>(own)] : 0, dst[static_cast<std::size_t>(d)]);
  }
  return copy_step(ctx, copy, 0);
}

StepPtr lower_slice(LowerCtx& ctx, int) {
  const Shape& out = ctx.out_type().shape;
  const auto src = dense_strides(ctx.in_type(0).shape), dst = dense_strides(out);
  const auto &start = ctx.attrs().ints("start"), &step = ctx.attrs().ints("step");
  StridedCopy copy;
  Index offset = 0;
  for (std::size_t d = 0; d < start.size(); ++d) {
    copy.push(out[static_cast<int>(d)], src[d] * step[d], dst[d]);
    offset += start[d] * src[d];
  }
  return copy_step(ctx, copy, offset);
}

// x (N,H,W,C) -> (N, H, fh, W, fw, C)
StepPtr lower_upsample(LowerCtx& ctx, int) {
  const Shape& s = ctx.in_type(0).shape;
  const auto& factor = ctx.attrs().ints("factor");
  const Index h = s[1], w = s[2], c = s[3], fh = factor[0], fw = factor[1];
  StridedCopy copy;
  copy.push(s[0], h * w * c, h * fh * w * fw * c);
  copy.push(h, w * c, fh * w * fw * c);
  copy.push(fh, 0, w * fw * c);
  copy.push(w, c, fw * c);
  copy.push(fw, 0, c);
  copy.push(c, 1, 1);
  return copy_step(ctx, copy, 0);
}

StepPtr lower_concat(LowerCtx& ctx, int) {
  const auto axis = static_cast<int>(ctx.attrs().i("axis"));
  const Shape& out = ctx.out_type().shape;
  Index outer = 1, inner = 1;
  for (int d = 0; d < axis; ++d) outer *= out[d];
  for (int d = axis + 1; d < out.rank(); ++d) inner *= out[d];
  return with_width(ctx.out_type().dtype, [&](auto word) {
    using W = decltype(word);
    struct Part {
      StridedCopy copy;
      const W* src;
      W* dst;
    };
    std::vector<Part> parts;
    Index begin = 0;
    for (int i = 0; i < static_cast<int>(ctx.instr().inputs.size()); ++i) {
      const Index extent = ctx.in_type(i).shape[axis];
      StridedCopy copy;
      copy.push(outer, extent * inner, out[axis] * inner);
      copy.push(extent * inner, 1, 1);
      copy.finish();
      parts.push_back({copy, ctx.in<W>(i), ctx.out<W>() + begin * inner});
      begin += extent;
    }
    return make_step([parts = std::move(parts)] {
      for (const Part& p : parts) run_copy(p.copy, p.src, p.dst);
    });
  });
}

// Without interior padding every output row of the last padded axis (with the axes behind it) is value, input, value,
// or all value. With it, the output is filled with `value` and the input spread over it.
StepPtr lower_pad(LowerCtx& ctx, int) {
  const Shape in = ctx.in_type(0).shape, out = ctx.out_type().shape;
  const auto src = dense_strides(in), dst = dense_strides(out);
  const auto &before = ctx.attrs().ints("before"), &interior = ctx.attrs().ints("interior");
  StridedCopy copy;
  Index offset = 0;
  for (std::size_t d = 0; d < before.size(); ++d) {
    copy.push(in[static_cast<int>(d)], src[d], dst[d] * (interior[d] + 1));
    offset += before[d] * dst[d];
  }
  copy.finish();
  int last = in.rank() - 1;
  while (last > 0 && in[last] == out[last]) --last;
  const bool spread = in.rank() == 0 || std::any_of(interior.begin(), interior.end(), [](Index i) { return i > 0; });
  return with_stored(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    const T value = static_cast<T>(ctx.attrs().d("value"));
    const T* x = ctx.in<T>(0);
    T* y = ctx.out<T>();
    if (spread) {
      return make_step([=, n = out.elements()] {
        parallel_chunks(n, kGrain, 64, [&](Index begin, Index end) { std::fill(y + begin, y + end, value); });
        run_copy(copy, x, y + offset);
      });
    }
    std::array<Index, Shape::kMaxRank> lead{};
    std::copy(before.begin(), before.end(), lead.begin());
    const Index unit = dst[static_cast<std::size_t>(last)];
    return make_step([=, head = lead[static_cast<std::size_t>(last)] * unit, body = in[last] * unit,
                      row = out[last] * unit, rows = out.elements() / std::max<Index>(1, out[last] * unit)] {
      parallel_rows(rows, row, kGrain, [&](Index begin, Index end) {
        for (Index r = begin; r < end; ++r) {
          Index rest = r, from = 0;
          bool inside = true;
          for (int d = last - 1; d >= 0; --d) {
            const Index i = rest % out[d] - lead[static_cast<std::size_t>(d)];
            rest /= out[d];
            inside = inside && i >= 0 && i < in[d];
            from += i * src[static_cast<std::size_t>(d)];
          }
          T* to = y + r * row;
          if (!inside) {
            std::fill_n(to, row, value);
            continue;
          }
          std::fill_n(to, head, value);
          std::copy_n(x + from, body, to + head);
          std::fill(to + head + body, to + row, value);
        }
      });
    });
  });
}

template <class T>
struct PoolSum {
  using type = T;
};
template <>
struct PoolSum<BFloat16> {
  using type = float;
};

// y[n,i,j,c] = sum of x over the window at (i sh - top, j sw - left), over its area; padding counts as zeros.
StepPtr lower_avg_pool(LowerCtx& ctx, int) {
  const Shape in = ctx.in_type(0).shape, out = ctx.out_type().shape;
  const auto &window = ctx.attrs().ints("window"), &stride = ctx.attrs().ints("stride"), &pad = ctx.attrs().ints("pad");
  return with_stored(ctx.out_type().dtype, [&](auto element) -> StepPtr {
    using T = decltype(element);
    using Sum = typename PoolSum<T>::type;
    return make_step([=, wh = window[0], ww = window[1], sh = stride[0], sw = stride[1], top = pad[0], left = pad[1],
                      x = ctx.in<T>(0), y = ctx.out<T>()] {
      const Index h = in[1], w = in[2], c = in[3], ho = out[1], wo = out[2];
      const Sum scale = static_cast<Sum>(1.0 / static_cast<double>(wh * ww));
      parallel_rows(in[0] * ho * wo, c * wh * ww, kGrain, [&](Index begin, Index end) {
        for (Index o = begin; o < end; ++o) {
          const Index n = o / (ho * wo), i0 = o / wo % ho * sh - top, j0 = o % wo * sw - left;
          T* to = y + o * c;
          for (Index first = 0; first < c; first += kPoolBlock) {
            const Index count = std::min(kPoolBlock, c - first);
            Sum sums[kPoolBlock] = {};
            for (Index i = std::max<Index>(0, i0); i < std::min(h, i0 + wh); ++i) {
              for (Index j = std::max<Index>(0, j0); j < std::min(w, j0 + ww); ++j) {
                const T* from = x + ((n * h + i) * w + j) * c + first;
#pragma omp simd
                for (Index k = 0; k < count; ++k) sums[k] += static_cast<Sum>(from[k]);
              }
            }
#pragma omp simd
            for (Index k = 0; k < count; ++k) to[first + k] = static_cast<T>(sums[k] * scale);
          }
        }
      });
    });
  });
}

}  // namespace sg::cpu
