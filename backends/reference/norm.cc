// Softmax, its cross-entropy, and normalisations, row by row of the last axis C (group_norm: by sample and group).
#include <algorithm>
#include <cmath>

#include "backends/reference/kernels.h"

namespace sg::reference {
namespace {

struct Rows {
  std::int64_t count, c;
};

Rows rows_of(const Shape& shape) {
  std::int64_t count = 1;
  for (int d = 0; d < shape.rank() - 1; ++d) count *= shape[d];
  return {count, shape[-1]};
}

// log(sum(exp(x))) = top + log_total, shifted by the largest element so that nothing overflows.
struct LogSumExp {
  double top, log_total;
};

LogSumExp log_sum_exp(const double* x, std::int64_t c) {
  const double top = *std::max_element(x, x + c);
  double total = 0;
  for (std::int64_t j = 0; j < c; ++j) total += std::exp(x[j] - top);
  return {top, std::log(total)};
}

}  // namespace

StepPtr softmax(LowerCtx& ctx) {
  const Rows rows = rows_of(ctx.in_type(0).shape);
  return make_step([rows, src = ctx.in<double>(0), dst = ctx.out<double>()] {
    for (std::int64_t r = 0; r < rows.count && rows.c > 0; ++r) {
      const double* x = src + r * rows.c;
      double* y = dst + r * rows.c;
      const double top = *std::max_element(x, x + rows.c);
      double total = 0;
      for (std::int64_t j = 0; j < rows.c; ++j) total += y[j] = std::exp(x[j] - top);
      for (std::int64_t j = 0; j < rows.c; ++j) y[j] /= total;
    }
  });
}

StepPtr log_softmax(LowerCtx& ctx) {
  const Rows rows = rows_of(ctx.in_type(0).shape);
  return make_step([rows, src = ctx.in<double>(0), dst = ctx.out<double>()] {
    for (std::int64_t r = 0; r < rows.count && rows.c > 0; ++r) {
      const double* x = src + r * rows.c;
      const auto [top, log_total] = log_sum_exp(x, rows.c);
      for (std::int64_t j = 0; j < rows.c; ++j) dst[r * rows.c + j] = (x[j] - top) - log_total;
    }
  });
}

// logits S + [C], labels S -> S
StepPtr cross_entropy(LowerCtx& ctx) {
  const Rows rows = rows_of(ctx.in_type(0).shape);
  return make_step([rows, check = IndexCheck(ctx, rows.c), logits = ctx.in<double>(0), labels = ctx.in<std::int32_t>(1),
                    dst = ctx.out<double>()] {
    for (std::int64_t r = 0; r < rows.count; ++r) {
      check(labels[r], r);
      const double* x = logits + r * rows.c;
      const auto [top, log_total] = log_sum_exp(x, rows.c);
      dst[r] = log_total - (x[labels[r]] - top);
    }
  });
}

// (x - mean) / sqrt(variance + eps) * gamma + beta, the variance divided by C.
StepPtr layer_norm(LowerCtx& ctx) {
  const Rows rows = rows_of(ctx.in_type(0).shape);
  return make_step([rows, eps = ctx.attrs().d("eps"), src = ctx.in<double>(0), gamma = ctx.in<double>(1),
                    beta = ctx.in<double>(2), dst = ctx.out<double>()] {
    const auto n = static_cast<double>(rows.c);
    for (std::int64_t r = 0; r < rows.count; ++r) {
      const double* x = src + r * rows.c;
      double mean = 0, variance = 0;
      for (std::int64_t j = 0; j < rows.c; ++j) mean += x[j];
      mean /= n;
      for (std::int64_t j = 0; j < rows.c; ++j) variance += (x[j] - mean) * (x[j] - mean);
      const double scale = 1 / std::sqrt(variance / n + eps);
      for (std::int64_t j = 0; j < rows.c; ++j) dst[r * rows.c + j] = (x[j] - mean) * scale * gamma[j] + beta[j];
    }
  });
}

// x / sqrt(mean(x^2) + eps) * gamma
StepPtr rms_norm(LowerCtx& ctx) {
  const Rows rows = rows_of(ctx.in_type(0).shape);
  return make_step(
      [rows, eps = ctx.attrs().d("eps"), src = ctx.in<double>(0), gamma = ctx.in<double>(1), dst = ctx.out<double>()] {
        for (std::int64_t r = 0; r < rows.count; ++r) {
          const double* x = src + r * rows.c;
          double sum2 = 0;
          for (std::int64_t j = 0; j < rows.c; ++j) sum2 += x[j] * x[j];
          const double scale = 1 / std::sqrt(sum2 / static_cast<double>(rows.c) + eps);
          for (std::int64_t j = 0; j < rows.c; ++j) dst[r * rows.c + j] = x[j] * scale * gamma[j];
        }
      });
}

// x (N,...,C): layer_norm's formula over the C/groups channels of a group at all places of a sample.
StepPtr group_norm(LowerCtx& ctx) {
  const Shape& shape = ctx.in_type(0).shape;
  const std::int64_t samples = shape[0], c = shape[-1], groups = ctx.attrs().i("groups");
  std::int64_t places = 1;
  for (int d = 1; d < shape.rank() - 1; ++d) places *= shape[d];
  return make_step([samples, places, c, groups, eps = ctx.attrs().d("eps"), src = ctx.in<double>(0),
                    gamma = ctx.in<double>(1), beta = ctx.in<double>(2), dst = ctx.out<double>()] {
    const std::int64_t width = c / groups;
    const auto n = static_cast<double>(places * width);
    for (std::int64_t s = 0; s < samples; ++s) {
      for (std::int64_t g = 0; g < groups; ++g) {
        const auto over_group = [&](auto f) {  // f(place in x, channel)
          for (std::int64_t p = 0; p < places; ++p) {
            for (std::int64_t j = g * width; j < (g + 1) * width; ++j) f((s * places + p) * c + j, j);
          }
        };
        double mean = 0, variance = 0;
        over_group([&](std::int64_t i, std::int64_t) { mean += src[i]; });
        mean /= n;
        over_group([&](std::int64_t i, std::int64_t) { variance += (src[i] - mean) * (src[i] - mean); });
        const double scale = 1 / std::sqrt(variance / n + eps);
        over_group([&](std::int64_t i, std::int64_t j) { dst[i] = (src[i] - mean) * scale * gamma[j] + beta[j]; });
      }
    }
  });
}

}  // namespace sg::reference
