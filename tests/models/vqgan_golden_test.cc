// VQ-GAN and batch norm against PyTorch (tools/goldens/vqgan.py, whose `fill`, `make_images` and `Features` are
// restated here).
#include <map>

#include "core/autodiff.h"
#include "core/philox.h"
#include "tests/goldens/golden.h"
#include "tests/models/vqgan_support.h"

namespace sg {
namespace {

using namespace vqgan_test;
using test::golden;
using test::Json;
using test::tensor;
using test::uniforms;

// f32 of `scale` times 2 u - 1, for weights 2 / sqrt(fan_in).
Tensor filled(const Shape& shape, std::uint32_t seed, std::uint32_t step, std::uint32_t stream, double scale) {
  if (scale == 0) scale = 2 / std::sqrt(static_cast<double>(shape.elements() / shape[-1]));
  Tensor t({DType::f32, shape});
  const std::vector<double> u = uniforms(seed, step, stream, t.elements());
  for (std::size_t i = 0; i < u.size(); ++i) t.set(static_cast<std::int64_t>(i), (2 * u[i] - 1) * scale);
  return t;
}

void fill(const std::vector<Variable*>& parameters, std::uint32_t seed, std::uint32_t step, const Json& codebook) {
  std::map<std::string, Variable*> sorted;
  for (Variable* v : parameters) sorted[v->name()] = v;
  std::uint32_t stream = 0;
  for (const auto& [name, variable] : sorted) {
    Tensor t = variable->value();
    const std::vector<double> u = uniforms(seed, step, stream, t.elements());
    for (std::int64_t i = 0; i < t.elements(); ++i) {
      const double x = 2 * u[static_cast<std::size_t>(i)] - 1;
      if (name == "quantizer.codebook") {
        const Json& centre = codebook.at("centre");
        t.set(i, centre[static_cast<std::size_t>(i) % centre.size()].get<double>() +
                     x * codebook.at("range").get<double>());
      } else {
        t.set(i, name.find("norm") != std::string::npos && name.ends_with("weight") ? 1 + 0.2 * x : 0.1 * x);
      }
    }
    if (t.shape().rank() > 1 && name != "quantizer.codebook") t = filled(t.shape(), seed, step, stream, 0);
    variable->set(t);
    ++stream;
  }
}

Tensor make_images(const VqGanConfig& c, std::uint32_t seed, std::uint32_t first_stream, std::uint32_t step) {
  Tensor images({DType::f32, {c.batch, c.height, c.width, c.channels}});
  for (std::int64_t n = 0; n < c.batch; ++n)
    for (std::int64_t ch = 0; ch < c.channels; ++ch) {
      const auto u = uniforms(seed, 10 + step, first_stream + static_cast<std::uint32_t>(n * c.channels + ch), 3);
      for (std::int64_t y = 0; y < c.height; ++y)
        for (std::int64_t x = 0; x < c.width; ++x)
          images.set(((n * c.height + y) * c.width + x) * c.channels + ch,
                     0.5 + 0.4 * std::sin(2 * std::numbers::pi *
                                          (3 * u[0] * static_cast<double>(y) / static_cast<double>(c.height) +
                                           3 * u[1] * static_cast<double>(x) / static_cast<double>(c.width) + u[2])));
    }
  return images;
}

PerceptualDistance features(std::int64_t channels, std::uint32_t seed) {
  PerceptualDistance d;
  // Sorted names: a.bias, a.weight, b.bias, b.weight.
  const Tensor bias_a = filled({5}, seed, 2, 0, 0.1), a = filled({3, 3, channels, 5}, seed, 2, 1, 0),
               bias_b = filled({7}, seed, 2, 2, 0.1), b = filled({3, 3, 5, 7}, seed, 2, 3, 0);
  d.features = [=](Value x) {
    const auto constant = [&](const Tensor& t) { return x.tape->constant(t); };
    const Value first = relu(conv2d(x, constant(a), ConvOptions::square(1, 1)) + constant(bias_a));
    return std::vector<Value>{first, relu(conv2d(first, constant(b), ConvOptions::square(2, 1)) + constant(bias_b))};
  };
  for (const std::uint32_t l : {0u, 1u}) {
    const std::int64_t width = l == 0 ? 5 : 7;
    Tensor w({DType::f32, {width}});
    const std::vector<double> u = uniforms(seed, 2, 90 + l, width);
    for (std::int64_t i = 0; i < width; ++i) w.set(i, u[static_cast<std::size_t>(i)]);
    d.weights.push_back(w);
  }
  return d;
}

VqGanConfig config_of(const Json& net, const std::string& estimator) {
  VqGanConfig c;
  for (const auto& [name, member] :
       std::map<std::string, std::int64_t VqGanConfig::*>{{"height", &VqGanConfig::height},
                                                          {"width", &VqGanConfig::width},
                                                          {"channels", &VqGanConfig::channels},
                                                          {"ch", &VqGanConfig::ch},
                                                          {"res_blocks", &VqGanConfig::res_blocks},
                                                          {"groups", &VqGanConfig::groups},
                                                          {"latent", &VqGanConfig::latent},
                                                          {"disc_start", &VqGanConfig::disc_start},
                                                          {"disc_warmup", &VqGanConfig::disc_warmup},
                                                          {"batch", &VqGanConfig::batch}})
    c.*member = net.at(name);
  c.ch_mult = net.at("ch_mult").get<std::vector<std::int64_t>>();
  c.discriminator = {.ndf = net.at("ndf"), .layers = net.at("layers")};
  c.perceptual_weight = net.at("perceptual_weight");
  c.disc_weight = net.at("disc_weight");
  c.lr = net.at("rate");
  c.quantizer.dim = net.at("code_dim");
  c.quantizer.codes = net.at("codes");
  c.quantizer.beta = net.at("beta");
  c.quantizer.gamma = net.at("gamma");
  c.quantizer.estimator = estimator;
  return c;
}

void check_training(const std::string& backend_name) {
  const Json file = golden("vqgan_ten_steps.json");
  const Json& net = file.at("net");
  const auto seed = net.at("seed").get<std::uint32_t>();
  ASSERT_EQ(file.at("runs").size(), 2u);
  for (const Json& run : file.at("runs")) {
    const VqGanConfig c = config_of(net, run.at("estimator"));
    SCOPED_TRACE(backend_name + ", " + c.quantizer.estimator.text());
    VqGan model(c);
    VqGanTraining training(model, features(c.channels, seed));
    fill(model.parameters(), seed, 0, file.at("codebook"));
    fill(training.discriminator().parameters(), seed, 1, {});
    std::map<std::string, Tensor> before;
    for (const Variable* v : training.parameters()) before.emplace(v->name(), v->value());
    Tape tape;
    const VqGanStep step = build_train_step(tape, training);
    Program program = compile(tape, step.fetches(), backend(backend_name));
    program.feed(step.learning_rate, Tensor::full({DType::f32, {}}, c.lr));
    const Json& expected = run.at("float64");
    ASSERT_GE(expected.size(), 15u);
    for (std::uint32_t i = 0; i < net.at("steps").get<std::uint32_t>(); ++i) {
      program.feed(step.images, make_images(c, seed, net.at("image_stream"), i));
      program.run();
      for (const auto& [name, values] : expected.items()) {
        double largest = 0;
        for (const Json& v : values) largest = std::max(largest, std::abs(v.get<double>()));
        const double value = values[i];
        // relative to the number, and for those that pass through 0 to a tenth of their size
        EXPECT_NEAR(program.fetch_scalar(step.metric(name)), value, 1e-4 * std::max(std::abs(value), 0.1 * largest))
            << name << " of step " << i + 1;
      }
    }
    for (const auto& [name, values] : run.at("running_float64").items()) {
      const Tensor& running = training.discriminator().find(name).value();
      ASSERT_EQ(static_cast<std::size_t>(running.elements()), values.size());
      for (std::size_t i = 0; i < values.size(); ++i)
        EXPECT_NEAR(running.at(static_cast<std::int64_t>(i)), values[i].get<double>(), 1e-4) << name;
    }
    // The whole change of each parameter, as in goldens_test.cc. A bias of keys moves every score of a query alike: its
    // gradient is 0 but for rounding, which Adam magnifies.
    for (const Variable* v : training.parameters()) {
      if (v->name().ends_with("key.bias")) continue;
      double squares = 0;
      for (std::int64_t i = 0; i < v->value().elements(); ++i)
        squares += std::pow(v->value().at(i) - before.at(v->name()).at(i), 2);
      const double norm = run.at("change_float64").at(v->name()).at("norm");
      EXPECT_NEAR(std::sqrt(squares), norm, 1e-3 * norm) << v->name();
    }
  }
}

TEST(VqGanGolden, TenStepsOfBothPlayersAgreeWithPyTorch) {
  for (const auto name : backend_names()) check_training(std::string(name));
}

TEST(BatchNormGolden, TrainingEvaluationAndRunningStatisticsAgreeWithPyTorch) {
  const Json file = golden("batch_norm.json");
  for (const auto name : backend_names()) {
    Module root(1);
    const BatchNorm layer(root, "norm", tensor(file.at("gamma"), DType::f32));
    root.find("norm.bias").set(tensor(file.at("beta"), DType::f32));
    ASSERT_EQ(file.at("cases").size(), 3u);
    for (const Json& c : file.at("cases")) {
      SCOPED_TRACE(std::string(name) + (c.at("training").get<bool>() ? ", training" : ", evaluation"));
      Tape tape;
      const Tensor x_data = tensor(c.at("x"), DType::f32);
      const Value x = tape.input("x", x_data.type()), g = tape.input("g", x_data.type());
      StepUpdates updates(tape);
      const Value y = layer(x, c.at("training").get<bool>() ? Pass{.updates = &updates} : Pass{});
      const Value wrt[] = {x, tape.read(root.find("norm.weight")), tape.read(root.find("norm.bias"))};
      std::vector<Value> fetches = vjp({&y, 1}, {&g, 1}, wrt);
      fetches.push_back(y);
      updates.commit();
      const std::vector<Tensor> got =
          run_once(tape, fetches, {{x, x_data}, {g, tensor(c.at("cotangent"), DType::f32)}}, name);
      test::expect_near(got[0], c.at("dx"), 1e-5, 1, "dx");
      test::expect_near(got[1], c.at("dgamma"), 1e-5, 1, "dgamma");
      test::expect_near(got[2], c.at("dbeta"), 1e-5, 1, "dbeta");
      test::expect_near(got[3], c.at("y"), 1e-5, 1, "y");
      test::expect_near(root.find("norm.running_mean").value(), c.at("running_mean"), 1e-6, 1, "running mean");
      test::expect_near(root.find("norm.running_var").value(), c.at("running_var"), 1e-6, 1, "running variance");
    }
  }
}

}  // namespace
}  // namespace sg
