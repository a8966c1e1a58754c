// How codebooks learn: each rule against its formula, and which of its variables each loss trains.
#include "models/quantizers/codebook_rules.h"

#include <algorithm>
#include <cmath>

#include "core/autodiff.h"
#include "models/losses.h"
#include "models/quantizers/assignment.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/codebook_support.h"

namespace sg {
namespace {

using namespace models_test;

using Flow = GradientFlow::State;

// ---- EMA as a loss

TEST(EmaAsALoss, OfWholeStepsAgreesWithEmaToRounding) {
  for (const std::string_view name : backend_names()) {
    std::vector<std::vector<double>> results[2];
    for (const CodebookUpdate rule : {CodebookUpdate::ema, CodebookUpdate::ema_loss}) {
      QuantizerConfig config = codebook_config(rule, 5, 3);
      config.ema_decay = 0.9;
      config.init = CodebookInit::normal;
      Codebook c(config);
      const Value z = c.tape.input("z", {DType::f32, {40, 3}});
      const Quantized out = c.step(z, c.training());
      Program program = compile(c.tape, {out.indices}, backend(name));
      for (std::uint32_t step = 0; step < 5; ++step) {
        program.feed(z, random_rows({40, 3}, step));
        program.run();
        auto& all = results[rule == CodebookUpdate::ema_loss];
        for (const char* variable : {"codebook", "count", "sum"}) all.push_back(c.variable(variable));
      }
    }
    for (std::size_t i = 0; i < results[0].size(); ++i)
      for (std::size_t j = 0; j < results[0][i].size(); ++j)
        EXPECT_NEAR(results[0][i][j], results[1][i][j], 2e-6 * (1 + std::abs(results[0][i][j]))) << name << " " << i;
  }
}

// The average over the parts of a batch of the gradients of each part's loss is the EMA step of the whole batch, and
// the loss itself is 0.
TEST(EmaAsALoss, AveragedOverMicroBatchesIsTheStepOfTheWholeBatch) {
  for (const std::int64_t parts : {1, 2, 4}) {
    Variable count("count", random_rows({6}, 1)), total("sum", random_rows({6, 3}, 2));
    const Tensor all_rows = random_rows({24, 3}, 3);
    Tape tape;
    const Value rows = tape.constant(all_rows);
    const Value indices = nearest_code(rows, tape.read(total));
    const CodeSums averages{tape.read(count), tape.read(total)};
    Value loss = tape.constant(0.0, {DType::f32, {}});
    Value count_step = tape.constant(0.0, {DType::f32, {6}}), sum_step = tape.constant(0.0, {DType::f32, {6, 3}});
    const std::int64_t n = 24 / parts;
    for (std::int64_t p = 0; p < parts; ++p) {
      const CodeSums part =
          sums_by_code(slice_axis(rows, 0, p * n, (p + 1) * n), slice_axis(indices, 0, p * n, (p + 1) * n), 6);
      const Value of_part = ema_loss(averages, part, 0.9, parts);
      const std::vector<Value> g = gradients(of_part, {averages.count, averages.sum});
      count_step = count_step + (1.0 / static_cast<double>(parts)) * g[0];
      sum_step = sum_step + (1.0 / static_cast<double>(parts)) * g[1];
      loss = loss + abs(of_part);
    }
    const CodeSums whole = moved_averages(averages, sums_by_code(rows, indices, 6), 0.9);
    const std::vector<Tensor> t = run_once(tape, {loss, in_double(max(abs(averages.count - count_step - whole.count))),
                                                  in_double(max(abs(averages.sum - sum_step - whole.sum)))});
    EXPECT_EQ(t[0].item(), 0) << "the forward value";
    EXPECT_LT(t[1].item(), 1e-12) << parts << " parts, counts";
    EXPECT_LT(t[2].item(), 1e-12) << parts << " parts, sums";
  }
}

// ---- which loss trains what

struct ExpectedFlow {
  CodebookUpdate rule;
  std::vector<std::pair<std::string, Flow>> codebook_term;  // by variable
};

TEST(CodebookRules, TheCodebookTermTrainsWhatTheRuleSays) {
  const std::vector<ExpectedFlow> table{
      {CodebookUpdate::loss, {{"codebook", Flow::live}}},
      {CodebookUpdate::ema, {{"codebook", Flow::blocked}, {"sum", Flow::unconnected}, {"count", Flow::unconnected}}},
      {CodebookUpdate::ema_loss, {{"codebook", Flow::blocked}, {"sum", Flow::unconnected}}},
      {CodebookUpdate::simvq, {{"codebook", Flow::blocked}, {"transform", Flow::live}}},
      {CodebookUpdate::affine, {{"codebook", Flow::live}, {"scale", Flow::live}, {"shift", Flow::live}}},
      {CodebookUpdate::alternating, {{"codebook", Flow::blocked}}},
      {CodebookUpdate::frozen, {{"codebook", Flow::blocked}}},
  };
  for (const Metric metric : {Metric::euclidean, Metric::cosine})
    for (const ExpectedFlow& row : table) {
      QuantizerConfig config = codebook_config(row.rule, 4, 3);
      config.metric = metric;
      Codebook c(config);
      const Value z = c.tape.constant(random_rows({6, 3}, 1));
      const Quantized out = c.quantizer(z, c.training());
      for (const auto& [name, expected] : row.codebook_term) {
        const Value variable = c.tape.read(c.root.find("vq." + name));
        const std::string what = std::string(to_string(row.rule)) + " " + name;
        EXPECT_EQ(gradient_flow(out.loss("codebook"), variable).state, expected) << what;
        const Flow other = expected == Flow::unconnected ? Flow::unconnected : Flow::blocked;
        EXPECT_EQ(gradient_flow(out.loss("commitment"), variable).state, other) << what;
        EXPECT_EQ(gradient_flow(sum(out.z_q), variable).state, other) << what << " through the straight-through z_q";
      }
      EXPECT_EQ(gradient_flow(out.loss("codebook"), z).state, Flow::blocked);
      EXPECT_EQ(gradient_flow(out.loss("commitment"), z).state, Flow::live);
      EXPECT_EQ(out.find("codebook")->weight, c.quantizer.trained_by_loss() ? 1.0 : 0.0);
      // Every parameter of the rule is trained by the total loss, so that gradients() accepts it.
      std::vector<Value> parameters;
      for (Variable* p : c.root.parameters()) parameters.push_back(c.tape.read(*p));
      if (parameters.empty()) continue;
      EXPECT_NO_THROW(gradients(out.total_loss(), parameters)) << to_string(row.rule);
    }
}

TEST(CodebookRules, SimVqStartsAtItsFrozenNormalCodesAndLearnsAMatrix) {
  const std::int64_t d = 16;
  Codebook c(codebook_config(CodebookUpdate::simvq, 400, d));
  double squares = 0;
  for (const double x : c.variable("codebook")) squares += x * x;
  EXPECT_NEAR(squares / 400, 1, 0.1) << "standard deviation D^-1/2";
  ASSERT_EQ(c.root.parameters().size(), 1u);
  EXPECT_EQ(c.root.parameters()[0]->name(), "vq.transform");

  c.root.parameters()[0]->set(random_rows({d, d}, 3));
  const Value z = c.tape.constant(random_rows({9, d}, 4));
  const Quantized out = c.quantizer(z, c.training());
  const Value w = c.tape.read(*c.root.parameters()[0]);
  const Value codes = matmul(c.tape.read(c.quantizer.codebook()), w);
  // d/dW mean (E_k W - z)^2 = 2/(N D) sum E_k^T (E_k W - z)
  const Value e = gather_rows(c.tape.read(c.quantizer.codebook()), out.indices);
  const Value by_hand = (2.0 / static_cast<double>(9 * d)) * matmul(e, matmul(e, w) - z, true);
  const std::vector<Tensor> t = run_once(
      c.tape,
      {max(abs(out.q - gather_rows(codes, out.indices))), sum(not_equal(out.indices, nearest_code(z, codes))),
       max(abs(gradient(out.loss("codebook"), w) - by_hand)), max(abs(c.quantizer.decode(out.indices) - out.q))});
  EXPECT_LT(t[0].item(), 1e-6);
  EXPECT_EQ(t[1].item(), 0);
  EXPECT_LT(t[2].item(), 1e-7);
  EXPECT_EQ(t[3].item(), 0);
}

TEST(CodebookRules, AffineCodesShareAScaleAndAShift) {
  Codebook c(codebook_config(CodebookUpdate::affine, 3, 2));
  c.quantizer.set_codebook(floats({3, 2}, {0, 0, 1, 0, 0, 1}));
  c.root.find("vq.scale").set(floats({2}, {2, 4}));
  c.root.find("vq.shift").set(floats({2}, {10, 0}));
  const Value z = c.tape.constant(floats({2, 2}, {12, 1, 11, 3}));  // codes (10,0), (12,0), (10,4)
  const Quantized out = c.quantizer(z, c.training());
  const auto read = [&](const char* name) { return c.tape.read(c.root.find(name)); };
  const std::vector<Value> g =
      gradients(out.loss("codebook"), {read("vq.codebook"), read("vq.scale"), read("vq.shift")});
  const std::vector<Tensor> t = run_once(c.tape, {out.indices, out.q, g[0], g[1], g[2]});
  expect_near(t[0], {1, 2}, 0, "indices");
  expect_near(t[1], {12, 0, 10, 4}, 1e-6, "q");
  // 2/4 (q - z) = (0,-0.5), (-0.5,0.5); times s for c, times c summed for s, summed for b.
  expect_near(t[2], {0, 0, 0, -2, -1, 2}, 1e-6, "codes");
  expect_near(t[3], {0, 0.5}, 1e-6, "scale");
  expect_near(t[4], {-0.5, 0}, 1e-6, "shift");
}

TEST(CodebookRules, AlternatingUsesTheSteppedCodesAndKeepsThem) {
  for (const double rate : {1.0, 0.25}) {
    QuantizerConfig config = codebook_config(CodebookUpdate::alternating, 3, 2);
    config.inner_rate = rate;
    Codebook c(config);
    EXPECT_TRUE(c.root.parameters().empty());
    c.quantizer.set_codebook(floats({3, 2}, {0, 0, 4, 0, 0, 4}));
    const Value z = c.tape.constant(floats({4, 2}, {1, 0, 3, 1, 5, -1, 0, 1}));  // nearest: 0 1 1 0
    const Quantized out = c.step(z, c.training());
    const std::vector<Tensor> t = run_once(c.tape, {out.indices, out.z_q});
    expect_near(t[0], {0, 1, 1, 0}, 0, "the assignment is that of the codes before the step");
    const double x = 0.5 * rate;  // the means of the rows are (0.5, 0.5) and (4, 0)
    expect_near(t[1], {x, x, 4, 0, 4, 0, x, x}, 1e-6, "z_q");
    expect_near(c.quantizer.codebook().value(), {x, x, 4, 0, 0, 4}, 1e-6, "a code without rows stays");
  }
}

TEST(CodebookRules, AlternatingGivesWhatDecodeGivesAfterTheStepBitForBit) {
  for (const std::string_view name : backend_names())
    for (const Metric metric : {Metric::euclidean, Metric::cosine}) {
      QuantizerConfig config = codebook_config(CodebookUpdate::alternating, 8, 4);
      config.metric = metric;
      config.inner_rate = 0.3;
      config.init = CodebookInit::normal;
      Codebook c(config);
      const Value z = c.tape.constant(random_rows({50, 4}, 2));
      const Quantized out = c.step(z, c.training());
      const std::vector<Tensor> t = run_once(c.tape, {out.z_q, out.indices}, {}, name);
      Tape after;
      const Value decoded = c.quantizer.decode(after.constant(t[1]));
      const Tensor later = run_once(after, {decoded}, {}, name)[0];
      // The reference backend uses the codes in double and leaves them in f32.
      if (name == "reference" && metric == Metric::cosine)
        expect_near(later, numbers(t[0]), 1e-6);
      else
        expect_same_bits(t[0], later, std::string(name));
    }
}

TEST(CodebookRules, FrozenCodesStayAndNothingIsAssigned) {
  Codebook c(codebook_config(CodebookUpdate::frozen, 5, 3));
  c.step(c.tape.constant(random_rows({9, 3}, 1)), c.training());
  for (const Instr& instr : c.tape.instrs()) EXPECT_NE(instr.op, OpId::assign);
  EXPECT_TRUE(c.root.parameters().empty());
}

// ---- Sinkhorn

TEST(Sinkhorn, SharesCodesEvenlyWhereNearestUsesOne) {
  for (const std::string_view name : backend_names()) {
    QuantizerConfig config = codebook_config(CodebookUpdate::loss, 4, 2);
    config.assignment = Assignment::sinkhorn;
    Codebook c(config);
    // All rows are nearest to code 0.
    c.quantizer.set_codebook(floats({4, 2}, {1, 0, 9, 0, 0, 9, -9, 0}));
    const Value z = c.tape.constant(random_rows({400, 2}, 5));
    const Quantized training = c.quantizer(z, c.training()), evaluation = c.quantizer(z);
    const std::vector<Tensor> t = run_once(
        c.tape,
        {histogram(training.indices, 4), sum(not_equal(evaluation.indices, nearest_code(z, evaluation.lookup.codes))),
         histogram(evaluation.indices, 4)},
        {}, name);
    for (std::int64_t k = 0; k < 4; ++k) {
      EXPECT_GT(t[0].at(k), 60) << name << " code " << k;
      EXPECT_LT(t[0].at(k), 140) << name << " code " << k;
    }
    EXPECT_EQ(t[1].item(), 0) << "evaluation takes the nearest code";
    EXPECT_EQ(t[2].at(0), 400);
  }
}

// The plan by its definition, in double: Q = exp(-10 d'), d' = distances over their deviation, less the least; five
// times: columns to 1/K, rows to 1/N.
TEST(Sinkhorn, IsTheArgmaxOfThePlanOfItsDefinition) {
  const std::int64_t n = 60, k = 7, d = 3;
  const Tensor rows = random_rows({n, d}, 1), codes = random_rows({k, d}, 2, 0.5);
  std::vector<double> q(static_cast<std::size_t>(n * k));
  const auto at = [&](std::int64_t i, std::int64_t j) -> double& { return q[static_cast<std::size_t>(i * k + j)]; };
  double mean = 0, deviation = 0, least = 1e9;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = 0; j < k; ++j) {
      double s = 0;
      for (std::int64_t l = 0; l < d; ++l) s += std::pow(rows.at(i * d + l) - codes.at(j * d + l), 2);
      at(i, j) = std::sqrt(s);
      mean += at(i, j) / static_cast<double>(n * k);
      least = std::min(least, at(i, j));
    }
  for (const double x : q) deviation += (x - mean) * (x - mean) / static_cast<double>(n * k);
  for (double& x : q) x = std::exp(-10 * (x - least) / (std::sqrt(deviation) + 1e-6));
  for (int iteration = 0; iteration < 5; ++iteration) {
    for (std::int64_t j = 0; j < k; ++j) {
      double s = 0;
      for (std::int64_t i = 0; i < n; ++i) s += at(i, j);
      for (std::int64_t i = 0; i < n; ++i) at(i, j) /= s * static_cast<double>(k);
    }
    for (std::int64_t i = 0; i < n; ++i) {
      double s = 0;
      for (std::int64_t j = 0; j < k; ++j) s += at(i, j);
      for (std::int64_t j = 0; j < k; ++j) at(i, j) /= s * static_cast<double>(n);
    }
  }
  std::vector<double> expected;
  for (std::int64_t i = 0; i < n; ++i) {
    std::int64_t best = 0;
    for (std::int64_t j = 1; j < k; ++j)
      if (at(i, j) > at(i, best)) best = j;
    expected.push_back(static_cast<double>(best));
  }
  for (const std::string_view name : backend_names()) {
    Tape tape;
    const Value picked = sinkhorn_assignment(tape.constant(rows), tape.constant(codes));
    expect_near(run_once(tape, {picked}, {}, name)[0], expected, 0, std::string(name));
  }
}

TEST(Sinkhorn, NoGradientPassesIt) {
  Tape tape;
  const Value z = tape.constant(random_rows({5, 2}, 1)), codes = tape.constant(random_rows({3, 2}, 2));
  const Value picked = cast(sinkhorn_assignment(z, codes), DType::f32);
  EXPECT_EQ(gradient_flow(sum(picked), z).state, Flow::blocked);
}

// ---- regularisers

TEST(Regularisers, OrthogonalIsTheMeanSquaredCosineBetweenCodes) {
  Tape tape;
  const Value codes = tape.constant(random_rows({9, 4}, 3));
  const Value unit = unit_rows(codes);
  const Value pairs = sum(square(matmul(unit, unit, false, true))) / 81.0 - 1.0 / 9.0;
  const Value orthogonal = tape.constant(floats({2, 3}, {3, 0, 0, 0, -7, 0}));
  const Value same = tape.constant(floats({2, 3}, {1, 2, 2, 2, 4, 4}));
  const std::vector<Tensor> t =
      run_once(tape, {in_double(orthogonal_loss(codes) - pairs), orthogonal_loss(orthogonal), orthogonal_loss(same)});
  EXPECT_NEAR(t[0].item(), 0, 1e-12);
  EXPECT_NEAR(t[1].item(), 0, 1e-7);
  EXPECT_NEAR(t[2].item(), 0.5, 1e-7);  // 4/4 - 1/2
}

TEST(Regularisers, EntropyAndDiversityAreThoseOfTheSoftmaxOfDistances) {
  const Tensor rows = random_rows({6, 2}, 1), codes = random_rows({3, 2}, 2);
  const double temperature = 0.7;
  double each = 0, average[3] = {0, 0, 0};
  for (std::int64_t i = 0; i < 6; ++i) {
    double p[3], total = 0;
    for (std::int64_t k = 0; k < 3; ++k) {
      double s = 0;
      for (std::int64_t d = 0; d < 2; ++d) s += std::pow(rows.at(2 * i + d) - codes.at(2 * k + d), 2);
      total += p[k] = std::exp(-s / temperature);
    }
    for (std::int64_t k = 0; k < 3; ++k) {
      p[k] /= total;
      each -= p[k] * std::log(p[k]) / 6;
      average[k] += p[k] / 6;
    }
  }
  double of_mean = 0;
  for (const double p : average) of_mean -= p * std::log(p);
  Tape tape;
  const EntropyLosses losses = entropy_losses(tape.constant(rows), tape.constant(codes), temperature);
  const std::vector<Tensor> t = run_once(tape, {losses.entropy, losses.diversity});
  EXPECT_NEAR(t[0].item(), each - of_mean, 1e-6);
  EXPECT_NEAR(t[1].item(), -of_mean, 1e-6);
}

TEST(Regularisers, AreRecordedOnlyWhereTheyWeighSomething) {
  const std::size_t plain = [] {
    Codebook c(codebook_config(CodebookUpdate::loss, 4, 3));
    const Quantized out = c.quantizer(c.tape.constant(random_rows({6, 3}, 1)), c.training());
    EXPECT_EQ(out.losses.size(), 2u);
    return c.tape.instrs().size();
  }();
  for (const char* name : {"orthogonal", "entropy", "diversity"}) {
    QuantizerConfig config = codebook_config(CodebookUpdate::loss, 4, 3);
    (std::string(name) == "orthogonal" ? config.orthogonal
     : std::string(name) == "entropy"  ? config.entropy
                                       : config.diversity) = 0.5;
    Codebook c(config);
    const Quantized out = c.quantizer(c.tape.constant(random_rows({6, 3}, 1)), c.training());
    ASSERT_EQ(out.losses.size(), 3u);
    EXPECT_EQ(out.losses[2].name, name);
    EXPECT_EQ(out.losses[2].weight, 0.5);
    EXPECT_GT(c.tape.instrs().size(), plain);
    EXPECT_EQ(gradient_flow(out.loss(name), c.tape.read(c.quantizer.codebook())).state, Flow::live) << name;
    EXPECT_TRUE(std::isfinite(run_once(c.tape, {out.loss(name)})[0].item()));
  }
}

// ---- what makes no sense

TEST(CodebookRules, WhatMakesNoSenseIsRefusedByField) {
  const auto refused = [](CodebookUpdate rule, auto change, const std::vector<std::string>& parts) {
    QuantizerConfig config = codebook_config(rule, 4, 3);
    change(config);
    expect_error(ErrorKind::usage, parts, [&] { Codebook c(config); });
  };
  for (const CodebookUpdate rule :
       {CodebookUpdate::ema, CodebookUpdate::ema_loss, CodebookUpdate::alternating, CodebookUpdate::frozen})
    refused(rule, [](auto& c) { c.orthogonal = 1; }, {"orthogonal 1", std::string(to_string(rule))});
  for (const CodebookUpdate rule : {CodebookUpdate::simvq, CodebookUpdate::frozen})
    refused(rule, [](auto& c) { c.revival = 1; }, {"revival 1", std::string(to_string(rule))});
  refused(CodebookUpdate::loss, [](auto& c) { c.revival_policy = Revival::split; }, {"split", "revival 0"});
  refused(CodebookUpdate::loss, [](auto& c) { c.revival_policy = Revival::lru, c.revival = 0.5; }, {"lru", "0.5"});
  refused(CodebookUpdate::loss, [](auto& c) { c.assignment = Assignment::sinkhorn, c.estimator = "gumbel"; },
          {"assignment sinkhorn", "gumbel"});
  refused(CodebookUpdate::simvq, [](auto& c) { c.init = CodebookInit::normal; }, {"init normal", "simvq"});
  refused(CodebookUpdate::alternating, [](auto& c) { c.inner_rate = 0; }, {"inner_rate 0"});
  refused(CodebookUpdate::loss, [](auto& c) { c.entropy_temperature = 0; }, {"entropy_temperature 0"});
  refused(CodebookUpdate::loss, [](auto& c) { c.origin_decay = 1; }, {"origin_decay 1"});
  refused(CodebookUpdate::loss, [](auto& c) { c.diversity = -1; }, {"diversity -1"});
  // The loss of an estimator and the codebook's own of that name.
  QuantizerConfig config = codebook_config(CodebookUpdate::loss, 4, 3);
  config.estimator = "ibq";
  config.entropy = 1;
  Codebook c(config);
  const Value z = c.tape.constant(random_rows({6, 3}, 1));
  expect_error(ErrorKind::usage, {"ibq", "'entropy'"}, [&] { c.quantizer(z, c.training()); });
}

}  // namespace
}  // namespace sg
