// Softmax, its cross-entropy, and normalisations. All may write over their first operand.
#include <cmath>

#include "backends/cpu/lowering.h"

namespace sg::cpu {

StepPtr lower_softmax(LowerCtx& ctx, int) {
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([s = rows_of(ctx.in_type(0).shape), fn = real_table<T>().softmax, x = ctx.in<T>(0),
                      y = ctx.out<T>()] {
      parallel_rows(s.rows, s.cols, kDearGrain,
                    [&](Index begin, Index end) { fn(x + begin * s.cols, y + begin * s.cols, end - begin, s.cols); });
    });
  });
}

StepPtr lower_log_softmax(LowerCtx& ctx, int) {
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([s = rows_of(ctx.in_type(0).shape), fn = real_table<T>().log_softmax, x = ctx.in<T>(0),
                      y = ctx.out<T>()] {
      parallel_rows(s.rows, s.cols, kDearGrain,
                    [&](Index begin, Index end) { fn(x + begin * s.cols, y + begin * s.cols, end - begin, s.cols); });
    });
  });
}

StepPtr lower_cross_entropy(LowerCtx& ctx, int) {
  const RowShape s = rows_of(ctx.in_type(0).shape);
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([s, fn = real_table<T>().cross_entropy, check = IndexCheck(ctx, s.cols), x = ctx.in<T>(0),
                      labels = ctx.in<std::int32_t>(1), y = ctx.out<T>()] {
      check(labels, s.rows);
      parallel_rows(s.rows, s.cols, kDearGrain, [&](Index begin, Index end) {
        fn(x + begin * s.cols, labels + begin, y + begin, end - begin, s.cols);
      });
    });
  });
}

StepPtr lower_layer_norm(LowerCtx& ctx, int) {
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([s = rows_of(ctx.in_type(0).shape), eps = ctx.attrs().d("eps"), fn = real_table<T>().layer_norm,
                      x = ctx.in<T>(0), gamma = ctx.in<T>(1), beta = ctx.in<T>(2), y = ctx.out<T>()] {
      parallel_rows(s.rows, s.cols, kGrain / 2, [&](Index begin, Index end) {
        fn(x + begin * s.cols, gamma, beta, y + begin * s.cols, end - begin, s.cols, eps);
      });
    });
  });
}

StepPtr lower_rms_norm(LowerCtx& ctx, int) {
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([s = rows_of(ctx.in_type(0).shape), eps = ctx.attrs().d("eps"), fn = real_table<T>().rms_norm,
                      x = ctx.in<T>(0), gamma = ctx.in<T>(1), y = ctx.out<T>()] {
      parallel_rows(s.rows, s.cols, kGrain / 2, [&](Index begin, Index end) {
        fn(x + begin * s.cols, gamma, y + begin * s.cols, end - begin, s.cols, eps);
      });
    });
  });
}

// x (N,...,C). Per sample and group: mean, then the mean square deviation from it, then one pass that normalises.
// Samples are dealt to a fixed number of lanes, each with its own place in scratch.
StepPtr lower_group_norm(LowerCtx& ctx, int) {
  const Shape& shape = ctx.in_type(0).shape;
  const Index samples = shape[0], c = shape[-1], groups = ctx.attrs().i("groups");
  Index places = 1;
  for (int d = 1; d < shape.rank() - 1; ++d) places *= shape[d];
  const Index lanes = std::min<Index>(samples, places * c * samples < kGrain ? 1 : 64);
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    const std::size_t sums = align64(static_cast<std::size_t>(c) * sizeof(double));
    const std::size_t values = align64(static_cast<std::size_t>(c) * sizeof(T));
    const std::size_t lane_bytes = sums + 2 * values;
    const Scratch scratch(ctx, lane_bytes * static_cast<std::size_t>(lanes));
    return make_step([=, eps = ctx.attrs().d("eps"), common = &common_table<T>(), table = &real_table<T>(),
                      x = ctx.in<T>(0), gamma = ctx.in<T>(1), beta = ctx.in<T>(2), y = ctx.out<T>()] {
      const Index width = c / groups;
      const double n = static_cast<double>(places * width);
      parallel_chunks(lanes, 1, 1, [&](Index first, Index last) {
        for (Index lane = first; lane < last; ++lane) {
          const std::size_t at = lane_bytes * static_cast<std::size_t>(lane);
          double* acc = scratch.at<double>(at);
          T* mean = scratch.at<T>(at + sums);
          T* scale = scratch.at<T>(at + sums + values);
          const auto group_mean = [&](Index g) {
            double total = 0;
            for (Index j = g * width; j < (g + 1) * width; ++j) total += acc[j];
            return total / n;
          };
          for (Index s = lane; s < samples; s += lanes) {
            const T* from = x + s * places * c;
            std::fill_n(acc, c, 0.0);
            common->sum_cols(from, places, c, c, acc);
            for (Index g = 0; g < groups; ++g) std::fill_n(mean + g * width, width, static_cast<T>(group_mean(g)));
            std::fill_n(acc, c, 0.0);
            table->square_cols(from, places, c, mean, acc);
            for (Index g = 0; g < groups; ++g) {
              const double inverse = 1.0 / std::sqrt(group_mean(g) + eps);
              for (Index j = g * width; j < (g + 1) * width; ++j)
                scale[j] = static_cast<T>(inverse * static_cast<double>(gamma[j]));
            }
            table->normalize_cols(from, mean, scale, beta, y + s * places * c, places, c);
          }
        }
      });
    });
  });
}

}  // namespace sg::cpu
