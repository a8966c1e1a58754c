// check_estimator: sound estimators pass, and for each check one that breaks just that.
#include "ops/estimator_check.h"

#include "backends/backends.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

EstimatorReport check(const Estimator& e, EstimatorCheckOptions options = {}) {
  options.backends.push_back(&backend("cpu"));
  return check_estimator(e, reference_backend(), options);
}

// Fails these checks and no others.
void expect_failures(const EstimatorReport& report, std::initializer_list<std::string_view> wanted) {
  EXPECT_EQ(report.ok, wanted.size() == 0);
  for (const EstimatorCheck& c : report.checks)
    EXPECT_EQ(c.ok, std::find(wanted.begin(), wanted.end(), c.name) == wanted.end()) << report.to_string();
}

Tensor scaled_identity(double factor) {
  Tensor g({DType::f64, {4, 4}});
  for (std::int64_t i = 0; i < 4; ++i) g.set(i * 5, factor);
  return g;
}
DeclaredJacobian declared(double factor) {
  return [factor](const Tensor&, const Tensor&) { return scaled_identity(factor); };
}

Value half_trust(Value z, Value q) {
  const Value gz = 0.5 * z;
  return gz + stop_gradient(q - gz);
}

TEST(CheckEstimator, PassesWhatKeepsItsPromises) {
  expect_failures(
      check(half_trust, {.jacobian_z = declared(0.5), .translation_invariant = true, .scale_invariant = true}), {});
  expect_failures(check(straight_through, {.jacobian_z = declared(1)}), {});
}

TEST(CheckEstimator, PassesTheEstimatorsOfTheTable) {
  for (const EstimatorDef& def : estimator_table()) {
    if (!def.rows_only) continue;
    SCOPED_TRACE(def.name);
    const BoundEstimator estimator = estimator_by_name(def.name);
    const auto report = check([&](Value z, Value q) { return estimator(z, q); }, {.exact_forward = def.exact_forward});
    if (def.reaches_codes)
      expect_failures(report, {"jacobian q"});  // it is declared where these rows are tested, and not here
    else
      expect_failures(report, {});
  }
}

TEST(CheckEstimator, ReportsWhatMovesWithTheOrigin) {
  const auto report = check(rotation_trick);
  SG_EXPECT_CONTAINS(report.check("translation").message, "not invariant");
  SG_EXPECT_CONTAINS(report.check("scale").message, "invariant: J(s z, s q)");
  SG_EXPECT_CONTAINS(check(straight_through).check("translation").message, "invariant: J(z+c");
  SG_EXPECT_CONTAINS(report.to_string(), "ok      translation");
}

TEST(CheckEstimator, FindsAForwardValueThatIsNotTheCode) {
  const auto report = check([](Value z, Value q) { return z + stop_gradient(q * (1 + 1e-6) - z); });
  expect_failures(report, {"forward", "degenerate rows"});
  SG_EXPECT_CONTAINS(report.check("forward").message, "z_q[0,0] is");
}

// Right in the reference's doubles, once rounded to f32; not in f32 itself.
TEST(CheckEstimator, FindsAForwardValueThatIsWrongOnOneBackendOnly) {
  const auto report = check([](Value z, Value q) { return z + stop_gradient((q + 0.5 * z) - 1.5 * z); });
  SG_EXPECT_CONTAINS(report.check("forward").message, "f32 on cpu");
}

TEST(CheckEstimator, FindsAnotherJacobianThanDeclared) {
  const auto report = check(half_trust, {.jacobian_z = declared(0.4)});
  expect_failures(report, {"jacobian z"});
  SG_EXPECT_CONTAINS(report.check("jacobian z").message, "d z_q[0,0] / d z[0,0] is 0.5, wanted 0.4");
}

TEST(CheckEstimator, FindsAGradientThatReachesTheCodes) {
  const auto leaks = [](Value z, Value q) { return graft(q, z + q); };
  const auto report = check(leaks);
  expect_failures(report, {"jacobian q"});
  SG_EXPECT_CONTAINS(report.check("jacobian q").message, "live");
  expect_failures(check(leaks, {.jacobian_q = declared(1)}), {});
  expect_failures(check(leaks, {.jacobian_q = declared(0.5)}), {"jacobian q"});
}

TEST(CheckEstimator, FindsAKink) {  // relu(z - sg z) has derivative 0 by convention, and 1/2 by differences
  const auto report =
      check([](Value z, Value q) { return graft(q, z + relu(z - stop_gradient(z))); }, {.jacobian_z = declared(1)});
  expect_failures(report, {"gradcheck 1", "gradcheck 2"});
}

TEST(CheckEstimator, FindsAKinkOfTheFirstDerivative) {
  const auto report = check([](Value z, Value q) {
    const Value moved = z - stop_gradient(z);
    return graft(q, z + 1e-2 * (moved * relu(moved)));
  });
  expect_failures(report, {"gradcheck 2"});
}

TEST(CheckEstimator, FindsRowsWithoutADirection) {
  const auto report =
      check([](Value z, Value q) { return graft(q, z * stop_gradient(norm(q, {-1}, true) / norm(z, {-1}, true))); });
  expect_failures(report, {"degenerate rows"});
  SG_EXPECT_CONTAINS(report.check("degenerate rows").message, "z = 0");
}

TEST(CheckEstimator, FindsAnInvarianceThatIsDeclaredOnly) {
  const auto by_length = [](Value z, Value q) { return graft(q, z * stop_gradient(square(z) + square(q))); };
  expect_failures(check(by_length, {.translation_invariant = true}), {"translation"});
  expect_failures(check(by_length, {.scale_invariant = true}), {"scale"});
  const auto by_difference = [](Value z, Value q) { return graft(q, z * stop_gradient(square(z - q))); };
  expect_failures(check(by_difference, {.translation_invariant = true}), {});
}

TEST(CheckEstimator, TurnsErrorsOfTheEstimatorIntoFailures) {
  const auto report = check([](Value z, Value) -> Value { return sum(z); });
  EXPECT_FALSE(report.ok);
  SG_EXPECT_CONTAINS(report.check("forward").message, "z_q is f32[]");
  SG_EXPECT_ERROR(usage, "no check is named 'nosuch'", report.check("nosuch"));
}

}  // namespace
}  // namespace sg::test
