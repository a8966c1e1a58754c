// gradcheck itself: it passes what is right, and it fails what is wrong, at the order at which it is wrong.
#include "core/gradcheck.h"

#include <cmath>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

const Tensor kPoint = Tensor::of<double>({3}, {0.4, -0.7, 1.3});

GradcheckResult check(const GraphFn& f, GradcheckOptions options = {}) {
  return gradcheck(f, std::span(&kPoint, 1), reference_backend(), options);
}

GradcheckOptions unfrozen() {
  GradcheckOptions options;
  options.freeze = false;
  return options;
}

TEST(GradcheckItself, PassesACorrectFunction) {
  const auto result = check([](Tape&, std::span<const Value> x) { return exp(x[0]) * sin(x[0]); });
  EXPECT_TRUE(result.ok) << result.message;
  EXPECT_LT(result.error, 1e-6);
}

// Forward x^2, VJP 3: what an op with a wrong rule looks like.
TEST(GradcheckItself, FailsAWrongVjp) {
  const auto result =
      check([](Tape&, std::span<const Value> x) { return 3.0 * x[0] + stop_gradient(square(x[0]) - 3.0 * x[0]); },
            unfrozen());
  EXPECT_FALSE(result.ok);
  EXPECT_EQ(result.order, 1);
  EXPECT_FALSE(result.message.empty());
}

// Forward x^2, first derivative 2x as it should be, second derivative 0 instead of 2.
TEST(GradcheckItself, FailsAWrongSecondDerivative) {
  const GraphFn f = [](Tape&, std::span<const Value> x) {
    const Value line = 2.0 * stop_gradient(x[0]) * x[0];
    return line + stop_gradient(square(x[0]) - line);
  };
  GradcheckOptions first = unfrozen();
  first.order = 1;
  EXPECT_TRUE(check(f, first).ok);
  const auto result = check(f, unfrozen());
  EXPECT_FALSE(result.ok);
  EXPECT_EQ(result.order, 2);
}

TEST(GradcheckItself, FailsASlightlyWrongFactor) {
  const GraphFn f = [](Tape&, std::span<const Value> x) { return 1.0001 * x[0] + stop_gradient(x[0] - 1.0001 * x[0]); };
  EXPECT_FALSE(check(f, unfrozen()).ok);
}

TEST(GradcheckItself, SurrogateFailsUnfrozenAndPassesFrozen) {
  const GraphFn f = [](Tape&, std::span<const Value> x) { return x[0] + stop_gradient(tanh(x[0]) - x[0]); };
  EXPECT_FALSE(check(f, unfrozen()).ok);
  const auto frozen = check(f);
  EXPECT_TRUE(frozen.ok) << frozen.message;
}

TEST(GradcheckItself, FreezesPiecewiseOps) {
  const GraphFn f = [](Tape&, std::span<const Value> x) { return x[0] * round(3.0 * x[0]); };
  EXPECT_TRUE(check(f).ok);
}

TEST(GradcheckItself, FailsAGradientThatIsNotANumber) {
  const GraphFn f = [](Tape&, std::span<const Value> x) { return sqrt(square(x[0] - x[0])); };
  EXPECT_FALSE(check(f).ok);
}

TEST(GradcheckItself, ChecksOnlyTheInputsAskedFor) {
  const Tensor inputs[] = {kPoint, kPoint};
  const GraphFn f = [](Tape&, std::span<const Value> x) {
    return square(x[0]) + (x[1] + stop_gradient(exp(x[1]) - x[1]));
  };
  GradcheckOptions options = unfrozen();
  options.wrt = {true, false};
  EXPECT_TRUE(gradcheck(f, inputs, reference_backend(), options).ok);
  options.wrt = {true, true};
  EXPECT_FALSE(gradcheck(f, inputs, reference_backend(), options).ok);
}

TEST(JacobianOf, ALinearMapIsItsMatrix) {
  const GraphFn f = [](Tape&, std::span<const Value> x) { return 2.0 * x[0] + sum(x[0], {}, true); };
  const Tensor j = jacobian(f, std::span(&kPoint, 1), 0, reference_backend());
  expect_values(j, {3, 1, 1, 1, 3, 1, 1, 1, 3}, 1e-15);
}

}  // namespace
}  // namespace sg::test
