// Ten training steps of models/gpt against PyTorch's (tools/goldens/gpt.py writes gpt.json).
#include <map>

#include "core/philox.h"
#include "core/program.h"
#include "models/gpt.h"
#include "tests/goldens/golden.h"

namespace sg::test {
namespace {

Tensor indices(Shape shape, const std::vector<double>& u, std::int64_t below) {
  Tensor t({DType::i32, shape});
  for (std::int64_t i = 0; i < t.elements(); ++i)
    t.set(i, std::floor(u[static_cast<std::size_t>(i)] * static_cast<double>(below)));
  return t;
}

TEST(Goldens, TenStepsOfTheGptAgreeWithPyTorch) {
  const Json file = golden("gpt.json");
  const Json& c = file.at("config");
  GptConfig config;
  config.vocabulary = c.at("vocabulary");
  config.length = c.at("length");
  config.classes = c.at("classes");
  config.dim = c.at("dim");
  config.layers = c.at("layers");
  config.heads = c.at("heads");
  config.batch = c.at("batch");
  config.weight_decay = c.at("weight_decay");
  config.clip = c.at("clip");
  config.dropout = 0;
  const std::uint32_t seed = c.at("seed"), token_stream = c.at("token_stream");
  for (const auto name : backend_names()) {
    SCOPED_TRACE(name);
    Gpt model(config);
    std::map<std::string, Variable*> sorted;
    for (Variable* v : model.parameters()) sorted.emplace(v->name(), v);
    std::uint32_t stream = 0;
    for (const auto& [parameter, variable] : sorted) {
      Tensor t(variable->type());
      const std::vector<double> u = uniforms(seed, 0, stream++, t.elements());
      const bool centred_at_1 = parameter.find("norm") != std::string::npos && parameter.ends_with("weight");
      for (std::int64_t i = 0; i < t.elements(); ++i)
        t.set(i, (2.0 * u[static_cast<std::size_t>(i)] - 1.0) * 0.4 + (centred_at_1 ? 1.0 : 0.0));
      variable->set(t);
    }
    GptTraining training(model);
    Tape tape;
    const GptTrainStep step = build_train_step(tape, training);
    const std::map<std::string, Value> values{{"loss", step.loss}, {"grad_norm", step.metrics.back().value}};
    ASSERT_EQ(step.metrics.back().name, "grad_norm");
    Program program = compile(tape, {values.at("loss"), values.at("grad_norm")}, backend(name));
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, c.at("rate").get<double>()));
    for (std::uint32_t i = 0; i < c.at("steps").get<std::uint32_t>(); ++i) {
      program.feed(step.tokens,
                   indices({config.batch, config.length},
                           uniforms(seed, 1 + i, token_stream, config.batch * config.length), config.vocabulary));
      program.feed(step.classes,
                   indices({config.batch}, uniforms(seed, 1 + i, token_stream + 1, config.batch), config.classes));
      program.run();
      for (const auto& [metric, value] : values)
        for (const char* precision : {"float32", "float64"}) {
          const double expected = file.at(precision).at(metric)[i];
          EXPECT_NEAR(program.fetch_scalar(value), expected, 1e-4 * expected)
              << metric << " of step " << i + 1 << " against " << precision;
        }
    }
  }
}

}  // namespace
}  // namespace sg::test
