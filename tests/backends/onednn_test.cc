// The oneDNN half of the cpu backend: what fuse() may swallow, packed weights, and convolutions with every option
// against the oracle.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "backends/backends.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/op_ids.h"
#include "tests/support/expect.h"

namespace sg {
namespace {

Tensor random_tensor(std::mt19937& rng, Shape shape) {
  Tensor t({DType::f32, shape});
  std::normal_distribution<float> normal;
  for (float& v : t.span<float>()) v = normal(rng);
  return t;
}

// Largest difference over 1 + |b|, in units of f32 rounding.
double distance(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.type(), b.type());
  double worst = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i)
    worst = std::max(worst, std::abs(a.at(i) - b.at(i)) / (1 + std::abs(b.at(i))));
  return worst / std::numeric_limits<float>::epsilon();
}

class ConvBias : public testing::Test {
 protected:
  Program compiled(std::initializer_list<Value> fetches) {
    Program program = compile(tape_, fetches, cpu_backend());
    program.feed(x_, images_);
    return program;
  }

  std::mt19937 rng_{5};
  Tensor images_ = random_tensor(rng_, {2, 6, 6, 3});
  Variable weight_{"weight", random_tensor(rng_, {3, 3, 3, 8})}, bias_{"bias", random_tensor(rng_, {8})};
  Tape tape_;
  Value x_ = tape_.input("x", images_.type()), w_ = tape_.read(weight_), b_ = tape_.read(bias_);
};

TEST_F(ConvBias, TakesBiasAndReluAlong) {
  const Value y = relu(b_ + conv2d(x_, w_));
  const Program program = compiled({y});
  EXPECT_EQ(test::count_ops(program.compiled_tape(), "conv2d_bias"), 1);
  EXPECT_EQ(test::count_ops(program.compiled_tape(), "conv2d"), 0);
  EXPECT_EQ(test::count_ops(program.compiled_tape(), "relu"), 0);
}

TEST_F(ConvBias, LeavesWhatOthersUse) {
  const Value y = conv2d(x_, w_), sum = y + b_;
  {
    const Program program = compiled({y, sum});  // y is fetched
    EXPECT_EQ(test::count_ops(program.compiled_tape(), "conv2d_bias"), 0);
  }
  const Value positive = relu(sum), product = positive * sum;  // sum has two users: only the bias is taken
  const Program program = compiled({product});
  EXPECT_EQ(test::count_ops(program.compiled_tape(), "conv2d_bias"), 1);
  for (const Instr& instr : program.compiled_tape().instrs()) {
    if (instr.op == OpId::conv2d_bias) {
      EXPECT_EQ(instr.attrs.i("relu"), 0);
    }
  }
}

TEST_F(ConvBias, KeepsNaN) {
  images_.set(0, std::numeric_limits<double>::quiet_NaN());
  const Value y = relu(conv2d(x_, w_) + b_);
  Program program = compiled({y});
  program.run();
  const Tensor out = program.fetch(y);
  for (int o = 0; o < 8; ++o) EXPECT_TRUE(std::isnan(out.at(o))) << "channel " << o;
  EXPECT_FALSE(std::isnan(out.at(out.elements() - 1)));
}

TEST_F(ConvBias, PacksAWeightAgainOnlyForAnotherValue) {
  const Value y = conv2d(x_, w_), again = conv2d(x_ * 2.0, w_);
  Program program = compiled({y, again});
  EXPECT_EQ(program.stats().packs, 1u);  // one layout, shared by both
  program.run();
  const Tensor before = program.fetch(y);
  program.run();
  EXPECT_EQ(distance(program.fetch(y), before), 0);
  Tensor doubled = weight_.value();
  for (float& v : doubled.span<float>()) v *= 2;
  weight_.set(doubled);
  program.run();
  for (std::int64_t i = 0; i < before.elements(); ++i) EXPECT_EQ(program.fetch(y).at(i), 2 * before.at(i));
}

TEST_F(ConvBias, RunsAsCompiledWhateverThreadsAreSetLater) {
  const int saved = threads();
  set_threads(1);
  const Value y = conv2d(x_, w_), g = conv2d_weight_grad(x_, y, {3, 3});
  Program program = compiled({g});
  program.run();
  const Tensor one = program.fetch(g);
  set_threads(5);
  program.run();
  EXPECT_EQ(threads(), 5);
  EXPECT_EQ(distance(program.fetch(g), one), 0);
  set_threads(saved);
}

TEST(OnednnConv, AgreesWithTheOracleForEveryOption) {
  std::mt19937 rng(11);
  const auto pick = [&](std::int64_t lo, std::int64_t hi) {
    return lo + static_cast<std::int64_t>(rng()) % (hi - lo + 1);
  };
  constexpr std::int64_t kChannels[] = {1, 2, 3, 5, 8, 16, 17};
  int checked = 0;
  for (int i = 0; i < 50; ++i) {
    ConvOptions o;
    o.groups = pick(0, 2) == 0 ? pick(2, 4) : 1;
    o.stride = {pick(1, 4), pick(1, 3)};
    o.pad = {pick(0, 3), pick(0, 3), pick(0, 3), pick(0, 3)};
    o.dilation = {pick(1, 3), pick(1, 3)};
    const std::int64_t h = pick(4, 12), w = pick(4, 12), kh = pick(1, 4), kw = pick(1, 4);
    const std::int64_t cg = kChannels[pick(0, 6)], outputs = o.groups * kChannels[pick(0, 6)];
    if (h + o.pad[0] + o.pad[2] <= o.dilation[0] * (kh - 1) || w + o.pad[1] + o.pad[3] <= o.dilation[1] * (kw - 1))
      continue;
    ++checked;
    Tape tape;
    const Value x = tape.constant(random_tensor(rng, {2, h, w, cg * o.groups}));
    const Value weight = tape.constant(random_tensor(rng, {kh, kw, cg, outputs}));
    const Value small = tape.constant(random_tensor(rng, conv2d(x, weight, o).shape()));
    const std::initializer_list<Value> all{conv2d(x, weight, o), conv2d_transpose(small, weight, o, {h, w}),
                                           conv2d_weight_grad(x, small, {kh, kw}, o)};
    Program oracle = compile(tape, all, reference_backend(), {.optimize = false});
    Program program = compile(tape, all, cpu_backend(), {.optimize = false, .strict = true});
    oracle.run();
    program.run();
    for (const Value v : all) {
      EXPECT_LT(distance(program.fetch(v), oracle.fetch(v)), 200)
          << to_string(v.type()) << " x " << to_string(x.shape()) << " weight " << to_string(weight.shape())
          << " stride " << o.stride[0] << "," << o.stride[1] << " pad " << o.pad[0] << "," << o.pad[1] << ","
          << o.pad[2] << "," << o.pad[3] << " dilation " << o.dilation[0] << "," << o.dilation[1] << " groups "
          << o.groups;
    }
  }
  EXPECT_GT(checked, 25);
}

}  // namespace
}  // namespace sg
