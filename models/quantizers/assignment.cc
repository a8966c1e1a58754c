#include "models/quantizers/assignment.h"

#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/masks.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kSharpness = 10;  // of the paper and its code
constexpr int kIterations = 5;
constexpr double kTiny = 1e-30;  // a code that no row can pay for in f32

}  // namespace

// The plan is diag(a) P diag(b). P has the least cost of each row subtracted, so that no row of it vanishes in f32; `a`
// starts with what was subtracted, which is OptVQ's start.
Value sinkhorn_assignment(Value z_in, Value codes_in, Value mask) {
  const Scope scope(*z_in.tape, "sinkhorn");
  const Value z = stop_gradient(z_in), codes = stop_gradient(codes_in);
  const std::int64_t n = z.shape()[0], k = codes.shape()[0];
  const Value distance = sqrt(maximum(sum(square(z), {-1}, true) - distance_logits(z, codes), 0.0));
  const Value spread = sqrt(mean_of_rows(square(distance - mean_of_rows(distance, mask)), mask)) + 1e-6;
  const Value cost = distance / spread;
  const Value least = min(cost, {-1}, true);
  const Value of_rows = mask ? where(greater(reshape(mask, {n, 1}), 0.0), least, max(least)) : least;
  const Value plan = exp(-kSharpness * (cost - least));
  const Value rows = count_rows(z, mask);
  Value a = zero_padding(exp(-kSharpness * (least - min(of_rows))), mask), b;
  for (int i = 0; i < kIterations; ++i) {
    b = 1.0 / (static_cast<double>(k) * maximum(matmul(plan, a, true), kTiny));
    a = zero_padding(1.0 / (rows * maximum(matmul(plan, b), kTiny)), mask);
  }
  return argmax(plan * reshape(b, {1, k}));
}

}  // namespace sg
