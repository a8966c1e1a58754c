// Modules, initial values and layers.
#include "models/module.h"

#include <cmath>

#include "core/autodiff.h"
#include "models/init.h"
#include "models/layers.h"
#include "models/schedule.h"
#include "ops/elementwise.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

struct Leaf : Module {
  Leaf(Module& parent, std::string_view name) : Module(parent, name) {
    weight = &add_parameter("weight", normal_init({2}, 0, 1, seed(), full_name("weight")));
    count = &add_state("count", Tensor({DType::i32, {}}));
  }
  using Module::add_state;
  Variable *weight, *count;
};
struct Tree : Module {
  explicit Tree(std::uint32_t seed) : Module(seed) {}
  Leaf first{*this, "first"}, second{*this, "second"};
  Leaf inner{second, "inner"};
};

TEST(Modules, NamesAreDottedPathsAndListsKeepTheOrderOfConstruction) {
  const Tree tree(3);
  std::vector<std::string> parameters, state;
  for (const Variable* v : tree.parameters()) parameters.push_back(v->name());
  for (const Variable* v : tree.state()) state.push_back(v->name());
  EXPECT_EQ(parameters, (std::vector<std::string>{"first.weight", "second.weight", "second.inner.weight"}));
  EXPECT_EQ(state, (std::vector<std::string>{"first.count", "second.count", "second.inner.count"}));
  EXPECT_EQ(tree.variables().size(), 6u);
  EXPECT_EQ(&tree.find("second.inner.weight"), tree.inner.weight);
  EXPECT_EQ(tree.inner.seed(), 3u);
  expect_error(ErrorKind::usage, {"'second.outer'"}, [&] { tree.find("second.outer"); });
}

TEST(Modules, ANameIsTakenOnce) {
  Tree tree(3);
  expect_error(ErrorKind::usage, {"'first'", "already"}, [&] { Leaf(tree, "first"); });
  expect_error(ErrorKind::usage, {"already", "'weight'"}, [&] { tree.first.add_state("weight", Tensor()); });
  expect_error(ErrorKind::usage, {"'a.b'", "dot"}, [&] { tree.first.add_state("a.b", Tensor()); });
}

TEST(InitialValues, DependOnSeedAndNameOnly) {
  struct More : Module {
    explicit More(std::uint32_t seed) : Module(seed) {}
    Leaf extra{*this, "extra"}, second{*this, "second"};
  };
  const Tree tree(3), other_seed(4);
  const More more(3);
  expect_same_bits(tree.second.weight->value(), more.second.weight->value());
  EXPECT_NE(numbers(tree.second.weight->value()), numbers(tree.first.weight->value()));
  EXPECT_NE(numbers(tree.second.weight->value()), numbers(other_seed.second.weight->value()));
}

TEST(InitialValues, HaveTheStatedMoments) {
  const auto moments = [](const Tensor& t) {
    double sum = 0, squares = 0;
    for (const double x : numbers(t)) sum += x, squares += x * x;
    const double n = static_cast<double>(t.elements());
    return std::pair(sum / n, squares / n);
  };
  const auto [mean_u, square_u] = moments(fan_in_uniform({100, 400}, 25, 1, "u"));  // U(-1/5, 1/5)
  EXPECT_NEAR(mean_u, 0, 0.004);
  EXPECT_NEAR(square_u, 0.04 / 3, 0.0004);
  for (const double x : numbers(fan_in_uniform({1000}, 25, 1, "u"))) EXPECT_LE(std::abs(x), 0.2);
  const auto [mean_n, square_n] = moments(normal_init({100, 400}, 0.5, 2, 1, "n"));
  EXPECT_NEAR(mean_n, 0.5, 0.05);
  EXPECT_NEAR(square_n, 4.25, 0.15);
}

// PyTorch: bound 1/sqrt(fan_in), where fan_in of a transposed convolution counts its output channels.
TEST(InitialValues, OfConvolutionsAreBoundedAsInPyTorch) {
  Module root(5);
  const Conv2d conv(root, "conv", 8, 6, 3);
  const ConvTranspose2d up(root, "up", 8, 2, 4, 2, 1);
  const auto largest = [](const Variable& v) {
    double most = 0;
    for (const double x : numbers(v.value())) most = std::max(most, std::abs(x));
    return most;
  };
  EXPECT_EQ(root.find("conv.weight").type().shape, Shape({3, 3, 8, 6}));
  EXPECT_EQ(root.find("up.weight").type().shape, Shape({4, 4, 2, 8}));
  const double conv_bound = 1 / std::sqrt(8.0 * 9), up_bound = 1 / std::sqrt(2.0 * 16);
  for (const auto& [name, bound] :
       {std::pair("conv.weight", conv_bound), {"conv.bias", conv_bound}, {"up.weight", up_bound}}) {
    EXPECT_LE(largest(root.find(name)), bound) << name;
    EXPECT_GT(largest(root.find(name)), 0.6 * bound) << name;
  }
}

TEST(Layers, LinearIsAProductAndABias) {
  Module root;
  const Linear linear(root, "linear", 2, 3);
  root.find("linear.weight").set(floats({2, 3}, {1, 2, 3, 4, 5, 6}));
  root.find("linear.bias").set(floats({3}, {10, 20, 30}));
  Tape tape;
  const Value x = tape.constant(floats({2, 1, 2}, {1, 0, -1, 2}));
  const Value y = linear(x);
  EXPECT_EQ(y.shape(), Shape({2, 1, 3}));
  expect_near(run_once(tape, {y})[0], {11, 22, 33, 17, 28, 39}, 1e-6);
}

TEST(Layers, ConvolutionAndItsTransposeAreAdjoint) {
  Module root(9);
  const Conv2d conv(root, "conv", 3, 4, 4, 2, 1, false);
  const ConvTranspose2d up(root, "up", 4, 3, 4, 2, 1, false);
  root.find("up.weight").set(root.find("conv.weight").value());  // both (4,4,3,4)
  Tape tape;
  const Value x = tape.constant(normal_init({2, 8, 6, 3}, 0, 1, 1, "x")),
              y = tape.constant(normal_init({2, 4, 3, 4}, 0, 1, 1, "y"));
  const std::vector<Tensor> both = run_once(tape, {conv(x), up(y)});
  ASSERT_EQ(both[0].shape(), y.shape());
  ASSERT_EQ(both[1].shape(), x.shape());
  double left = 0, right = 0;
  const Tensor xs = normal_init({2, 8, 6, 3}, 0, 1, 1, "x"), ys = normal_init({2, 4, 3, 4}, 0, 1, 1, "y");
  for (std::int64_t i = 0; i < ys.elements(); ++i) left += both[0].at(i) * ys.at(i);
  for (std::int64_t i = 0; i < xs.elements(); ++i) right += both[1].at(i) * xs.at(i);
  EXPECT_NEAR(left, right, 1e-4 * (1 + std::abs(left)));
}

TEST(Layers, NormalisationsStartAsPlainStatistics) {
  Module root;
  const GroupNorm group(root, "group", 2, 4, 0);
  const LayerNorm layer(root, "layer", 2, 0);
  Tape tape;
  const Value x = tape.constant(floats({1, 1, 1, 4}, {1, 3, -5, 5}));
  expect_near(run_once(tape, {group(x)})[0], {-1, 1, -1, 1}, 1e-6);
  Tape rows;
  const Value y = rows.constant(floats({2, 2}, {1, 3, 7, 5}));
  expect_near(run_once(rows, {layer(y)})[0], {-1, 1, 1, -1}, 1e-6);
  expect_error(ErrorKind::attribute, {"5 channels", "2 groups"}, [&] { GroupNorm(root, "odd", 2, 5); });
}

TEST(Layers, EmbeddingLooksUpItsRows) {
  Module root(2);
  const Embedding embedding(root, "table", 4, 3);
  Tape tape;
  const Value rows = embedding(tape.constant(Tensor::of<std::int32_t>({2}, {3, 1})));
  const Tensor table = root.find("table.weight").value();
  expect_near(run_once(tape, {rows})[0],
              {table.at(9), table.at(10), table.at(11), table.at(3), table.at(4), table.at(5)}, 0);
}

TEST(Layers, AResidualBlockOfZeroWeightsIsTheIdentity) {
  Module root(2);
  const ResidualBlock block(root, "res", 3, 2);
  for (Variable* v : root.parameters()) v->set(Tensor(v->type()));
  const Tensor input = normal_init({1, 4, 4, 3}, 0, 1, 1, "x");
  Tape tape;
  expect_same_bits(run_once(tape, {block(tape.constant(input))})[0], input);
  EXPECT_EQ(root.find("res.conv1.weight").type().shape, Shape({3, 3, 3, 2}));
  EXPECT_EQ(root.find("res.conv2.weight").type().shape, Shape({1, 1, 2, 3}));
}

TEST(Layers, AWrongShapeIsReportedAtTheUsersLineWithScopeAndVariable) {
  Module root(2);
  const Conv2d conv(root, "conv", 3, 2, 3);
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {1, 8, 8, 5}});
  const int line = __LINE__ + 1;
  expect_error(ErrorKind::shape, {"5", "3", "conv.weight", "module_test.cc:" + std::to_string(line)}, [&] { conv(x); });
}

TEST(Schedules, WarmUpThenCosine) {
  const Schedule s{.peak = 1, .warmup = 4, .total = 12, .floor = 0.2};
  EXPECT_DOUBLE_EQ(learning_rate(s, 0), 0.25);
  EXPECT_DOUBLE_EQ(learning_rate(s, 3), 1);
  EXPECT_DOUBLE_EQ(learning_rate(s, 4), 1);
  EXPECT_NEAR(learning_rate(s, 8), 0.6, 1e-12);
  EXPECT_NEAR(learning_rate(s, 12), 0.2, 1e-12);
  EXPECT_NEAR(learning_rate(s, 1000), 0.2, 1e-12);
  EXPECT_DOUBLE_EQ(learning_rate({.peak = 0.5}, 100000), 0.5);
  expect_error(ErrorKind::usage, {"warm-up of 5"}, [] { learning_rate({.peak = 1, .warmup = 5, .total = 5}, 0); });
}

}  // namespace
}  // namespace sg
