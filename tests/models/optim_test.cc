// Optimizers against the values that PyTorch 2.15's optimizers give in float64 for the same gradients and rates.
#include "models/optim.h"

#include <functional>

#include "models/init.h"
#include "ops/elementwise.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

using Make = std::function<std::unique_ptr<Optimizer>(std::vector<Variable*>)>;
using Trajectory = std::vector<std::vector<double>>;

// Parameters after each of four steps from (1, -0.5), with fixed gradients and rates, in f64.
Trajectory trajectory(const Make& make) {
  Variable p("p", Tensor::of<double>({2}, {1.0, -0.5}));
  const auto optimizer = make({&p});
  Tape tape;
  const Value g = tape.input("g", p.type()), lr = tape.input("lr", {DType::f64, {}});
  optimizer->apply(tape, std::vector{g}, lr);
  Program program = compile(tape, {}, backend("reference"));
  const double grads[4][2] = {{0.1, -2.0}, {-0.2, 0.5}, {0.3, 0.0}, {0.05, -1.0}}, rates[4] = {0.1, 0.1, 0.05, 0.02};
  Trajectory steps;
  for (int i = 0; i < 4; ++i) {
    program.feed(g, Tensor::of<double>({2}, {grads[i][0], grads[i][1]}));
    program.feed(lr, Tensor::of<double>({}, {rates[i]}));
    program.run();
    steps.push_back(numbers(p.value()));
  }
  return steps;
}

void expect_trajectory(const Make& make, const Trajectory& expected) {
  const Trajectory actual = trajectory(make);
  for (std::size_t i = 0; i < expected.size(); ++i)
    for (std::size_t j = 0; j < 2; ++j)
      EXPECT_NEAR(actual[i][j], expected[i][j], 2e-12) << "step " << i << " element " << j;
}

TEST(Optimizers, SgdEqualsPyTorch) {
  expect_trajectory([](auto p) { return std::make_unique<Sgd>(p); },
                    {{0.99, -0.3}, {1.01, -0.35}, {0.995, -0.35}, {0.994, -0.33}});
  expect_trajectory(
      [](auto p) { return std::make_unique<Sgd>(p, SgdOptions{.momentum = 0.9, .weight_decay = 0.01}); },
      {{0.989, -0.2995}, {0.998111, -0.1687505}, {0.9867118945, -0.10982884975}, {0.981410874141, -0.06859508989}});
  expect_trajectory([](auto p) { return std::make_unique<Sgd>(p, SgdOptions{.momentum = 0.9, .nesterov = true}); },
                    {{0.981, -0.12}, {1.0109, -0.053}, {0.986855, -0.00035}, {0.9816988, 0.056604}});
}

TEST(Optimizers, AdamEqualsPyTorch) {
  expect_trajectory([](auto p) { return std::make_unique<Adam>(p); }, {{0.90000001, -0.4000000005},
                                                                       {0.936610360388, -0.353053183701},
                                                                       {0.919448307168, -0.334908171003},
                                                                       {0.912334150572, -0.324481912524}});
  const AdamOptions other{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.1};
  expect_trajectory([&](auto p) { return std::make_unique<Adam>(p, other); }, {{0.900497512438, -0.400048756704},
                                                                               {0.883256055654, -0.355431476762},
                                                                               {0.850096153956, -0.338484541372},
                                                                               {0.836442320699, -0.327740124607}});
}

TEST(Optimizers, AdamWEqualsPyTorch) {
  expect_trajectory([](auto p) { return std::make_unique<AdamW>(p, AdamOptions{.weight_decay = 0.1}); },
                    {{0.89000001, -0.3950000005},
                     {0.917710360288, -0.344103183696},
                     {0.895959755267, -0.32423765508},
                     {0.88705367916, -0.31316292129}});
}

// Bias correction is computed in f64, so f32 parameters take the first step to f32 accuracy: lr sign(g), nearly.
TEST(Optimizers, AdamsFirstStepInSinglePrecisionHasNoCancellation) {
  for (const std::string_view name : backend_names()) {
    Variable p("p", floats({3}, {0, 0, 0}));
    Adam adam({&p});
    Tape tape;
    const Value lr = tape.input("lr", {DType::f32, {}});
    adam.apply(tape, std::vector{tape.constant(floats({3}, {1e-3f, -2, 7}))}, lr);
    run_once(tape, {}, {{lr, floats({}, {0.5f})}}, name);
    expect_near(p.value(), {-0.5 * 1e-3 / (1e-3 + 1e-8), 0.5, -0.5}, 2e-7, std::string(name));
  }
}

TEST(Optimizers, StateIsNamedAfterItsParameters) {
  Variable a("net.a", floats({2}, {0, 0})), b("net.b", floats({}, {0}));
  Adam adam({&a, &b});
  std::vector<std::string> names;
  for (const Variable* v : adam.state()) names.push_back(v->name());
  EXPECT_EQ(names, (std::vector<std::string>{"optimizer.steps", "optimizer.m.net.a", "optimizer.m.net.b",
                                             "optimizer.v.net.a", "optimizer.v.net.b"}));
  EXPECT_TRUE(Sgd({&a, &b}).state().empty());
}

TEST(Optimizers, WrongGradientsAreRefusedByName) {
  Variable a("net.a", floats({2}, {0, 0}));
  Sgd sgd({&a});
  Tape tape;
  const Value lr = tape.constant(0.1, {DType::f32, {}}), g = tape.constant(0, {DType::f32, {3}});
  expect_error(ErrorKind::shape, {"net.a", "f32[2]", "f32[3]"}, [&] { sgd.apply(tape, std::vector{g}, lr); });
  expect_error(ErrorKind::usage, {"2 gradients", "1 parameters"}, [&] { sgd.apply(tape, std::vector{g, g}, lr); });
  expect_error(ErrorKind::shape, {"scalar", "f32[3]"}, [&] { sgd.update(tape, std::vector{tape.read(a)}, g); });
  expect_error(ErrorKind::usage, {"adagrad", "sgd", "adam", "adamw"}, [&] { optimizer_by_name("adagrad", {&a}); });
}

// torch.nn.utils.clip_grad_norm_([(3, 0), 4], 1) gives (0.6, 0), 0.8 up to its 1e-6.
TEST(Clipping, ScalesAllGradientsByTheirCommonNorm) {
  Tape tape;
  const Value a = tape.constant(floats({2}, {3, 0})), b = tape.constant(4, {DType::f32, {}});
  const std::vector grads{a, b};
  const ClippedGradients clipped = clip_by_global_norm(grads, 1), loose = clip_by_global_norm(grads, 6);
  const std::vector<Tensor> t = run_once(tape, {clipped.norm, clipped.grads[0], clipped.grads[1], loose.grads[0]});
  expect_near(t[0], {5}, 1e-6);
  expect_near(t[1], {0.6, 0}, 1e-6);
  expect_near(t[2], {0.8}, 1e-6);
  expect_near(t[3], {3, 0}, 0);
  expect_error(ErrorKind::usage, {"-1"}, [&] { clip_by_global_norm(grads, -1); });
  const ClippedGradients none = clip_by_global_norm(grads, 0);
  for (std::size_t i = 0; i < grads.size(); ++i) EXPECT_EQ(none.grads[i].id, grads[i].id);
}

}  // namespace
}  // namespace sg
