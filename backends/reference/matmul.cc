// Matrix product: dst (B..., M, N) = a (B..., M, K) x b (B..., K, N), each side stored as it is or transposed.
#include "backends/reference/kernels.h"

namespace sg::reference {

StepPtr matmul(LowerCtx& ctx) {
  const Shape &a = ctx.in_type(0).shape, &y = ctx.out_type().shape;
  const bool ta = ctx.attrs().i("transpose_a") != 0, tb = ctx.attrs().i("transpose_b") != 0;
  const std::int64_t m = y[-2], n = y[-1], k = ta ? a[-2] : a[-1];
  std::int64_t batch = 1;
  for (int d = 0; d < y.rank() - 2; ++d) batch *= y[d];
  const auto operand = [&](int i) {
    return i < static_cast<int>(ctx.instr().inputs.size()) ? ctx.in<double>(i) : nullptr;
  };
  return make_step([=, lhs = ctx.in<double>(0), rhs = ctx.in<double>(1), bias = operand(2), skip = operand(3),
                    dst = ctx.out<double>()] {
    for (std::int64_t s = 0; s < batch; ++s) {
      const double *left = lhs + s * m * k, *right = rhs + s * k * n;
      for (std::int64_t i = 0; i < m; ++i) {
        for (std::int64_t j = 0; j < n; ++j) {
          double total = (bias != nullptr ? bias[j] : 0) + (skip != nullptr ? skip[(s * m + i) * n + j] : 0);
          for (std::int64_t l = 0; l < k; ++l) {
            total += (ta ? left[l * m + i] : left[i * k + l]) * (tb ? right[j * k + l] : right[l * n + j]);
          }
          dst[(s * m + i) * n + j] = total;
        }
      }
    }
  });
}

}  // namespace sg::reference
