// Ten training steps of models/transformer_vq, over updates that carry memories on, against PyTorch's
// (tools/goldens/transformer_vq.py writes transformer_vq.json).
#include <map>

#include "core/philox.h"
#include "core/program.h"
#include "models/transformer_vq_training.h"
#include "tests/goldens/golden.h"

namespace sg::test {
namespace {

// centre + (2 u - 1) spread
Tensor spread(Shape shape, const std::vector<double>& u, double centre, double spread) {
  Tensor t({DType::f32, shape});
  for (std::int64_t i = 0; i < t.elements(); ++i)
    t.set(i, (2.0 * u[static_cast<std::size_t>(i)] - 1.0) * spread + centre);
  return t;
}

TransformerVqConfig config_of(const Json& c, const std::string& estimator) {
  TransformerVqConfig config;
  config.vocabulary = c.at("vocabulary");
  config.width = c.at("width");
  config.layers = c.at("layers");
  config.key_width = c.at("key_width");
  config.block = c.at("block");
  config.memory = c.at("memory");
  config.batch = c.at("batch");
  config.update = c.at("update");
  config.sequence = c.at("sequence");
  config.position_lambda = c.at("position_lambda");
  config.commitment = c.at("commitment");
  config.quantizer.codes = c.at("codes");
  config.quantizer.ema_decay = c.at("decay");
  config.quantizer.ema_eps = c.at("eps");
  config.quantizer.estimator = estimator_by_name(estimator);
  config.beta2 = c.at("beta2");
  config.adam_eps = c.at("adam_eps");
  config.weight_decay = c.at("weight_decay");
  config.clip = c.at("clip");
  return config;
}

void check(const Json& file, const std::string& estimator, std::string_view backend_name) {
  const Json& c = file.at("config");
  const TransformerVqConfig config = config_of(c, estimator);
  const std::uint32_t seed = c.at("seed"), token_stream = c.at("token_stream");
  TransformerVq model(config);
  std::map<std::string, Variable*> sorted;
  for (Variable* v : model.parameters()) sorted.emplace(v->name(), v);
  std::uint32_t stream = 0;
  for (const auto& [name, variable] : sorted) {
    const Shape shape = variable->type().shape;
    variable->set(spread(shape, uniforms(seed, 0, stream++, shape.elements()), name.ends_with("gain") ? 1 : 0, 0.5));
  }
  for (std::uint32_t i = 0; i < model.quantizers().size(); ++i) {
    const Shape shape{config.quantizer.codes, config.key_width};
    model.quantizers()[i]->set_codebook(spread(shape, uniforms(seed, 0, 100 + i, shape.elements()), 0, 1));
  }
  TransformerVqTraining training(model);
  Tape tape;
  const TransformerVqStep step = build_train_step(tape, training);
  Program program = compile(tape, step.fetches(), backend(backend_name));
  program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, c.at("rate").get<double>()));
  const Json& run = file.at("runs").at(estimator);
  for (std::uint32_t i = 0; i < c.at("steps").get<std::uint32_t>(); ++i) {
    Tensor tokens({DType::i32, {config.batch, config.update + 1}});
    const std::vector<double> u = uniforms(seed, 1 + i, token_stream, tokens.elements());
    for (std::int64_t j = 0; j < tokens.elements(); ++j)
      tokens.set(j, std::floor(u[static_cast<std::size_t>(j)] * static_cast<double>(config.vocabulary)));
    program.feed(step.tokens, tokens);
    program.run();
    for (const char* metric : {"loss", "likelihood", "commitment", "grad_norm"})
      for (const char* precision : {"float32", "float64"}) {
        const double expected = run.at(precision).at(metric)[i];
        EXPECT_NEAR(program.fetch_scalar(step.metric(metric)), expected, 1e-4 * expected)
            << metric << " of step " << i + 1 << " against " << precision;
      }
  }
  for (std::size_t i = 0; i < model.quantizers().size(); ++i) {
    const Tensor& codes = model.quantizers()[i]->codebook().value();
    double sum = 0;
    for (std::int64_t j = 0; j < codes.elements(); ++j) sum += std::abs(codes.at(j));
    const double expected = run.at("float64").at("codebook_sum")[i];
    EXPECT_NEAR(sum, expected, 1e-4 * expected) << "codebook " << i;
  }
}

TEST(Goldens, TenStepsOfTransformerVqAgreeWithPyTorch) {
  const Json file = golden("transformer_vq.json");
  for (const std::string& estimator : file.at("config").at("estimators").get<std::vector<std::string>>())
    for (const auto name : backend_names()) {
      SCOPED_TRACE(estimator + " on " + std::string(name));
      check(file, estimator, name);
    }
}

}  // namespace
}  // namespace sg::test
