// Metrics and the classifier against scikit-image, SciPy, torch-fidelity's formulas and PyTorch
// (tools/goldens/metrics.py writes metrics.json and classifier.json).
#include <map>

#include "core/philox.h"
#include "core/program.h"
#include "models/classifier.h"
#include "models/image_metrics.h"
#include "ops/elementwise.h"
#include "tests/goldens/golden.h"
#include "tools/metrics.h"

namespace sg::test {
namespace {

// The numbers of a stream as a tensor of this type.
Tensor uniform_tensor(std::uint32_t seed, std::uint32_t step, std::uint32_t stream, TensorType type) {
  Tensor t(type);
  for (std::int64_t i = 0; i < t.elements(); ++i)
    t.set(i, uniform_block(
                 random_block(seed, step, stream, static_cast<std::uint64_t>(i / 4)))[static_cast<std::size_t>(i % 4)]);
  return t;
}

TEST(Goldens, SsimAgreesWithScikitImage) {
  const Json file = golden("metrics.json");
  std::uint32_t stream = 0;
  for (const Json& image : file.at("ssim")) {
    const Shape shape(image.at("shape").get<std::vector<std::int64_t>>());
    for (const Setting& setting : settings()) {
      SCOPED_TRACE(setting.backend + to_string(shape));
      Tape tape;
      const Value x = tape.constant(uniform_tensor(file.at("seed"), 0, stream, {setting.dtype, shape}));
      const Value v = tape.constant(uniform_tensor(file.at("seed"), 0, stream + 1, {setting.dtype, shape}));
      const Tensor index = eval(structural_similarity(x, 0.7 * x + 0.3 * v), backend(setting.backend));
      ASSERT_EQ(index.shape(), Shape{shape[0]});
      for (std::int64_t i = 0; i < index.elements(); ++i)
        EXPECT_NEAR(index.at(i), image.at("values")[static_cast<std::size_t>(i)].get<double>(),
                    setting.dtype == DType::f64 ? 1e-12 : 1e-5);
    }
    stream += 10;
  }
}

TEST(Goldens, FrechetDistanceAgreesWithSciPyAndTorchFidelity) {
  const Json file = golden("metrics.json");
  std::uint32_t stream = 0;
  for (const Json& c : file.at("frechet")) {
    SCOPED_TRACE(c.at("name").get<std::string>());
    const std::int64_t width = c.at("width");
    std::vector<Tensor> sets;
    for (std::uint32_t s = 0; s < 2; ++s) {
      const std::int64_t rows = c.at("rows")[s];
      const Tensor u = uniform_tensor(file.at("seed"), 1, stream + s, {DType::f64, {rows, width}});
      Tensor x(u.type());
      for (std::int64_t i = 0; i < x.elements(); ++i)
        x.set(i, c.at("scale").get<double>() * (u.at(i) * static_cast<double>(1 + i % width) + u.at(i - i % width)) +
                     0.5 * s);
      sets.push_back(std::move(x));
    }
    const double distance = tools::frechet_distance(sets[0], sets[1]);
    // Where a covariance is singular, NumPy's eigenvalues of the product are not exactly 0 and their roots add up.
    const double tolerance = c.at("name") == "full rank" ? 1e-10 : 1e-5;
    EXPECT_NEAR(distance, c.at("eigenvalues").get<double>(), tolerance);
    EXPECT_NEAR(distance, c.value("sqrtm", distance), tolerance);
    stream += 10;
  }
}

TEST(Goldens, InceptionScoreAgreesWithTorchFidelity) {
  const Json file = golden("metrics.json");
  const Json& c = file.at("score");
  Tensor logits = uniform_tensor(file.at("seed"), 2, 0,
                                 {DType::f64, {c.at("rows").get<std::int64_t>(), c.at("classes").get<std::int64_t>()}});
  for (std::int64_t i = 0; i < logits.elements(); ++i) logits.set(i, 6 * logits.at(i) - 3);
  const auto order = c.at("order").get<std::vector<std::int64_t>>();
  const tools::InceptionScore score = tools::inception_score(logits, c.at("splits"), order);
  EXPECT_NEAR(score.mean, c.at("mean").get<double>(), 1e-12);
  EXPECT_NEAR(score.deviation, c.at("deviation").get<double>(), 1e-12);
}

TEST(Goldens, TenStepsOfTheClassifierAgreeWithPyTorch) {
  const Json file = golden("classifier.json");
  const Json& c = file.at("config");
  ClassifierConfig config;
  config.height = c.at("height");
  config.width = c.at("width");
  config.channels = c.at("channels");
  config.classes = c.at("classes");
  config.hidden = c.at("hidden");
  config.stages = c.at("stages");
  config.batch = c.at("batch");
  config.weight_decay = c.at("weight_decay");
  const std::uint32_t seed = c.at("seed"), image_stream = c.at("image_stream");
  for (const auto name : backend_names()) {
    SCOPED_TRACE(name);
    Classifier model(config);
    std::map<std::string, Variable*> sorted;
    for (Variable* v : model.parameters()) sorted.emplace(v->name(), v);
    std::uint32_t stream = 0;
    for (const auto& [parameter, variable] : sorted) {
      const double bound = parameter.starts_with("embed") ? 0.1 : 0.4;
      Tensor t = uniform_tensor(seed, 0, stream++, {DType::f64, variable->type().shape});
      for (std::int64_t i = 0; i < t.elements(); ++i)
        t.set(i, (2.0 * t.at(i) - 1.0) * bound + (parameter.ends_with("norm.weight") ? 1.0 : 0.0));
      variable->set(t.cast(DType::f32));
    }
    ClassifierTraining training(model);
    Tape tape;
    const ClassifierStep step = build_classifier_step(tape, training);
    EXPECT_TRUE(violations(audit_step(tape, step, training), flow_contract(step, model)).empty());
    EXPECT_TRUE(audit_step(tape, step, training).problems().empty());
    Program program = compile(tape, step.fetches(), backend(name));
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, c.at("rate").get<double>()));
    for (std::uint32_t i = 0; i < c.at("steps").get<std::uint32_t>(); ++i) {
      Tensor labels = uniform_tensor(seed, 1 + i, image_stream + 1, {DType::f64, step.labels.shape()});
      for (std::int64_t k = 0; k < labels.elements(); ++k)
        labels.set(k, std::floor(labels.at(k) * static_cast<double>(config.classes)));
      program.feed(step.images, uniform_tensor(seed, 1 + i, image_stream, step.images.type()));
      program.feed(step.labels, labels.cast(DType::i32));
      program.run();
      for (const NamedValue& metric : step.metrics) {
        if (metric.name == "accuracy") continue;
        for (const char* precision : {"float32", "float64"}) {
          const double expected = file.at(precision).at(metric.name)[i];
          EXPECT_NEAR(program.fetch_scalar(metric.value), expected, 1e-4 * expected)
              << metric.name << " of step " << i + 1 << " against " << precision;
        }
      }
    }
    EXPECT_EQ(training.step().value().item(), 10);
  }
}

}  // namespace
}  // namespace sg::test
