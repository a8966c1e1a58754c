// Reductions: sum, max, min over any axes; argmax, argmin along one; quantiles of all elements.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "backends/reference/kernels.h"

namespace sg::reference {
namespace {

// The view of the reduced result while walking x: stride 0 along reduced axes. Kept extents of 1 change nothing.
View reduced_view(const Shape& x, const std::vector<std::int64_t>& axes) {
  View view;
  std::int64_t stride = 1;
  for (int axis = x.rank() - 1; axis >= 0; --axis) {
    if (std::find(axes.begin(), axes.end(), axis) != axes.end()) continue;
    view.stride[static_cast<std::size_t>(axis)] = stride;
    stride *= x[axis];
  }
  return view;
}

// y = init, then y = combine(y, x) for every x of its group, in row-major order.
template <class T, class F>
StepPtr reduce(LowerCtx& ctx, T init, F combine) {
  const Shape shape = ctx.in_type(0).shape;
  const std::int64_t outputs = ctx.out_type().shape.elements();
  const std::array views{dense_view(shape), reduced_view(shape, ctx.attrs().ints("axes"))};
  return make_step([=, src = ctx.in<T>(0), dst = ctx.out<T>()] {
    std::fill_n(dst, outputs, init);
    for_each(shape, views, [&](const auto& at) { dst[at[1]] = combine(dst[at[1]], src[at[0]]); });
  });
}

template <class T>
constexpr T lowest() {
  return std::is_same_v<T, double> ? -std::numeric_limits<T>::infinity() : std::numeric_limits<T>::lowest();
}
template <class T>
constexpr T highest() {
  return std::is_same_v<T, double> ? std::numeric_limits<T>::infinity() : std::numeric_limits<T>::max();
}

bool is_nan(double x) { return std::isnan(x); }
bool is_nan(std::int32_t) { return false; }

// The index along one axis of the element that `better` than all before it; a NaN is better than nothing, and anything
// is better than a NaN, so that only an axis full of NaN gives index 0 for lack of a number.
template <class T, class Better>
StepPtr arg_reduce(LowerCtx& ctx, Better better) {
  const Shape& shape = ctx.in_type(0).shape;
  const auto axis = static_cast<int>(ctx.attrs().i("axis"));
  std::int64_t outer = 1, inner = 1;
  for (int d = 0; d < axis; ++d) outer *= shape[d];
  for (int d = axis + 1; d < shape.rank(); ++d) inner *= shape[d];
  return make_step([=, extent = shape[axis], src = ctx.in<T>(0), dst = ctx.out<std::int32_t>()] {
    for (std::int64_t o = 0; o < outer; ++o) {
      for (std::int64_t i = 0; i < inner; ++i) {
        const T* x = src + o * extent * inner + i;
        std::int64_t best = 0;
        for (std::int64_t j = 1; j < extent; ++j) {
          const T now = x[j * inner], so_far = x[best * inner];
          if (better(now, so_far) || (is_nan(so_far) && !is_nan(now))) best = j;
        }
        dst[o * inner + i] = static_cast<std::int32_t>(best);
      }
    }
  });
}

}  // namespace

StepPtr sum(LowerCtx& ctx) {
  if (is_real(ctx.in_type(0).dtype)) return reduce<double>(ctx, 0.0, [](double a, double b) { return a + b; });
  return reduce<std::int32_t>(ctx, 0, [](std::int32_t a, std::int32_t b) {  // wraps
    return static_cast<std::int32_t>(static_cast<std::uint32_t>(a) + static_cast<std::uint32_t>(b));
  });
}

StepPtr reduce_max(LowerCtx& ctx) {
  return with_element(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return reduce<T>(ctx, lowest<T>(), [](T a, T b) { return b > a || is_nan(b) ? b : a; });
  });
}

StepPtr reduce_min(LowerCtx& ctx) {
  return with_element(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return reduce<T>(ctx, highest<T>(), [](T a, T b) { return b < a || is_nan(b) ? b : a; });
  });
}

StepPtr argmax(LowerCtx& ctx) {
  return with_element(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return arg_reduce<T>(ctx, [](T a, T b) { return a > b; });
  });
}

StepPtr argmin(LowerCtx& ctx) {
  return with_element(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return arg_reduce<T>(ctx, [](T a, T b) { return a < b; });
  });
}

// Of n sorted elements, quantile q lies at position q (n - 1), between two neighbours. A NaN anywhere makes all NaN.
StepPtr quantile(LowerCtx& ctx) {
  const auto n = static_cast<std::size_t>(ctx.in_type(0).shape.elements());
  std::vector<double> sorted(n);
  return make_step([sorted, q = ctx.attrs().reals("q"), src = ctx.in<double>(0), dst = ctx.out<double>()]() mutable {
    std::copy_n(src, sorted.size(), sorted.begin());
    const bool bad =
        sorted.empty() || std::any_of(sorted.begin(), sorted.end(), [](double x) { return std::isnan(x); });
    if (!bad) std::sort(sorted.begin(), sorted.end());
    for (std::size_t i = 0; i < q.size(); ++i) {
      if (bad) {
        dst[i] = std::numeric_limits<double>::quiet_NaN();
        continue;
      }
      const double position = q[i] * static_cast<double>(sorted.size() - 1);
      const auto below = static_cast<std::size_t>(position);
      const double lo = sorted[below], hi = sorted[std::min(below + 1, sorted.size() - 1)];
      const double fraction = position - static_cast<double>(below);
      dst[i] = lo == hi || fraction == 0 ? lo : lo + fraction * (hi - lo);
    }
  });
}

}  // namespace sg::reference
