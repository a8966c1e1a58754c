// Ops that move elements. Each is a walk over one shape with a strided view of the buffer on the other side.
#include <algorithm>
#include <vector>

#include "backends/reference/kernels.h"

namespace sg::reference {
namespace {

// dst, dense of shape `shape`, takes its elements from a strided view of input 0.
StepPtr gather_from(LowerCtx& ctx, const View& from) {
  const Shape shape = ctx.out_type().shape;
  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([shape, views = std::array{from, dense_view(shape)}, src = ctx.in<T>(0), dst = ctx.out<T>()] {
      for_each(shape, views, [&](const auto& at) { dst[at[1]] = src[at[0]]; });
    });
  });
}

}  // namespace

StepPtr transpose(LowerCtx& ctx) {
  const auto& perm = ctx.attrs().ints("perm");
  const View in = dense_view(ctx.in_type(0).shape);
  View from;
  for (std::size_t d = 0; d < perm.size(); ++d) from.stride[d] = in.stride[static_cast<std::size_t>(perm[d])];
  return gather_from(ctx, from);
}

StepPtr broadcast(LowerCtx& ctx) {
  return gather_from(ctx, broadcast_view(ctx.in_type(0).shape, ctx.out_type().shape));
}

StepPtr slice(LowerCtx& ctx) {
  const auto &start = ctx.attrs().ints("start"), &step = ctx.attrs().ints("step");
  const View in = dense_view(ctx.in_type(0).shape);
  View from;
  for (std::size_t d = 0; d < start.size(); ++d) {
    from.offset += start[d] * in.stride[d];
    from.stride[d] = step[d] * in.stride[d];
  }
  return gather_from(ctx, from);
}

StepPtr concat(LowerCtx& ctx) {
  const auto axis = static_cast<int>(ctx.attrs().i("axis"));
  const View whole = dense_view(ctx.out_type().shape);
  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    struct Part {
      const T* src;
      Shape shape;
      std::array<View, 2> views;  // in the part, in the whole
    };
    std::vector<Part> parts;
    View to = whole;
    for (int i = 0; i < static_cast<int>(ctx.instr().inputs.size()); ++i) {
      const Shape& shape = ctx.in_type(i).shape;
      parts.push_back({ctx.in<T>(i), shape, {dense_view(shape), to}});
      to.offset += shape[axis] * whole.stride[static_cast<std::size_t>(axis)];
    }
    return make_step([parts, dst = ctx.out<T>()] {
      for (const Part& part : parts)
        for_each(part.shape, part.views, [&](const auto& at) { dst[at[1]] = part.src[at[0]]; });
    });
  });
}

// Element i of an axis goes to before + i (interior + 1); everything else is `value`.
StepPtr pad(LowerCtx& ctx) {
  const auto &before = ctx.attrs().ints("before"), &interior = ctx.attrs().ints("interior");
  const Shape shape = ctx.in_type(0).shape;
  const std::int64_t elements = ctx.out_type().shape.elements();
  const View out = dense_view(ctx.out_type().shape);
  View to;
  for (std::size_t d = 0; d < before.size(); ++d) {
    to.offset += before[d] * out.stride[d];
    to.stride[d] = (interior[d] + 1) * out.stride[d];
  }
  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([=, views = std::array{dense_view(shape), to}, value = static_cast<T>(ctx.attrs().d("value")),
                      src = ctx.in<T>(0), dst = ctx.out<T>()] {
      std::fill_n(dst, elements, value);
      for_each(shape, views, [&](const auto& at) { dst[at[1]] = src[at[0]]; });
    });
  });
}

}  // namespace sg::reference
