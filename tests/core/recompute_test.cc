// Recomputation: gradients bit-equal with and without, less memory, the same random numbers; what it leaves alone.
#include "core/recompute.h"

#include <gtest/gtest.h>

#include <deque>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

using Mode = RecomputeOptions::Mode;

constexpr std::int64_t kRows = 128, kWidth = 32;

Tensor drawn(Shape shape, double scale, std::uint64_t seed) {
  Rng rng(seed);
  return normal_reals(shape, scale)(rng);
}

// A training step of `depth` layers in scopes "l0".., h + tanh(h w + noise) or a convolution with relu, by plain
// descent.
struct Stack {
  enum Kind { mlp, conv } kind;
  std::deque<Variable> weights;
  Variable random{"random", Tensor::of<std::int32_t>({2}, {7, 0})};
  Tape tape;
  Value x, loss;

  Stack(Kind k, int depth) : kind(k) {
    x = tape.input("x", kind == mlp ? TensorType{DType::f32, {kRows, kWidth}} : TensorType{DType::f32, {2, 12, 12, 8}});
    Value h = x;
    for (int i = 0; i < depth; ++i) {
      const Scope scope(tape, fmt::format("l{}", i));
      const auto seed = static_cast<std::uint64_t>(i + 2);
      const Shape shape = kind == mlp ? Shape{kWidth, kWidth} : Shape{3, 3, 8, 8};
      Variable& w = weights.emplace_back(fmt::format("w{}", i), drawn(shape, 0.1, seed));
      if (kind == mlp) {
        const Value noise = 0.1 * normal(tape.read(random), h.shape());
        h = h + tanh(matmul(square(h + noise), tape.read(w)));
      } else {
        h = relu(sigmoid(conv2d(h, tape.read(w), ConvOptions::square(1, 1))) - 0.3);
      }
    }
    loss = mean(square(h - 1));
    std::vector<Value> wrt;
    for (Variable& w : weights) wrt.push_back(tape.read(w));
    const std::vector<Value> grads = gradients(loss, wrt);
    for (std::size_t i = 0; i < weights.size(); ++i) tape.assign(weights[i], wrt[i] - 0.05 * grads[i]);
    advance_random_state(tape, random);
  }
  Program compiled(Backend& on, CompileOptions options) {
    Program p = compile(tape, {loss}, on, options);
    p.feed(x, drawn(x.shape(), 1, 1));
    return p;
  }
};

class Recompute : public testing::TestWithParam<std::string> {
 protected:
  Backend& on() const { return backend(GetParam()); }
};
INSTANTIATE_TEST_SUITE_P(, Recompute, testing::Values("reference", "cpu"), [](const auto& info) { return info.param; });

void expect_same_training(Stack& a, Stack& b, Backend& on, CompileOptions plain, CompileOptions again, double most) {
  Program p = a.compiled(on, plain), q = b.compiled(on, again);
  EXPECT_LT(static_cast<double>(q.stats().lower_bound_bytes), most * static_cast<double>(p.stats().lower_bound_bytes))
      << q.explain();
  SG_EXPECT_CONTAINS(q.explain(), "again; largest live set");
  for (int step = 0; step < 3; ++step) {
    p.run();
    q.run();
    ASSERT_EQ(p.fetch_scalar(a.loss), q.fetch_scalar(b.loss)) << "step " << step;
  }
  for (std::size_t i = 0; i < a.weights.size(); ++i)
    EXPECT_TRUE(same_bits(a.weights[i].value(), b.weights[i].value())) << a.weights[i].name();
}

TEST_P(Recompute, OfLayersByScopeGivesTheSameBitsInLessMemory) {
  for (const Stack::Kind kind : {Stack::mlp, Stack::conv})
    for (const bool fuse : {false, true}) {
      Stack a(kind, 12), b(kind, 12);
      CompileOptions plain{.fuse = fuse}, again = plain;
      again.recompute.mode = Mode::scopes;
      expect_same_training(a, b, on(), plain, again, 0.85);
    }
}

TEST_P(Recompute, ToABudgetGivesTheSameBitsWithinIt) {
  for (const Stack::Kind kind : {Stack::mlp, Stack::conv}) {
    Stack a(kind, 16), b(kind, 16);
    CompileOptions again;
    again.recompute.mode = Mode::budget;
    const std::size_t all = a.compiled(on(), {}).stats().lower_bound_bytes;
    again.recompute.budget_bytes = all * 3 / 5;
    EXPECT_LE(b.compiled(on(), again).stats().lower_bound_bytes, again.recompute.budget_bytes);
    expect_same_training(a, b, on(), {}, again, 0.61);
  }
}

TEST_P(Recompute, OutOfReachSaysSo) {
  Stack a(Stack::mlp, 6);
  CompileOptions again;
  again.recompute = {.mode = Mode::budget, .budget_bytes = 1};
  SG_EXPECT_CONTAINS(a.compiled(on(), again).explain(), "out of reach");
}

TEST_P(Recompute, LeavesATapeWithoutGradientsAlone) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {64}}), y = tanh(exp(x));
  CompileOptions again;
  again.recompute.mode = Mode::scopes;
  SG_EXPECT_CONTAINS(compile(tape, {y}, on(), again).explain(), "recompute: nothing");
}

// One segment of many layers would otherwise be there in full when its first gradient is needed.
TEST(RecomputePass, KeepsWhatSumsOverRowsAreTakenOf) {
  Tape tape;
  std::deque<Variable> weights;
  const Value x = tape.input("x", {DType::f32, {2, 24, 24, 8}});
  Variable gamma("gamma", Tensor::full({DType::f32, {8}}, 1)), beta("beta", Tensor::full({DType::f32, {8}}, 0));
  Value h = x;
  std::vector<Value> wrt;
  {
    const Scope scope(tape, "all");
    for (int i = 0; i < 8; ++i) {
      wrt.push_back(tape.read(weights.emplace_back("w", drawn({3, 3, 8, 8}, 0.1, static_cast<std::uint64_t>(i)))));
      h = conv2d(silu(group_norm(h, tape.read(gamma), tape.read(beta), 2)), wrt.back(), ConvOptions::square(1, 1));
    }
  }
  std::vector<Value> fetches = gradients(mean(square(h - 1)), wrt);
  CompileOptions again;
  again.recompute.mode = Mode::scopes;
  const Program plain = compile(tape, fetches, cpu_backend(), {}), p = compile(tape, fetches, cpu_backend(), again);
  EXPECT_LT(static_cast<double>(p.stats().lower_bound_bytes),
            0.55 * static_cast<double>(plain.stats().lower_bound_bytes))
      << p.explain();
}

// What recomputation is for would be lost if equal instructions were merged again.
TEST(RecomputePass, SurvivesCommonSubexpressions) {
  Stack a(Stack::mlp, 6);
  CompileOptions again{.fuse = false};
  again.recompute.mode = Mode::scopes;
  const Program p = a.compiled(cpu_backend(), again), plain = a.compiled(cpu_backend(), {.fuse = false});
  const Rewritten merged = simplify(p.compiled_tape());
  const auto count = [](const Tape& t) { return t.instrs().size(); };
  EXPECT_GT(count(*merged.tape), count(plain.compiled_tape()) + 5);
}

}  // namespace
}  // namespace sg::test
