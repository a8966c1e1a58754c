// The estimators that are a term of the loss, on a small decoder in float64: the encoder gets the second-order or the
// exact gradient, the decoder's parameters exactly those of L(D(q)), and the loss keeps its value.
#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"
#include "tests/ops/matrices.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

constexpr std::int64_t kRows = 4, kDim = 3, kHidden = 5;

Tensor draw(std::uint64_t seed, Shape shape, double scale = 1) {
  Rng rng(seed);
  return normal_reals(shape, scale)(rng).cast(DType::f64);
}

struct Decoder {
  Variable weight{"weight", draw(1, {kDim, kHidden})}, bias{"bias", draw(2, {kHidden})},
      out{"out", draw(3, {kHidden, 2})};
  Tensor target = draw(4, {kRows, 2});

  Value loss(Value x) {
    Tape& tape = *x.tape;
    const Value rows = reshape(x, {kRows, kDim});
    const Value y = matmul(tanh(matmul(rows, tape.read(weight)) + tape.read(bias)), tape.read(out));
    return mean(square(y - tape.constant(target)) * (1.0 + square(y)));
  }
  std::vector<Value> parameters(Tape& tape) { return {tape.read(weight), tape.read(bias), tape.read(out)}; }
};

// A step under the row `name`: z through an encoder's parameter, z_q as a map, and the term of the row.
struct Step {
  Decoder decoder;
  Variable shift{"shift", draw(5, {kDim}, 0.1)};
  Tensor z_data = draw(6, {kRows, kDim}), q_data = draw(7, {kRows, kDim});
  Tape tape;
  Value z, q, loss, total;

  explicit Step(const char* name) {
    z = tape.constant(z_data) + tape.read(shift);
    q = tape.constant(q_data);
    const EstimatorDef def = estimator_by_name(name).def;
    Lookup lookup;
    lookup.z = z;
    lookup.q = q;
    const Value z_q = reshape(def.estimate(lookup), {2, kRows / 2, kDim});
    loss = decoder.loss(z_q);
    total = loss + def.loss_term(loss, lookup, z_q);
  }
  Tensor value(Value v) { return eval(v, reference_backend()); }
};

// d loss / d x at x, by a tape of its own.
Tensor gradient_at(const Tensor& x) {
  Decoder decoder;
  Tape tape;
  const Value v = tape.constant(x);
  return eval(gradient(decoder.loss(v), v), reference_backend());
}

void expect_equal(const Tensor& got, const Tensor& wanted, const char* what) {
  ASSERT_EQ(got.shape(), wanted.shape()) << what;
  for (std::int64_t i = 0; i < wanted.elements(); ++i)
    EXPECT_NEAR(got.at(i), wanted.at(i), 1e-12 * std::max(1.0, std::abs(wanted.at(i)))) << what << " element " << i;
}

void expect_decoder_untouched(Step& step) {
  EXPECT_TRUE(same_bits(step.value(step.total), step.value(step.loss)));
  const auto parameters = step.decoder.parameters(step.tape);
  const auto with_term = gradients(step.total, parameters);
  Decoder decoder;
  Tape tape;
  const Value loss = decoder.loss(tape.constant(step.q_data));
  const auto plain = gradients(loss, decoder.parameters(tape));
  for (std::size_t i = 0; i < plain.size(); ++i)
    EXPECT_TRUE(same_bits(step.value(with_term[i]), eval(plain[i], reference_backend()))) << "parameter " << i;
}

TEST(ExactGradient, GivesTheEncoderTheGradientAtZ) {
  Step step("exact");
  expect_equal(step.value(gradient(step.total, step.z)), gradient_at(step.value(step.z)), "z");
  expect_decoder_untouched(step);
}

TEST(ExactGradient, ReachesTheEncodersParameters) {
  Step step("exact");
  const Tensor at_z = gradient_at(step.value(step.z)),
               got = step.value(gradient(step.total, step.tape.read(step.shift)));
  for (std::int64_t d = 0; d < kDim; ++d) {
    double wanted = 0;
    for (std::int64_t r = 0; r < kRows; ++r) wanted += at_z.at(r * kDim + d);
    EXPECT_NEAR(got.at(d), wanted, 1e-12);
  }
  EXPECT_NE(gradient_flow(step.loss, step.z).state, GradientFlow::State::live) << "z_q itself is sg[q]";
}

TEST(HessianEstimator, AddsTheHessianTimesTheError) {
  Step step("hessian");
  const Tensor z = step.value(step.z), at_q = gradient_at(step.q_data);
  Decoder decoder;
  const Tensor hessian = jacobian([&](Tape&, std::span<const Value> x) { return gradient(decoder.loss(x[0]), x[0]); },
                                  {&step.q_data, 1}, 0, reference_backend());
  Tensor wanted = at_q;
  const std::int64_t n = kRows * kDim;
  double largest = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    double second = 0;
    for (std::int64_t j = 0; j < n; ++j) second += hessian.at(i * n + j) * (z.at(j) - step.q_data.at(j));
    wanted.set(i, at_q.at(i) + second);
    largest = std::max(largest, std::abs(second));
  }
  ASSERT_GT(largest, 0.01) << "the test needs a curved loss";
  expect_equal(step.value(gradient(step.total, step.z)), wanted, "z");
  expect_decoder_untouched(step);
}

TEST(HessianEstimator, AddsNothingToALinearLoss) {
  Tape tape;
  const Value z = tape.constant(draw(8, {2, 3})), q = tape.constant(draw(9, {2, 3}));
  const Value z_q = straight_through(z, q), loss = sum(z_q * 3.0);
  const Tensor g = eval(gradient(loss + hessian_term(loss, z, q, z_q), z), reference_backend());
  for (std::int64_t i = 0; i < g.elements(); ++i) EXPECT_EQ(g.at(i), 3.0);
}

TEST(LossTerms, RefuseAnotherNumberOfRows) {
  Tape tape;
  const Value z = tape.input("z", {DType::f32, {2, 3}}), other = tape.input("other", {DType::f32, {3, 3}});
  SG_EXPECT_ERROR(shape, "z_q must hold the rows of z", exact_gradient_term(sum(other), z, other));
  SG_EXPECT_ERROR(shape, "z_q must hold the rows of z", hessian_term(sum(other), z, z, other));
}

}  // namespace
}  // namespace sg::test
