// Rows by index, and the search that makes the indices. An index out of range is the user's error, found at run time.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/reference/kernels.h"

namespace sg::reference {

void IndexCheck::throw_error(std::int32_t index, std::int64_t position) const {
  throw Error(ErrorKind::attribute,
              fmt::format("{}: index {} at position {} is out of range [0, {})\n  at {}", op_, index, position, bound_,
                          to_string(loc_)),
              loc_);
}
// table (K,D), indices S -> S + [D]
StepPtr gather_rows(LowerCtx& ctx) {
  const Shape& table = ctx.in_type(0).shape;
  const std::int64_t rows = ctx.in_type(1).shape.elements();
  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([rows, d = table[1], check = IndexCheck(ctx, table[0]), src = ctx.in<T>(0),
                      indices = ctx.in<std::int32_t>(1), dst = ctx.out<T>()] {
      for (std::int64_t r = 0; r < rows; ++r) {
        check(indices[r], r);
        std::copy_n(src + indices[r] * d, d, dst + r * d);
      }
    });
  });
}

// indices S, updates S + [D] -> (rows, D)
StepPtr scatter_add_rows(LowerCtx& ctx) {
  const std::int64_t count = ctx.in_type(0).shape.elements();
  const Shape& out = ctx.out_type().shape;
  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([count, rows = out[0], d = out[1], check = IndexCheck(ctx, out[0]),
                      indices = ctx.in<std::int32_t>(0), updates = ctx.in<T>(1), dst = ctx.out<T>()] {
      std::fill_n(dst, rows * d, T{});
      for (std::int64_t r = 0; r < count; ++r) {
        check(indices[r], r);
        for (std::int64_t j = 0; j < d; ++j) dst[indices[r] * d + j] += updates[r * d + j];
      }
    });
  });
}

// indices S -> S + [depth]
StepPtr one_hot(LowerCtx& ctx) {
  const std::int64_t count = ctx.in_type(0).shape.elements(), depth = ctx.attrs().i("depth");
  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([count, depth, indices = ctx.in<std::int32_t>(0), dst = ctx.out<T>()] {
      for (std::int64_t r = 0; r < count; ++r) {
        for (std::int64_t j = 0; j < depth; ++j) dst[r * depth + j] = indices[r] == j ? T{1} : T{0};
      }
    });
  });
}

// indices S -> counts [bins]
StepPtr histogram(LowerCtx& ctx) {
  const std::int64_t count = ctx.in_type(0).shape.elements(), bins = ctx.attrs().i("bins");
  return make_step(
      [count, bins, check = IndexCheck(ctx, bins), indices = ctx.in<std::int32_t>(0), dst = ctx.out<std::int32_t>()] {
        std::fill_n(dst, bins, 0);
        for (std::int64_t r = 0; r < count; ++r) {
          check(indices[r], r);
          ++dst[indices[r]];
        }
      });
}

// z (N,D), codes (K,D) -> (N): the code of least cost, sum (z - c)^2, or -z.c/|c| (0 for a code of zeros). |z| does not
// matter to the order. The lowest index wins a tie; a cost of NaN is never less than another, and never kept over a
// number.
StepPtr nearest_code(LowerCtx& ctx) {
  const Shape &z = ctx.in_type(0).shape, &codes = ctx.in_type(1).shape;
  const bool cosine = ctx.attrs().i("cosine") != 0;
  return make_step([n = z[0], d = z[1], k = codes[0], cosine, rows = ctx.in<double>(0), table = ctx.in<double>(1),
                    dst = ctx.out<std::int32_t>()] {
    for (std::int64_t r = 0; r < n; ++r) {
      const double* row = rows + r * d;
      std::int64_t best = 0;
      double least = std::numeric_limits<double>::quiet_NaN();
      for (std::int64_t i = 0; i < k; ++i) {
        const double* code = table + i * d;
        double distance = 0, product = 0, norm2 = 0;
        for (std::int64_t j = 0; j < d; ++j) {
          distance += (row[j] - code[j]) * (row[j] - code[j]);
          product += row[j] * code[j];
          norm2 += code[j] * code[j];
        }
        const double similarity = norm2 == 0 ? 0 : product / std::sqrt(norm2);
        const double cost = cosine ? -similarity : distance;
        if (cost < least || (std::isnan(least) && !std::isnan(cost))) {
          least = cost;
          best = i;
        }
      }
      dst[r] = static_cast<std::int32_t>(best);
    }
  });
}

}  // namespace sg::reference
