// Values of the losses and which side each of them trains.
#include "models/losses.h"

#include <cmath>

#include "core/autodiff.h"
#include "models/statistics.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

struct Pair {
  Tape tape;
  Value z = tape.input("z", {DType::f32, {2, 2}}), q = tape.input("q", {DType::f32, {2, 2}});
  std::vector<Feed> feeds{{z, floats({2, 2}, {1, 2, 3, 4})}, {q, floats({2, 2}, {0, 2, 5, 1})}};  // z - q = 1 0 -2 3
};

TEST(Losses, AreMeansOverAllElements) {
  Pair p;
  const VqLosses losses = vq_losses(p.z, p.q, 2, 0.5);
  const std::vector<Tensor> t =
      run_once(p.tape, {mean_squared_error(p.z, p.q), losses.codebook, losses.commitment, losses.total}, p.feeds);
  expect_near(t[0], {3.5}, 1e-6);
  expect_near(t[1], {3.5}, 1e-6);
  expect_near(t[2], {3.5}, 1e-6);
  expect_near(t[3], {2.5 * 3.5}, 1e-6);
}

TEST(Losses, TheCodebookTermTrainsOnlyTheCodes) {
  Pair p;
  const Value loss = codebook_loss(p.z, p.q);
  expect_near(run_once(p.tape, {gradient(loss, p.q)}, p.feeds)[0], {-0.5, 0, 1, -1.5}, 1e-6);
  expect_error(ErrorKind::unreachable_gradient, {"'z'", "stop_gradient"}, [&] { gradient(loss, p.z); });
}

TEST(Losses, TheCommitmentTermTrainsOnlyTheEncoder) {
  Pair p;
  const Value loss = commitment_loss(p.z, p.q);
  expect_near(run_once(p.tape, {gradient(loss, p.z)}, p.feeds)[0], {0.5, 0, -1, 1.5}, 1e-6);
  expect_error(ErrorKind::unreachable_gradient, {"'q'", "stop_gradient"}, [&] { gradient(loss, p.q); });
}

TEST(Losses, WeightsGoToTheirTerms) {
  Pair p;
  const VqLosses losses = vq_losses(p.z, p.q, 2, 0.5);
  const std::vector<Value> g = gradients(losses.total, {p.z, p.q});
  const std::vector<Tensor> t = run_once(p.tape, {g[0], g[1]}, p.feeds);
  expect_near(t[0], {0.25, 0, -0.5, 0.75}, 1e-6);
  expect_near(t[1], {-1, 0, 2, -3}, 1e-6);
}

// The well-known slip: with the straight-through output in place of the codes, the codebook would never train.
TEST(Losses, OnTheStraightThroughOutputTheCodesAreReportedAsUnreachable) {
  Pair p;
  const Value loss = codebook_loss(p.z, straight_through(p.z, p.q));
  expect_error(ErrorKind::unreachable_gradient, {"'q'", "stop_gradient"}, [&] { gradient(loss, p.q); });
}

TEST(Losses, ShapesMustAgree) {
  Pair p;
  const Value row = p.tape.input("row", {DType::f32, {2}});
  expect_error(ErrorKind::shape, {"f32[2,2]", "f32[2]"}, [&] { mean_squared_error(p.z, row); });
}

TEST(Statistics, UsageAndPerplexityOfKnownHistograms) {
  Tape tape;
  const Value even = tape.constant(Tensor::of<std::int32_t>({4}, {5, 5, 0, 0}));
  const Value skewed = tape.constant(Tensor::of<std::int32_t>({4}, {1, 1, 2, 4}));
  const std::vector<Tensor> t = run_once(tape, {usage(even), perplexity(even), usage(skewed), perplexity(skewed)});
  EXPECT_NEAR(t[0].item(), 0.5, 1e-6);
  EXPECT_NEAR(t[1].item(), 2, 1e-5);
  EXPECT_NEAR(t[2].item(), 1, 1e-6);
  EXPECT_NEAR(t[3].item(), std::exp(1.75 * std::log(2.0)), 1e-5);  // entropy 1/8 3 + 1/8 3 + 1/4 2 + 1/2 1 = 1.75 bits
}

TEST(Statistics, RowsAreComparedByLengthAndAngle) {
  Tape tape;
  const Value z = tape.constant(floats({3, 2}, {1, 0, 0, 2, 3, 0})),
              q = tape.constant(floats({3, 2}, {0, 1, 0, 1, -3, 0}));
  const RowStatistics r = row_statistics(z, q);
  const std::vector<Tensor> t = run_once(tape, {r.relative_error, r.norm_ratio.mean, r.norm_ratio.low,
                                                r.norm_ratio.high, r.angle.mean, r.angle.low, r.angle.high});
  EXPECT_NEAR(t[0].item(), (2 + 0.25 + 4) / 3, 1e-6);
  EXPECT_NEAR(t[1].item(), 2.5 / 3, 1e-6);
  EXPECT_NEAR(t[2].item(), 0.55, 1e-6);  // of 0.5, 1, 1: a tenth of the way from the first to the second
  EXPECT_NEAR(t[3].item(), 1, 1e-6);
  EXPECT_NEAR(t[4].item(), 90, 1e-3);  // of 90, 0, 180 degrees
  EXPECT_NEAR(t[5].item(), 9, 1e-3);
  EXPECT_NEAR(t[6].item(), 171, 1e-3);
}

TEST(Statistics, TheRingForgetsWhatIsOlderThanItsWindow) {
  Variable ring("ring", Tensor({DType::f32, {3, 2}})), slot("slot", Tensor({DType::i32, {}}));
  Tape tape;
  const Value counts = tape.input("counts", {DType::i32, {2}});
  const Value window = windowed_counts(tape, ring, slot, counts);
  Program program = compile(tape, {window}, backend("reference"));
  double expected[5][2] = {{1, 10}, {3, 30}, {6, 60}, {9, 90}, {12, 120}};  // 1, 1+2, 1+2+3, 2+3+4, 3+4+5
  for (std::int32_t i = 0; i < 5; ++i) {
    program.feed(counts, Tensor::of<std::int32_t>({2}, {i + 1, 10 * (i + 1)}));
    program.run();
    expect_near(program.fetch(window), {expected[i][0], expected[i][1]}, 0, "step " + std::to_string(i));
  }
}

}  // namespace
}  // namespace sg
