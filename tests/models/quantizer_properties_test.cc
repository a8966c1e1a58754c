// Properties of the vector quantizer under every codebook rule, metric and estimator of rows: one forward value in
// training and evaluation, exact round trips, maps of any rank, and who gets a gradient.
#include <algorithm>

#include "core/autodiff.h"
#include "models/quantizers/codebook_rules.h"
#include "ops/estimator_table.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/codebook_support.h"

namespace sg {
namespace {

using namespace models_test;

constexpr std::int64_t kDim = 4;

struct Combination {
  QuantizerConfig config;
  std::string what;
};

std::vector<Combination> combinations() {
  std::vector<Combination> all;
  for (const CodebookUpdate rule : kRules)
    for (const Metric metric : {Metric::euclidean, Metric::cosine})
      for (const std::string& estimator : rows_only_estimator_names()) {
        QuantizerConfig config = codebook_config(rule, 16, kDim);
        config.metric = metric;
        config.estimator = estimator;
        all.push_back({config, std::string(to_string(rule)) + " " + std::string(to_string(metric)) + " " + estimator});
      }
  return all;
}

// One whose codes are not what its variables start from: W, s and b moved too.
std::unique_ptr<Codebook> trained(const QuantizerConfig& config) {
  auto c = std::make_unique<Codebook>(config);
  c->quantizer.set_codebook(random_rows({config.codes, kDim}, 4, 0.7));
  for (const char* name : {"vq.transform", "vq.scale", "vq.shift"})
    for (Variable* p : c->root.parameters())
      if (p->name() == name) p->set(random_rows(p->type().shape, 6));
  return c;
}

std::vector<Tensor> evaluated(const Codebook& c, const Tensor& z_value, std::string_view backend_name) {
  Tape tape;
  const Value z = tape.constant(z_value), indices = c.quantizer.encode(z);
  const Value decoded = c.quantizer.decode(indices);
  return run_once(tape,
                  {indices, decoded, c.quantizer(z).z_q, c.quantizer.encode(decoded), c.quantizer.requantize(indices)},
                  {}, backend_name);
}

TEST(QuantizerProperties, TrainingAndEvaluationHaveOneForwardValueAndRoundTripsAreExact) {
  const Tensor rows = random_rows({60, kDim}, 8);
  for (const Combination& one : combinations())
    for (const std::string_view name : backend_names()) {
      const auto c = trained(one.config);
      const std::string what = one.what + " " + std::string(name);
      const std::vector<Tensor> now = evaluated(*c, rows, name);
      expect_same_bits(now[1], now[2], what + ": decode against the evaluation's z_q");
      expect_same_bits(now[0], now[3], what + ": a code is its own nearest");
      expect_same_bits(now[0], now[4], what + ": requantize");

      const Value z = c->tape.constant(rows);
      const Quantized out = c->step(z, c->training());
      const std::vector<Tensor> training =
          run_once(c->tape, {out.z_q, out.indices, gradient(sum(out.z_q) + out.loss("commitment"), z)}, {}, name);
      expect_same_bits(training[1], now[0], what + ": indices");
      if (!one.config.estimator.def.exact_forward) continue;
      // The alternating rule uses the codes that it leaves behind.
      if (one.config.codebook == CodebookUpdate::alternating) {
        Tape after;
        const Tensor later = run_once(after, {c->quantizer.decode(after.constant(training[1]))}, {}, name)[0];
        expect_near(later, numbers(training[0]), name == "reference" ? 1e-6 : 0, what + ": z_q");
      } else {
        expect_same_bits(training[0], now[1], what + ": z_q");
      }
    }
}

TEST(QuantizerProperties, MapsOfAnyRankAreTheirRows) {
  const Tensor rows = random_rows({12, kDim}, 8);
  const std::vector<Shape> shapes{{12, kDim}, {3, 4, kDim}, {2, 2, 3, kDim}, {1, 2, 3, 2, kDim}};
  for (const Combination& one : combinations()) {
    std::vector<std::vector<double>> first;
    for (const Shape& shape : shapes) {
      const auto c = trained(one.config);
      Tensor map({DType::f32, shape});
      for (std::int64_t i = 0; i < map.elements(); ++i) map.set(i, rows.at(i));
      const Value z = c->tape.constant(map);
      const Quantized out = c->quantizer(z, c->training());
      EXPECT_EQ(out.z_q.shape(), shape) << one.what;
      EXPECT_EQ(out.indices.shape(), c->quantizer.index_shape(shape)) << one.what;
      Value total = sum(out.z_q);
      if (const Value losses = out.total_loss()) total = total + losses;
      const Value back = c->quantizer.decode(out.indices);
      EXPECT_EQ(back.shape(), shape);
      std::vector<std::vector<double>> results;
      for (const Tensor& t : run_once(c->tape, {out.z_q, out.indices, total, gradient(total, z), back}))
        results.push_back(numbers(t));
      if (first.empty()) first = results;
      EXPECT_EQ(results, first) << one.what << " " << to_string(shape);
    }
  }
}

TEST(QuantizerProperties, GradientsGoWhereTheRuleAndTheEstimatorSay) {
  for (const Combination& one : combinations()) {
    const auto c = trained(one.config);
    const Value z = c->tape.constant(random_rows({6, kDim}, 1));
    const Quantized out = c->quantizer(z, c->training());
    const Value decoder = sum(out.z_q);
    EXPECT_EQ(gradient_flow(decoder, z).state, GradientFlow::State::live) << one.what;
    for (Variable* v : c->root.variables()) {
      if (v->name() == "vq.count" || v->name() == "vq.sum") continue;
      const std::vector<Variable*> parameters = c->root.parameters();
      const bool parameter = std::find(parameters.begin(), parameters.end(), v) != parameters.end();
      const bool live = gradient_flow(decoder, c->tape.read(*v)).state == GradientFlow::State::live;
      EXPECT_EQ(live, parameter && one.config.estimator.def.reaches_codes) << one.what << " " << v->name();
      EXPECT_EQ(gradient_flow(out.loss("codebook"), c->tape.read(*v)).state == GradientFlow::State::live, parameter)
          << one.what << " " << v->name();
      EXPECT_NE(gradient_flow(out.loss("commitment"), c->tape.read(*v)).state, GradientFlow::State::live)
          << one.what << " " << v->name();
    }
  }
}

}  // namespace
}  // namespace sg
