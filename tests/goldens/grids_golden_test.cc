// Grid quantizers against PyTorch (tools/make_goldens.py writes grids.json): codes, indices, losses, gradients.
#include "core/autodiff.h"
#include "core/program.h"
#include "models/quantizers/quantizer.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/goldens/golden.h"

namespace sg::test {
namespace {

QuantizerConfig config_of(const Json& c, const Json& weights) {
  QuantizerConfig config;
  config.quantizer = c.at("quantizer");
  const Json& settings = c.at("settings");
  config.grid = settings.value("grid", config.grid);
  config.codes = std::int64_t{1} << settings.value("bits", 9);
  config.entropy_temperature = settings.value("temperature", config.entropy_temperature);
  config.entropy = weights.at("entropy");
  config.diversity = weights.at("diversity");
  config.gamma = weights.at("commitment");
  config.beta = weights.at("codebook");
  return config;
}

TEST(Goldens, GridQuantizersAgreeWithPyTorch) {
  const Json file = golden("grids.json");
  ASSERT_EQ(file.at("cases").size(), 12u);
  for (const Json& c : file.at("cases"))
    for (Setting s : settings()) {
      SCOPED_TRACE(c.at("quantizer").get<std::string>() + " " + c.at("settings").dump() + ", " + s.backend + " " +
                   std::string(to_string(s.dtype)));
      Module root;
      const auto quantizer = make_quantizer(root, "q", config_of(c, file.at("weights")));
      // Values are stored in f32.
      if (c.at("quantizer") == "latent" && s.dtype == DType::f64) s.tolerance = 1e-7;
      Tape tape;
      const Value z = tape.constant(tensor(c.at("z"), s.dtype)), g = tape.constant(tensor(c.at("g"), s.dtype));
      const Quantized out = (*quantizer)(z);
      Value total = sum(g * out.z_q);
      if (const Value losses = out.total_loss()) total = total + losses;
      std::vector<Value> fetches{out.z_q, out.indices, gradient(total, z)};
      ASSERT_EQ(out.losses.size(), c.at("losses").size());
      for (const auto& [name, value] : c.at("losses").items()) fetches.push_back(out.loss(name));
      Program program = compile(tape, fetches, backend(s.backend));
      program.run();
      expect_near(program.fetch(out.z_q), c.at("z_q"), s.tolerance, 1, "z_q");
      expect_near(program.fetch(out.indices), c.at("indices"), 0, 0, "indices");
      const Tensor expected = tensor(c.at("gradient"), DType::f64);
      expect_near(program.fetch(fetches[2]), c.at("gradient"), s.tolerance, largest(expected), "gradient");
      for (const auto& [name, value] : c.at("losses").items())
        EXPECT_NEAR(program.fetch(out.loss(name)).item(), value.get<double>(), s.tolerance * 2) << name;
    }
}

}  // namespace
}  // namespace sg::test
