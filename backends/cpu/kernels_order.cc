// Ops about the order of elements: argmax, argmin, quantile.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "backends/cpu/lowering.h"

namespace sg::cpu {
namespace {

// x (outer, extent, inner) -> index along the middle axis, ties to the lowest. A number takes the place of a NaN; an
// axis full of NaN gives 0.
template <bool kMax, class T>
StepPtr arg_reduce(LowerCtx& ctx) {
  const Shape& shape = ctx.in_type(0).shape;
  const auto axis = static_cast<int>(ctx.attrs().i("axis"));
  Index outer = 1, inner = 1;
  for (int d = 0; d < axis; ++d) outer *= shape[d];
  for (int d = axis + 1; d < shape.rank(); ++d) inner *= shape[d];
  const Index extent = shape[axis];
  const auto rows_fn = kMax ? common_table<T>().argmax_rows : common_table<T>().argmin_rows;
  return make_step([=, x = ctx.in<T>(0), y = ctx.out<std::int32_t>()] {
    if (inner == 1) {
      parallel_rows(outer, extent, kGrain,
                    [&](Index begin, Index end) { rows_fn(x + begin * extent, end - begin, extent, y + begin); });
      return;
    }
    constexpr Index kStrip = 256;
    const Index strips = ceil_div(inner, kStrip);
    parallel_rows(outer * strips, extent * std::min(inner, kStrip), kGrain, [&](Index begin, Index end) {
      for (Index s = begin; s < end; ++s) {
        const Index o = s / strips, i0 = s % strips * kStrip, n = std::min(kStrip, inner - i0);
        const T* source = x + o * extent * inner + i0;
        std::int32_t* at = y + o * inner + i0;
        T best[kStrip];
        std::copy_n(source, n, best);
        std::fill_n(at, n, 0);
        for (Index j = 1; j < extent; ++j) {
          const T* row = source + j * inner;
#pragma omp simd
          for (Index i = 0; i < n; ++i) {
            const bool take =
                (kMax ? row[i] > best[i] : row[i] < best[i]) | ((best[i] != best[i]) & (row[i] == row[i]));
            best[i] = take ? row[i] : best[i];
            at[i] = take ? static_cast<std::int32_t>(j) : at[i];
          }
        }
      }
    });
  });
}

}  // namespace

StepPtr lower_argmax(LowerCtx& ctx, int) {
  return with_any(ctx.in_type(0).dtype, [&](auto element) { return arg_reduce<true, decltype(element)>(ctx); });
}
StepPtr lower_argmin(LowerCtx& ctx, int) {
  return with_any(ctx.in_type(0).dtype, [&](auto element) { return arg_reduce<false, decltype(element)>(ctx); });
}

// Quantile q of n elements lies at position q (n - 1) of their order, between two neighbours. A NaN anywhere makes all
// NaN. The order statistics are selected one after the other, from the least, each in what lies above the one before.
StepPtr lower_quantile(LowerCtx& ctx, int) {
  return with_real(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    struct Cut {
      std::size_t to;
      Index below, above;
      double fraction;
    };
    const Index n = ctx.in_type(0).shape.elements();
    std::vector<Cut> cuts;
    const std::vector<double>& q = ctx.attrs().reals("q");
    for (std::size_t i = 0; i < q.size(); ++i) {
      const double position = q[i] * static_cast<double>(n - 1);
      const auto below = static_cast<Index>(position);
      cuts.push_back({i, below, std::min(below + 1, n - 1), position - static_cast<double>(below)});
    }
    std::sort(cuts.begin(), cuts.end(), [](const Cut& a, const Cut& b) { return a.below < b.below; });
    const Scratch scratch(ctx, static_cast<std::size_t>(n) * sizeof(T));
    return make_step([=, x = ctx.in<T>(0), y = ctx.out<T>()] {
      T* sorted = scratch.at<T>();
      std::copy_n(x, n, sorted);
      if (std::any_of(x, x + n, [](T v) { return std::isnan(v); })) {
        std::fill_n(y, cuts.size(), std::numeric_limits<T>::quiet_NaN());
        return;
      }
      Index next = 0;  // everything before it is in its place
      const auto order_statistic = [&](Index k) {
        if (k >= next) {
          std::nth_element(sorted + next, sorted + k, sorted + n);
          next = k + 1;
        }
        return static_cast<double>(sorted[k]);
      };
      for (const Cut& cut : cuts) {
        const double lo = order_statistic(cut.below), hi = order_statistic(cut.above);
        y[cut.to] = static_cast<T>(lo == hi || cut.fraction == 0 ? lo : lo + cut.fraction * (hi - lo));
      }
    });
  });
}

}  // namespace sg::cpu
