// Revival, masks and the running origin: what a codebook keeps from step to step.
#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "core/autodiff.h"
#include "models/statistics.h"
#include "ops/elementwise.h"
#include "ops/estimator_table.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/codebook_support.h"

namespace sg {
namespace {

using namespace models_test;

const Tensor kCodes = floats({3, 2}, {0, 0, 4, 0, 0, 4});
const Tensor kRows = floats({4, 2}, {1, 0, 3, 1, 5, -1, 0, 1});  // nearest: 0 1 1 0

const std::vector<CodebookUpdate> kRevivable{CodebookUpdate::loss, CodebookUpdate::ema, CodebookUpdate::ema_loss,
                                             CodebookUpdate::affine, CodebookUpdate::alternating};

// ---- revival

bool is_one_of(double x, double y, const Tensor& rows, double tolerance = 1e-6) {
  for (std::int64_t i = 0; i < rows.shape()[0]; ++i)
    if (std::abs(rows.at(2 * i) - x) < tolerance && std::abs(rows.at(2 * i + 1) - y) < tolerance) return true;
  return false;
}

// What code k is, as the model sees it.
std::vector<double> code(const Codebook& c, std::int64_t k) {
  Tape tape;
  return numbers(run_once(
      tape, {c.quantizer.decode(tape.constant(Tensor::of<std::int32_t>({1}, {static_cast<std::int32_t>(k)})))})[0]);
}

TEST(Revival, ByThresholdEveryRuleGetsARowOfTheBatchAndResetsAllStateOfTheCode) {
  for (const std::string_view name : backend_names())
    for (const CodebookUpdate rule : kRevivable) {
      QuantizerConfig config = codebook_config(rule, 3, 2);
      config.ema_decay = 0.5;
      config.revival = 0.75;  // code 2 is never chosen: its count falls from 1 to 0.5
      Codebook c(config);
      c.quantizer.set_codebook(kCodes);
      if (rule == CodebookUpdate::affine) {
        c.quantizer.set_codebook(floats({3, 2}, {-0.5, 1, 1.5, 1, -0.5, -3}));  // the same codes: 2 c + 1, -c + 1
        c.root.find("vq.scale").set(floats({2}, {2, -1}));
        c.root.find("vq.shift").set(floats({2}, {1, 1}));
      }
      c.step(c.tape.constant(kRows), c.training());
      run_once(c.tape, {}, {}, name);
      const std::vector<double> revived = code(c, 2), alive = code(c, 1);
      EXPECT_TRUE(is_one_of(revived[0], revived[1], kRows))
          << to_string(rule) << " " << revived[0] << " " << revived[1];
      if (!averaged(rule)) {
        EXPECT_NEAR(alive[0], 4, 1e-6) << to_string(rule);
      }
      expect_near(c.root.find("vq.count").value(), {1.5, 1.5, 0.75}, 1e-6, "count");
      if (averaged(rule)) {
        EXPECT_NEAR(c.variable("sum")[4], 0.75 * revived[0], 1e-6);
        EXPECT_NEAR(c.variable("sum")[5], 0.75 * revived[1], 1e-6);
      }
    }
}

TEST(Revival, LruReplacesCodesThatWereIdleForThatManySteps) {
  for (const CodebookUpdate rule : kRevivable) {
    QuantizerConfig config = codebook_config(rule, 3, 2);
    config.revival_policy = Revival::lru;
    config.revival = 3;
    Codebook c(config);
    c.quantizer.set_codebook(kCodes);
    const Quantized out = c.step(c.tape.constant(kRows), c.training());
    Program program = compile(c.tape, {out.indices}, backend("cpu"));
    for (int step = 1; step <= 3; ++step) {
      program.run();
      const std::vector<double> last = code(c, 2);
      const bool revived = is_one_of(last[0], last[1], kRows);
      EXPECT_EQ(revived, step == 3) << to_string(rule) << " step " << step;
      EXPECT_EQ(c.variable("idle"), (std::vector<double>{0, 0, revived ? 0.0 : step})) << to_string(rule);
    }
    if (!averaged(rule)) continue;
    const std::vector<double> last = code(c, 2), sum = c.variable("sum");
    EXPECT_EQ(c.variable("count")[2], 1);
    EXPECT_NEAR(sum[4], last[0], 1e-6);
    EXPECT_NEAR(sum[5], last[1], 1e-6);
  }
}

// Codes 0 and 1 share the batch; the other six are dead, and each becomes a near copy of 0 or 1. Rows and sums are
// handed on: what the copied and its copies have together is what the copied had.
TEST(Revival, SplitDividesACodeInUseEvenlyBetweenItAndItsCopies) {
  for (const std::string_view name : backend_names())
    for (const CodebookUpdate rule : {CodebookUpdate::ema, CodebookUpdate::ema_loss, CodebookUpdate::loss}) {
      QuantizerConfig config = codebook_config(rule, 8, 2);
      config.revival_policy = Revival::split;
      config.ema_decay = 0.5;
      config.revival = 0.9;
      Codebook c(config);
      Tensor codes = Tensor::full({DType::f32, {8, 2}}, 1000);
      codes.set(0, 0), codes.set(1, 0), codes.set(2, 40), codes.set(3, 0);
      c.quantizer.set_codebook(codes);
      Tensor rows({DType::f32, {40, 2}});
      const Tensor noise = random_rows({40, 2}, 4);
      for (std::int64_t i = 0; i < 80; ++i) rows.set(i, noise.at(i) + (i % 2 == 0 && i < 60 ? 40 : 0));  // 30 and 10
      c.step(c.tape.constant(rows), c.training());
      run_once(c.tape, {}, {}, name);
      const std::vector<double> count = c.variable("count");
      std::vector<std::int64_t> of_code0, of_code1;
      std::set<std::pair<double, double>> distinct;
      for (std::int64_t k = 0; k < 8; ++k) {
        const std::vector<double> x = code(c, k);
        const bool near1 = std::hypot(x[0] - 40, x[1]) < 2, near0 = std::hypot(x[0], x[1]) < 2;
        EXPECT_TRUE(near0 || near1) << to_string(rule) << " code " << k << ": " << x[0] << " " << x[1];
        (near1 ? of_code1 : of_code0).push_back(k);
        distinct.insert({x[0], x[1]});
      }
      EXPECT_EQ(distinct.size(), 8u) << "copies are moved apart";
      EXPECT_EQ(of_code0[0], 0);
      EXPECT_EQ(of_code1[0], 1);
      EXPECT_GT(of_code1.size(), of_code0.size()) << "the code with three quarters of the rows is copied more often";
      const auto check = [&](const std::vector<std::int64_t>& group, double rows_of_group) {
        const double share = (0.5 + 0.5 * rows_of_group) / static_cast<double>(group.size());
        for (const std::int64_t k : group) {
          EXPECT_NEAR(count[static_cast<std::size_t>(k)], share, 1e-5) << to_string(rule) << " code " << k;
          if (!averaged(rule) || k < 2) continue;
          const std::vector<double> sum = c.variable("sum"), x = code(c, k);
          EXPECT_NEAR(sum[static_cast<std::size_t>(2 * k)], share * x[0], 1e-4);
          EXPECT_NEAR(sum[static_cast<std::size_t>(2 * k + 1)], share * x[1], 1e-4);
        }
      };
      check(of_code0, 10);
      check(of_code1, 30);
    }
}

TEST(Revival, TheSameRandomStateDrawsTheSameRowsAndAnotherOthers) {
  for (const Revival policy : {Revival::threshold, Revival::split}) {
    std::set<std::vector<double>> drawn;
    for (const std::int32_t step : {0, 0, 1, 2, 3}) {
      QuantizerConfig config = codebook_config(CodebookUpdate::loss, 6, 2);
      config.revival_policy = policy;
      config.revival = 0.999;
      Codebook c(config);
      Tensor codes = Tensor::full({DType::f32, {6, 2}}, 1000);
      for (std::int64_t i = 0; i < 6; ++i) codes.set(i, kCodes.at(i));
      c.quantizer.set_codebook(codes);
      c.step(c.tape.constant(kRows), c.training(step));
      run_once(c.tape, {});
      drawn.insert(c.variable("codebook"));
    }
    EXPECT_EQ(drawn.size(), 4u) << to_string(policy);
  }
}

TEST(Revival, FreshRowsAreNeverPaddingAndNothingIsRevivedWithoutRows) {
  for (const Revival policy : {Revival::threshold, Revival::lru})
    for (const std::string_view name : backend_names()) {
      QuantizerConfig config = codebook_config(CodebookUpdate::ema, 40, 2);
      config.revival_policy = policy;
      config.revival = policy == Revival::lru ? 1 : 100;
      Codebook c(config);
      c.quantizer.set_codebook(Tensor::full({DType::f32, {40, 2}}, 1000));
      const Value z = c.tape.input("z", {DType::f32, {6, 2}}), mask = c.tape.input("mask", {DType::f32, {6}});
      QuantizeContext context = c.training();
      context.mask = mask;
      const Quantized out = c.step(z, context);
      Program program = compile(c.tape, {out.indices}, backend(name));
      program.feed(z, floats({6, 2}, {-7, -7, 1, 2, -7, -7, -7, -7, 3, 4, -7, -7}));
      program.feed(mask, floats({6}, {0, 0, 0, 0, 0, 0}));
      program.run();
      for (const double x : c.variable("codebook")) EXPECT_NEAR(x, 1000, 1e-3) << to_string(policy);
      program.feed(mask, floats({6}, {0, 1, 0, 0, 1, 0}));
      program.run();
      std::set<double> seen;
      for (std::int64_t k = 1; k < 40; ++k) {  // code 0 was used
        const std::vector<double> x = code(c, k);
        EXPECT_TRUE((x == std::vector<double>{1, 2} || x == std::vector<double>{3, 4})) << x[0] << " " << x[1];
        seen.insert(x[0]);
      }
      EXPECT_EQ(seen.size(), 2u) << "all rows are drawn";
    }
}

TEST(Revival, SplitCopiesNoCodeThatOnlyPaddingHas) {
  QuantizerConfig config = codebook_config(CodebookUpdate::loss, 8, 2);
  config.revival_policy = Revival::split;
  config.revival = 0.995;
  Codebook c(config);
  Tensor codes = Tensor::full({DType::f32, {8, 2}}, 1000);
  codes.set(0, 5), codes.set(1, 5), codes.set(2, 0), codes.set(3, 0);  // padding is 0: code 1
  c.quantizer.set_codebook(codes);
  QuantizeContext context = c.training();
  context.mask = c.tape.constant(floats({9}, {0, 0, 0, 0, 1, 0, 0, 0, 0}));
  c.step(c.tape.constant(Tensor::full({DType::f32, {9, 2}}, 6)), context);
  run_once(c.tape, {});
  for (std::int64_t k = 0; k < 8; ++k) EXPECT_NEAR(code(c, k)[0], 5, 0.5) << k;
}

// ---- masks

// A padded batch and its rows alone: [2,5,D] with 5 and 2 rows, and the 7 rows.
struct Padded {
  static constexpr std::int64_t kDim = 4;
  Tensor mask = floats({2, 5}, {1, 1, 1, 1, 1, 1, 1, 0, 0, 0});
  Tensor rows = random_rows({7, kDim}, 21), padded = Tensor::full({DType::f32, {2, 5, kDim}}, 123);
  Padded() {
    for (std::int64_t i = 0; i < 7 * kDim; ++i) padded.set(i, rows.at(i));
  }
};

// Losses in double, the gradient of their sum and of z_q, and the state after the update.
struct Outcome {
  std::vector<Tensor> losses;
  std::vector<double> gradient, z_q, indices;
  std::vector<std::vector<double>> state;
};

Outcome outcome(const QuantizerConfig& config, const Tensor& z_value, const Tensor* mask,
                std::string_view backend_name) {
  Codebook c(config, 3);
  c.quantizer.set_codebook(random_rows({6, Padded::kDim}, 5));
  const Value z = c.tape.constant(z_value);
  QuantizeContext context = c.training();
  if (mask != nullptr) context.mask = c.tape.constant(*mask);
  const Quantized out = c.step(z, context);
  Value total = sum(out.z_q * out.z_q);
  if (const Value losses = out.total_loss()) total = total + losses;
  std::vector<Value> fetches{out.z_q, out.indices, gradient(total, z)};
  for (const LossTerm& term : out.losses) fetches.push_back(in_double(term.value));
  const std::vector<Tensor> t = run_once(c.tape, fetches, {}, backend_name);
  Outcome result;
  result.z_q = numbers(t[0]), result.indices = numbers(t[1]), result.gradient = numbers(t[2]);
  result.losses.assign(t.begin() + 3, t.end());
  for (Variable* v : c.root.variables()) result.state.push_back(numbers(v->value()));
  return result;
}

void expect_same_as_rows_alone(const QuantizerConfig& config, const std::string& what) {
  const Padded p;
  for (const std::string_view name : backend_names()) {
    const bool exact = name == "reference";
    const Outcome padded = outcome(config, p.padded, &p.mask, name), alone = outcome(config, p.rows, nullptr, name);
    ASSERT_EQ(padded.losses.size(), alone.losses.size());
    for (std::size_t i = 0; i < alone.losses.size(); ++i)
      EXPECT_NEAR(padded.losses[i].item(), alone.losses[i].item(),
                  (exact ? 1e-12 : 2e-6) * (1 + std::abs(alone.losses[i].item())))
          << what << " " << name << " loss " << i;
    for (std::size_t i = 0; i < 10 * Padded::kDim; ++i) {
      const bool row = i < 7 * Padded::kDim;
      EXPECT_EQ(padded.z_q[i], row ? alone.z_q[i] : 0) << what;
      EXPECT_NEAR(padded.gradient[i], row ? alone.gradient[i] : 0, row ? 1e-5 * (1 + std::abs(alone.gradient[i])) : 0)
          << what << " " << name << " gradient " << i;
    }
    for (std::size_t i = 0; i < 7; ++i) EXPECT_EQ(padded.indices[i], alone.indices[i]) << what;
    for (std::size_t v = 0; v < alone.state.size(); ++v)
      for (std::size_t i = 0; i < alone.state[v].size(); ++i)
        EXPECT_NEAR(padded.state[v][i], alone.state[v][i], 2e-6 * (1 + std::abs(alone.state[v][i])))
            << what << " " << name << " variable " << v;
  }
}

TEST(Mask, OfAPaddedBatchTheLossesGradientsAndStateAreThoseOfItsRowsAlone) {
  for (const CodebookUpdate rule : kRules)
    for (const Metric metric : {Metric::euclidean, Metric::cosine})
      for (const std::string& estimator : rows_only_estimator_names()) {
        QuantizerConfig config = codebook_config(rule, 6, Padded::kDim);
        config.metric = metric;
        config.estimator = estimator;
        config.entropy = 0.1;
        config.diversity = 0.2;
        config.entropy_temperature = 0.5;
        expect_same_as_rows_alone(
            config, std::string(to_string(rule)) + " " + std::string(to_string(metric)) + " " + estimator);
      }
}

TEST(Mask, AlsoUnderSinkhornTheOriginAndEstimatorsWithLosses) {
  QuantizerConfig config = codebook_config(CodebookUpdate::ema, 6, Padded::kDim);
  config.assignment = Assignment::sinkhorn;
  expect_same_as_rows_alone(config, "sinkhorn");
  for (const EstimatorDef& row : estimator_table()) {
    if (!row.needs_origin && row.name != "ibq") continue;
    QuantizerConfig other = codebook_config(CodebookUpdate::loss, 6, Padded::kDim);
    other.estimator = row.name;
    expect_same_as_rows_alone(other, row.name);
  }
}

TEST(Mask, WhateverPaddingHoldsNoNumberOfTheStepIsNaN) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  for (const std::string& estimator : rows_only_estimator_names()) {
    QuantizerConfig config = codebook_config(CodebookUpdate::ema, 6, Padded::kDim);
    config.estimator = estimator;
    Padded p;
    for (std::int64_t i = 7 * Padded::kDim; i < p.padded.elements(); ++i) p.padded.set(i, nan);
    const Outcome o = outcome(config, p.padded, &p.mask, "cpu");
    for (const auto* all : {&o.gradient, &o.z_q, &o.state[0]})
      for (const double x : *all) ASSERT_TRUE(std::isfinite(x)) << estimator;
    for (const Tensor& loss : o.losses) ASSERT_TRUE(std::isfinite(loss.item())) << estimator;
  }
}

TEST(Mask, OfTheWrongShapeIsRefused) {
  Codebook c(codebook_config(CodebookUpdate::loss, 4, 3));
  QuantizeContext context = c.training();
  context.mask = c.tape.constant(floats({6}, {1, 1, 1, 1, 1, 0}));
  const Value z = c.tape.constant(random_rows({2, 3, 3}, 1));
  expect_error(ErrorKind::shape, {"f32[6]", "f32[2,3,3]", "f32[2,3]"}, [&] { c.quantizer(z, context); });
}

TEST(Mask, StatisticsLeavePaddingOut) {
  Tape tape;
  const Value z = tape.constant(floats({4, 2}, {3, 4, 0, 0, 0, 2, 9, 9}));
  const Value q = tape.constant(floats({4, 2}, {3, 0, 0, 0, 0, 1, 1, 1}));
  const Value mask = tape.constant(floats({4}, {1, 0, 1, 0}));
  const RowStatistics masked = row_statistics(z, q, mask);
  const RowStatistics alone =
      row_statistics(tape.constant(floats({2, 2}, {3, 4, 0, 2})), tape.constant(floats({2, 2}, {3, 0, 0, 1})));
  const Value indices = tape.constant(Tensor::of<std::int32_t>({2, 2}, {2, 0, 2, 1}));
  const std::vector<Tensor> t =
      run_once(tape, {masked.relative_error, alone.relative_error, masked.norm_ratio.mean, alone.norm_ratio.mean,
                      masked.angle.mean, alone.angle.mean, masked.norm_ratio.low, masked.norm_ratio.high,
                      code_counts(indices, 4, mask), code_counts(indices, 4)});
  for (std::size_t i = 0; i < 6; i += 2) EXPECT_NEAR(t[i].item(), t[i + 1].item(), 1e-6) << i;
  EXPECT_NEAR(t[6].item(), 0.5, 1e-6);  // of 0.6, 0.5, 0.6, 0.5
  EXPECT_NEAR(t[7].item(), 0.6, 1e-6);
  expect_near(t[8], {0, 0, 2, 0}, 0);
  expect_near(t[9], {1, 1, 2, 0}, 0);
}

// ---- the running origin

// z_q is z moved by the origin: shows what the origin was.
EstimatorDef about_origin() {
  EstimatorDef def;
  def.name = "about-origin";
  def.estimate = [](const Lookup& l) { return l.z - l.origin; };
  def.exact_forward = false;
  def.needs_origin = true;
  return def;
}

TEST(Origin, IsTheFirstBatchsMeanAndThenARunningMean) {
  for (const bool initialised : {false, true}) {
    QuantizerConfig config = codebook_config(CodebookUpdate::loss, 3, 2);
    config.estimator = BoundEstimator(about_origin(), {});
    config.origin_decay = 0.75;
    Codebook c(config);
    EXPECT_EQ(c.root.state().size(), 2u);
    if (initialised) c.quantizer.initialize(floats({2, 2}, {10, 0, 30, 4}), backend("cpu"));
    const Value z = c.tape.input("z", {DType::f32, {2, 2}});
    const Quantized out = c.step(z, c.training());
    Program program = compile(c.tape, {out.z_q}, backend("cpu"));
    program.feed(z, floats({2, 2}, {1, 2, 3, 4}));  // mean (2, 3)
    program.run();
    const std::vector<double> first = initialised ? std::vector<double>{20, 2} : std::vector<double>{2, 3};
    expect_near(program.fetch(out.z_q), {1 - first[0], 2 - first[1], 3 - first[0], 4 - first[1]}, 1e-6);
    const std::vector<double> second{0.75 * first[0] + 0.25 * 2, 0.75 * first[1] + 0.25 * 3};
    expect_near(c.root.find("vq.origin").value(), second, 1e-6);
    program.feed(z, floats({2, 2}, {0, 0, 0, 0}));
    program.run();
    expect_near(program.fetch(out.z_q), {-second[0], -second[1], -second[0], -second[1]}, 1e-6);
    expect_near(c.root.find("vq.origin").value(), {0.75 * second[0], 0.75 * second[1]}, 1e-6);
    EXPECT_EQ(c.variable("origin_known"), std::vector<double>{1});
  }
}

TEST(Origin, IsStoppedAndLeavesPaddingOut) {
  QuantizerConfig config = codebook_config(CodebookUpdate::loss, 3, 2);
  config.estimator = BoundEstimator(about_origin(), {});
  Codebook c(config);
  const Value z = c.tape.constant(floats({3, 2}, {1, 2, 100, 100, 3, 6}));
  const Value mask = c.tape.input("mask", {DType::f32, {3}});
  QuantizeContext context = c.training();
  context.mask = mask;
  const Quantized out = c.step(z, context);
  const Value g = gradient(sum(out.z_q), z);
  Program program = compile(c.tape, {g}, backend("cpu"));
  program.feed(mask, floats({3}, {0, 0, 0}));
  program.run();
  EXPECT_EQ(c.variable("origin_known"), std::vector<double>{0}) << "a batch without rows has no mean";
  program.feed(mask, floats({3}, {1, 0, 1}));
  program.run();
  expect_near(program.fetch(g), {1, 1, 0, 0, 1, 1}, 1e-6, "the Jacobian is I: the origin is stopped");
  expect_near(c.root.find("vq.origin").value(), {2, 4}, 1e-6);
}

TEST(Origin, OnlyEstimatorsThatNeedOneHaveOne) {
  Codebook c(codebook_config(CodebookUpdate::loss, 3, 2));
  EXPECT_TRUE(c.root.state().empty());
  const Quantized out = c.quantizer(c.tape.constant(kRows), c.training());
  EXPECT_FALSE(out.lookup.origin);
}

}  // namespace
}  // namespace sg
