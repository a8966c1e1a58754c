// Composed quantizers against PyTorch (tools/make_goldens.py writes quantizers.json): output, indices, losses, and the
// gradient in the input and in every parameter.
#include "core/autodiff.h"
#include "core/program.h"
#include "models/quantizers/quantizer.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/goldens/golden.h"

namespace sg::test {
namespace {

QuantizerConfig config_of(const Json& c, const Json& file) {
  QuantizerConfig config;
  config.quantizer = c.at("quantizer");
  config.estimator = c.at("estimator").get<std::string>();
  config.beta = file.at("beta");
  config.gamma = file.at("gamma");
  const Json& s = c.at("settings");
  config.codes = s.value("codes", config.codes);
  config.dim = s.value("dim", config.dim);
  config.levels = s.value("levels", config.levels);
  config.code_dim = s.value("code_dim", config.code_dim);
  config.side = s.value("side", config.side);
  config.phi = s.value("phi", config.phi);
  config.scales = s.value("scales", config.scales);
  config.metric = metric_by_name(s.value("metric", "euclidean"));
  return config;
}

// Within `tolerance` of the largest element of the golden.
void expect_close(const Tensor& actual, const Json& array, double tolerance, const std::string& what) {
  expect_near(actual, array, tolerance, largest(tensor(array, DType::f64)), what);
}

TEST(Goldens, ComposedQuantizersAgreeWithPyTorch) {
  const Json file = golden("quantizers.json");
  ASSERT_EQ(file.at("cases").size(), 8u);
  for (const Json& c : file.at("cases"))
    for (const std::string_view on : backend_names()) {
      SCOPED_TRACE(c.at("quantizer").get<std::string>() + " " + c.at("estimator").get<std::string>() + " " +
                   std::string(on));
      Module root{1};
      const auto quantizer = make_quantizer(root, "quantizer", config_of(c, file));
      ASSERT_EQ(root.parameters().size(), c.at("variables").size());
      for (const auto& [name, array] : c.at("variables").items()) root.find(name).set(tensor(array, DType::f32));
      Tape tape;
      const Value z = tape.constant(tensor(c.at("z"), DType::f32));
      const Value cotangent = tape.constant(tensor(c.at("cotangent"), DType::f32));
      const QuantizeContext training{
          .random = tape.constant(Tensor::of<std::int32_t>({2}, {1, 0})), .progress = {}, .mask = {}};
      const Quantized out = (*quantizer)(z, training);
      const Value total = sum(cotangent * out.z_q) + out.total_loss();
      std::vector<Value> wrt{z};
      for (const auto& [name, array] : c.at("variables").items()) wrt.push_back(tape.read(root.find(name)));
      std::vector<Value> fetches{out.z_q, out.loss("codebook"), out.loss("commitment")};
      for (const Value g : gradients(total, wrt)) fetches.push_back(g);
      // The oracle computes in double whatever the type, but a constant such as 1/N has its type's precision.
      const bool oracle = on == "reference";
      if (oracle)
        for (Value& v : fetches) v = cast(v, DType::f64);
      fetches.push_back(out.indices);
      Program program = compile(tape, fetches, backend(on));
      program.run();
      const double tolerance = oracle ? 2e-7 : 5e-6;
      expect_close(program.fetch(out.indices), c.at("indices"), 0, "indices");
      expect_close(program.fetch(fetches[0]), c.at("z_q"), tolerance, "z_q");
      const char* losses[] = {"codebook", "commitment"};
      for (std::size_t i = 0; i < 2; ++i) {
        const double expected = c.at(losses[i]);
        EXPECT_NEAR(program.fetch(fetches[1 + i]).item(), expected, tolerance * expected) << losses[i];
      }
      expect_close(program.fetch(fetches[3]), c.at("gradient"), tolerance, "d/dz");
      std::size_t i = 4;
      for (const auto& [name, array] : c.at("gradients").items())
        expect_close(program.fetch(fetches[i++]), array, tolerance, "d/d" + name);
    }
}

}  // namespace
}  // namespace sg::test
