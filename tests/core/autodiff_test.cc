// Reverse mode on the tape: values, need masks, unreachable parameters, higher order, stop_gradient.
#include "core/autodiff.h"

#include <cmath>

#include "backends/backends.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

Tensor reals(Shape shape, std::initializer_list<double> values) { return Tensor::of<double>(shape, values); }

TEST(Gradients, OfASum) {
  Tape tape;
  const Value x = tape.constant(reals({3}, {1, 2, 3}));
  expect_values(eval(gradient(sum(square(x)), x), reference_backend()), {2, 4, 6});
}

TEST(Gradients, AddUpOverUses) {
  Tape tape;
  const Value x = tape.constant(reals({2}, {2, 5}));
  expect_values(eval(gradient(sum(x * x + 3 * x), x), reference_backend()), {7, 13});
}

TEST(Gradients, SumToTheShapeOfABroadcastOperand) {
  Tape tape;
  const Value row = tape.constant(reals({3}, {1, 1, 1})), x = tape.constant(reals({2, 3}, {1, 2, 3, 4, 5, 6}));
  const Value g = gradient(sum(x * row), row);
  EXPECT_EQ(g.shape(), (Shape{3}));
  expect_values(eval(g, reference_backend()), {5, 7, 9});
}

TEST(Gradients, OfTheLossItselfIsOne) {
  Tape tape;
  const Value x = tape.constant(reals({}, {4}));
  const Value loss = square(x);
  EXPECT_EQ(eval(gradient(loss, loss), reference_backend()).item(), 1);
}

TEST(Gradients, SameValueAskedTwice) {
  Tape tape;
  const Value x = tape.constant(reals({}, {4}));
  const auto g = gradients(square(x), {x, x});
  EXPECT_EQ(eval(g[0], reference_backend()).item(), 8);
  EXPECT_EQ(eval(g[1], reference_backend()).item(), 8);
}

TEST(Gradients, ComputeNothingForWhatNobodyNeeds) {
  Tape tape;
  Variable w("w", Tensor({DType::f32, {4, 5}}));
  const Value x = tape.input("x", {DType::f32, {2, 4}}), y = matmul(x, tape.read(w));
  EXPECT_EQ(count_ops(tape, "matmul"), 1);
  gradient(sum(square(y)), tape.read(w));
  EXPECT_EQ(count_ops(tape, "matmul"), 2) << "one more, for w; none for x\n" << tape.to_string();
}

TEST(Gradients, StopBelowTheParameterAskedFor) {
  Tape tape;
  Variable first("first", Tensor({DType::f32, {3}})), second("second", Tensor({DType::f32, {3}}));
  const Value hidden = exp(tape.read(first));
  const Value loss = sum(square(tanh(hidden) * tape.read(second)));
  const int tanhs = count_ops(tape, "tanh"), exps = count_ops(tape, "exp");
  gradient(loss, tape.read(second));
  EXPECT_EQ(count_ops(tape, "tanh"), tanhs);
  EXPECT_EQ(count_ops(tape, "exp"), exps);
  for (const Instr& instr : tape.instrs()) {
    if (instr.forward_of < 0) continue;
    const auto of = op_def(tape.instrs()[static_cast<std::size_t>(instr.forward_of)].op).name;
    EXPECT_TRUE(of != "tanh" && of != "exp") << "a gradient of " << of << " was recorded";
  }
}

TEST(Gradients, IgnoreWhatTheLossDoesNotUse) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}});
  const Value loss = sum(square(x));
  sum(exp(x));
  const auto before = tape.instrs().size();
  gradient(loss, x);
  for (const Instr& instr : tape.instrs().subspan(before)) {
    if (instr.forward_of < 0) continue;
    EXPECT_NE(op_def(tape.instrs()[static_cast<std::size_t>(instr.forward_of)].op).name, "exp");
  }
}

TEST(Gradients, RefuseALossThatIsNotOneRealNumber) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}});
  const unsigned line = __LINE__ + 1;
  const auto e = error_of([&] { gradient(square(x), x); });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->kind(), ErrorKind::shape);
  EXPECT_EQ(e->loc().line(), line);
  SG_EXPECT_ERROR(dtype, "real", gradient(sum(cast(x, DType::i32)), x));
}

TEST(Gradients, UnreachableNamesEveryStopGradientAndItsLine) {
  Tape tape;
  Variable codebook("quantizer.codebook", Tensor({DType::f32, {4, 2}}));
  const Value z = tape.input("z", {DType::f32, {3, 2}}), codes = tape.read(codebook);
  const Value q = gather_rows(codes, nearest_code(z, codes));
  const unsigned first = __LINE__ + 1;
  const Value z_q = z + stop_gradient(q - z);
  const unsigned second = __LINE__ + 1;
  const Value loss = mean(square(z_q)) + mean(square(z - stop_gradient(q)));
  const unsigned asked = __LINE__ + 1;
  const auto e = error_of([&] { gradient(loss, codes); });
  ASSERT_TRUE(e);
  EXPECT_EQ(e->kind(), ErrorKind::unreachable_gradient);
  SG_EXPECT_CONTAINS(e->message(), "quantizer.codebook");
  SG_EXPECT_CONTAINS(e->message(), "autodiff_test.cc:" + std::to_string(first));
  SG_EXPECT_CONTAINS(e->message(), "autodiff_test.cc:" + std::to_string(second));
  SG_EXPECT_CONTAINS(e->message(), "autodiff_test.cc:" + std::to_string(asked));
}

TEST(Gradients, UnreachableSaysWhereTheLossDoesNotDependOnIt) {
  Tape tape;
  Variable unused("unused", Tensor({DType::f32, {2}}));
  const Value x = tape.input("x", {DType::f32, {3}}), w = tape.read(unused);
  SG_EXPECT_ERROR(unreachable_gradient, "does not depend", gradient(sum(x), w));
  SG_EXPECT_ERROR(unreachable_gradient, "unused", gradient(sum(x), w));
}

TEST(Gradients, UnreachableIsZeroOnlyWhenAskedFor) {
  Tape tape;
  const Value x = tape.constant(reals({2}, {1, 2}));
  const Value g = gradient(sum(stop_gradient(x)), x, IfUnreachable::zero);
  expect_values(eval(g, reference_backend()), {0, 0});
}

TEST(Gradients, PiecewiseOpsCutPathsAndAreNamed) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}});
  SG_EXPECT_ERROR(unreachable_gradient, "round", gradient(sum(round(x)), x));
}

TEST(Gradients, OfHigherOrder) {
  Tape tape;
  const Value x = tape.constant(reals({}, {0.7}));
  Value d = sin(x);
  const double s = std::sin(0.7), c = std::cos(0.7);
  for (const double wanted : {c, -s, -c, s}) {
    d = gradient(d, x);
    EXPECT_NEAR(eval(d, reference_backend()).item(), wanted, 1e-14);
  }
}

TEST(Gradients, OfAGradientNorm) {
  Tape tape;
  const Value x = tape.constant(reals({2}, {1, -2}));
  const Value g = gradient(sum(x * x * x), x);  // 3 x^2
  expect_values(eval(gradient(sum(square(g)), x), reference_backend()), {36, -288}, 1e-10);
}

TEST(Gradients, StopGradientCutsAtEveryOrder) {
  Tape tape;
  const Value x = tape.constant(reals({}, {3}));
  const Value g = gradient(x * stop_gradient(x), x);  // x, stopped
  EXPECT_EQ(eval(g, reference_backend()).item(), 3);
  EXPECT_EQ(eval(gradient(g + x, x), reference_backend()).item(), 1);
  EXPECT_EQ(eval(gradient(g, x, IfUnreachable::zero), reference_backend()).item(), 0);
}

TEST(Gradients, VjpTakesSeveralOutputs) {
  Tape tape;
  const Value x = tape.constant(reals({2}, {3, 5}));
  const Value outputs[] = {square(x), 2 * x},
              cotangents[] = {tape.constant(reals({2}, {1, 10})), tape.constant(reals({2}, {100, 0}))};
  expect_values(eval(vjp(outputs, cotangents, std::span(&x, 1))[0], reference_backend()), {206, 100});
}

// github.com/pytorch/functorch/issues/353: |M q(y) - M x| + lambda |y|_1 with q(y) = tanh y + sg(clip(round y) - tanh
// y). There, second derivatives lost the term of tanh''.
TEST(Gradients, StraightThroughOfFunctorch353HasTheRightSecondDerivatives) {
  constexpr double m[2][2] = {{-1.7055013, 0.214439}, {1.5994732, 1.179864}};
  constexpr double x0[2] = {0.279999, -1.8200971}, y0[2] = {-0.33679163, -1.0274953}, lambda = 0.1;
  Tape tape;
  const Value matrix = tape.constant(reals({2, 2}, {m[0][0], m[0][1], m[1][0], m[1][1]}));
  const Value x = tape.constant(reals({2, 1}, {x0[0], x0[1]})), y = tape.constant(reals({2, 1}, {y0[0], y0[1]}));
  const Value smooth = tanh(y), q = smooth + stop_gradient(clamp(round(y), -1, 1) - smooth);
  const Value loss = norm(matmul(matrix, q) - matmul(matrix, x), {}) + lambda * sum(abs(y));
  const Value g = gradient(loss, y);

  // By hand: r = M(q - x), c = M^T r / |r|, J = diag(sech^2 y): gradient J c + lambda sign y,
  // Hessian J M^T (I - r r^T / |r|^2) M J / |r| + diag(c tanh'' y).
  double quantized[2], sech2[2], second[2], r[2], c[2];
  for (int i = 0; i < 2; ++i) {
    quantized[i] = std::nearbyint(y0[i]);
    const double t = std::tanh(y0[i]);
    sech2[i] = 1 - t * t, second[i] = -2 * t * (1 - t * t);
  }
  for (int i = 0; i < 2; ++i) r[i] = m[i][0] * (quantized[0] - x0[0]) + m[i][1] * (quantized[1] - x0[1]);
  const double length = std::hypot(r[0], r[1]);
  for (int i = 0; i < 2; ++i) c[i] = (m[0][i] * r[0] + m[1][i] * r[1]) / length;
  const Tensor first = eval(g, reference_backend());
  EXPECT_NEAR(first.at(0), -0.40328947, 1e-6);  // JAX's, in the issue
  EXPECT_NEAR(first.at(1), 0.26329258, 1e-6);
  for (int i = 0; i < 2; ++i) {
    Tensor pick({DType::f64, {2, 1}});
    pick.set(i, 1);
    const Tensor row = eval(gradient(sum(g * tape.constant(pick)), y), reference_backend());
    for (int j = 0; j < 2; ++j) {
      const double mm = m[0][i] * m[0][j] + m[1][i] * m[1][j];
      const double hessian = sech2[i] * sech2[j] * (mm - c[i] * c[j]) / length + (i == j ? c[i] * second[i] : 0);
      EXPECT_NEAR(row.at(j), hessian, 1e-12) << i << "," << j;
    }
  }
}

TEST(ExplainGradient, SaysLiveBlockedAndUnconnected) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}}), y = tape.input("y", {DType::f32, {3}}),
              z = tape.input("z", {DType::f32, {3}});
  const unsigned line = __LINE__ + 1;
  const Value loss = sum(x * stop_gradient(y));
  const auto before = tape.instrs().size();
  SG_EXPECT_CONTAINS(explain_gradient(loss, x), "live");
  SG_EXPECT_CONTAINS(explain_gradient(loss, y), "blocked");
  SG_EXPECT_CONTAINS(explain_gradient(loss, y), "autodiff_test.cc:" + std::to_string(line));
  SG_EXPECT_CONTAINS(explain_gradient(loss, z), "unconnected");
  EXPECT_EQ(tape.instrs().size(), before) << "explaining records nothing";
  EXPECT_EQ(gradient_flow(loss, x).state, GradientFlow::State::live);
  EXPECT_EQ(gradient_flow(loss, y).state, GradientFlow::State::blocked);
  EXPECT_EQ(gradient_flow(loss, y).cuts.size(), 1u);
  EXPECT_EQ(gradient_flow(loss, z).state, GradientFlow::State::unconnected);
}

TEST(ExplainGradient, LivePathAlsoNamesTheCutOnes) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {3}});
  const Value loss = sum(x * stop_gradient(x));
  const std::string text = explain_gradient(loss, x);
  SG_EXPECT_CONTAINS(text, "live");
  SG_EXPECT_CONTAINS(text, "stop_gradient");
}

}  // namespace
}  // namespace sg::test
