// What a product takes along at its end on the cpu backend: bias, skip, relu; when it does, that it gives the bits of
// the steps one by one, and that it writes over nothing that is needed.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "models/layers.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/matmul.h"
#include "ops/op_ids.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/support/expect.h"

namespace sg {
namespace {

using test::count_ops;

Tensor random_tensor(std::mt19937& rng, Shape shape) {
  Tensor t({DType::f32, shape});
  std::normal_distribution<float> normal;
  for (float& v : t.span<float>()) v = normal(rng);
  return t;
}

// Instructions of that op with that many operands.
int count_with(const Tape& tape, OpId op, std::size_t operands) {
  int n = 0;
  for (const Instr& instr : tape.instrs()) n += instr.op == op && instr.inputs.size() == operands;
  return n;
}

class PostOps : public testing::Test {
 protected:
  ~PostOps() override {
    set_winograd(winograd_);
    set_threads(threads_);
  }

  Value input(Shape shape) {
    const Value v = tape_.input("x" + std::to_string(feeds_.size()), {DType::f32, shape});
    feeds_.emplace_back(v, random_tensor(rng_, shape));
    return v;
  }
  Program compiled(const std::vector<Value>& fetches, CompileOptions options = {}) {
    Program program = compile(tape_, fetches, cpu_backend(), options);
    for (const auto& [v, t] : feeds_) program.feed(v, t);
    return program;
  }
  static std::vector<Tensor> results(Program& program, const std::vector<Value>& fetches) {
    program.run();
    program.run();  // what was written over is made again
    std::vector<Tensor> out;
    for (const Value v : fetches) out.push_back(program.fetch(v));
    return out;
  }
  // Runs with and without fusion, and with buffers of their own; returns the fused program's.
  Program same_bits_fused(const std::vector<Value>& fetches) {
    Program fused = compiled(fetches), plain = compiled(fetches, {.fuse = false}),
            guarded = compiled(fetches, {.guard = true});
    const auto a = results(fused, fetches), b = results(plain, fetches), c = results(guarded, fetches);
    // Kernels for fewer registers add the skip before the bias: the last digit may differ.
    const bool exact = test::contains(fused.explain(), "brg") || test::contains(fused.explain(), "winograd");
    for (std::size_t i = 0; i < a.size(); ++i) {
      EXPECT_TRUE(test::same_bits(a[i], c[i])) << "guarded, result " << i;
      if (exact) {
        EXPECT_TRUE(test::same_bits(a[i], b[i])) << "result " << i;
      } else {
        for (std::int64_t k = 0; k < a[i].elements(); ++k)
          EXPECT_NEAR(a[i].at(k), b[i].at(k), 1e-5 * (1 + std::abs(b[i].at(k)))) << "result " << i << " at " << k;
      }
    }
    return fused;
  }

  // h + (conv(relu(h), w) + b), h = relu of something, so that it may be written over.
  struct Block {
    Value h, sum;
  };
  Block block(std::int64_t kernel) {
    const Value h = input({2, 6, 6, 32}) * 1.5;
    return {h, end_of(h, relu(h), kernel)};
  }
  Value end_of(Value skip, Value x, std::int64_t kernel) {
    const std::int64_t channels = skip.shape()[3];
    return skip + (conv2d(x, input({kernel, kernel, x.shape()[3], channels}), ConvOptions::square(1, kernel / 2)) +
                   input({channels}));
  }

  const WinogradUse winograd_ = winograd_use();
  const int threads_ = threads();
  std::mt19937 rng_{5};
  Tape tape_;
  std::vector<std::pair<Value, Tensor>> feeds_;
};

TEST_F(PostOps, AConvolutionTakesTheSkipAlong) {
  for (const WinogradUse use : {WinogradUse::never, WinogradUse::always}) {
    set_winograd(use);
    const Value sum = block(3).sum;
    const Program program = same_bits_fused({sum});
    EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 4), 1);
    EXPECT_EQ(count_ops(program.compiled_tape(), "add"), 0);
    EXPECT_EQ(program.explain().find("copy of the skip"), std::string::npos) << program.explain();
    EXPECT_EQ(test::contains(program.explain(), "winograd f4x3"), use == WinogradUse::always);
  }
}

TEST_F(PostOps, ASumWhoseReluIsNeededTooStaysARowProgram) {
  const Value sum = block(1).sum, positive = relu(sum);
  const Program both = same_bits_fused({sum, positive});
  EXPECT_EQ(count_with(both.compiled_tape(), OpId::conv2d_bias, 4), 0);
  const Program only = same_bits_fused({positive});
  EXPECT_EQ(count_with(only.compiled_tape(), OpId::conv2d_bias, 4), 1);
  for (const Instr& instr : only.compiled_tape().instrs())
    if (instr.op == OpId::conv2d_bias) {
      EXPECT_EQ(instr.attrs.i("relu"), 1);
    }
  // A row op that waits for the result of another reader cannot run with the addition.
  const Value again = conv2d(positive, input({1, 1, 32, 32})) * positive;
  EXPECT_EQ(count_with(same_bits_fused({again}).compiled_tape(), OpId::conv2d_bias, 4), 1);
}

TEST_F(PostOps, ASkipThatARowProgramMakesIsAddedThere) {
  const Value x = input({2, 6, 6, 16}), h = abs(input({2, 6, 6, 32}));
  EXPECT_EQ(count_with(same_bits_fused({end_of(h, x, 1)}).compiled_tape(), OpId::conv2d_bias, 4), 0);
  const Value y = abs(input({9, 24})) + (matmul(input({9, 16}), input({16, 24})) + input({24}));
  EXPECT_EQ(count_ops(same_bits_fused({y}).compiled_tape(), "matmul_bias"), 0);
}

TEST_F(PostOps, ASkipThatIsNeededLaterIsNotWrittenOver) {
  const auto [h, sum] = block(1);
  const std::vector<std::vector<Value>> needs{
      {sum, h},                           // fetched
      {sum, reshape(h, {2, 36, 32})},     // under another name
      {concat({sum, h}, 3)},              // read after the sum
      {sum, transpose(h, {3, 1, 2, 0})},  // read by what need not come before the convolution
  };
  for (const auto& fetches : needs) {
    const Program program = same_bits_fused(fetches);
    EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 4), 0);
    EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 3), 1);
  }
  // Winograd's output transform reads it where it lies.
  set_winograd(WinogradUse::always);
  const auto [g, other] = block(3);
  const Program program = same_bits_fused({concat({other, g}, 3)});
  EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 4), 1);
}

TEST_F(PostOps, TheConvolutionsOwnInputIsNotWrittenOver) {
  const Value x = input({2, 6, 6, 32}) * 1.5;
  for (const WinogradUse use : {WinogradUse::never, WinogradUse::always}) {
    set_winograd(use);
    const Program program = same_bits_fused({end_of(x, x, 3)});
    EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 4), use == WinogradUse::always);
  }
}

TEST_F(PostOps, OneOfTwoConvolutionsTakesTheOther) {
  const Value x = input({2, 6, 6, 16});
  const auto conv = [&] { return conv2d(x, input({1, 1, 16, 32})) + input({32}); };
  const Value shortcut = conv(), y = conv();
  const Program program = same_bits_fused({shortcut + y});
  EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 4), 1);
  EXPECT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 3), 1);
}

TEST_F(PostOps, GroupsAndBf16AddTheSkipByThemselves) {
  const Value h = input({2, 6, 6, 32}) * 1.5;
  ConvOptions groups;
  groups.groups = 2;
  const Value grouped = h + (conv2d(relu(h), input({1, 1, 16, 32}), groups) + input({32}));
  EXPECT_EQ(count_with(same_bits_fused({grouped}).compiled_tape(), OpId::conv2d_bias, 4), 0);
  const auto low = [](Value v) { return cast(v, DType::bf16); };
  const Value k = low(h) * 1.5, y = k + (conv2d(relu(k), low(input({1, 1, 32, 32}))) + low(input({32})));
  const Rewritten fused = cpu_backend().fuse(tape_, std::vector<std::int32_t>{y.id});
  ASSERT_NE(fused.tape, nullptr);
  for (const Instr& instr : fused.tape->instrs())
    if (instr.op == OpId::conv2d_bias && fused.tape->type(instr.outputs[0]).dtype == DType::bf16) {
      EXPECT_EQ(instr.inputs.size(), 3u);
    }
}

TEST_F(PostOps, NaNStaysInSkipAndSum) {
  for (const WinogradUse use : {WinogradUse::never, WinogradUse::always}) {
    set_winograd(use);
    const Value y = relu(block(3).sum);
    Program program = compiled({y});
    ASSERT_EQ(count_with(program.compiled_tape(), OpId::conv2d_bias, 4), 1);
    for (auto& [v, t] : feeds_)
      if (v.shape() == Shape{2, 6, 6, 32}) {
        t.set(0, std::numeric_limits<double>::quiet_NaN());
        program.feed(v, t);
      }
    program.run();
    EXPECT_TRUE(std::isnan(program.fetch(y).at(0)));
    EXPECT_FALSE(std::isnan(program.fetch(y).at(y.shape().elements() - 1)));
  }
}

TEST_F(PostOps, AnyNumberOfThreadsGivesTheSameBits) {
  const Value one = block(1).sum, three = block(3).sum, y = relu(end_of(three, relu(one), 1));
  const Value product = transpose(matmul(reshape(y, {2, 36, 32}), input({32, 48})) + input({48}), {0, 2, 1});
  set_threads(1);
  Program first = compiled({y, product});
  const auto want = results(first, {y, product});
  for (const int n : {2, 3, 8}) {
    set_threads(n);
    Program program = compiled({y, product});
    const auto got = results(program, {y, product});
    for (std::size_t i = 0; i < want.size(); ++i) EXPECT_TRUE(test::same_bits(got[i], want[i])) << n << " threads";
  }
}

// The blocks of a model: what comes out of a training step and out of the forward pass alone.
TEST_F(PostOps, ResidualBlocksOfAModel) {
  Module root(3);
  const ResidualBlock first(root, "first", 32, 16), second(root, "second", 32, 16);
  const Conv2d out(root, "out", 32, 8, 1);
  const Value x = input({2, 6, 6, 32}), y = out(relu(second(first(x * 1.5))));
  const Program forward = same_bits_fused({y});
  EXPECT_EQ(count_with(forward.compiled_tape(), OpId::conv2d_bias, 4), 1) << "of the last block";
  EXPECT_EQ(count_with(forward.compiled_tape(), OpId::conv2d_bias, 3), 4);
  const Program training = same_bits_fused({gradient(sum(y * y), x), y});
  EXPECT_EQ(count_with(training.compiled_tape(), OpId::conv2d_bias, 4), 1);
  EXPECT_EQ(training.explain().find("copy of the skip"), std::string::npos) << training.explain();
}

TEST_F(PostOps, AProductTakesTheBiasWhereNoRowOpReadsTheResult) {
  const Value a = input({2, 9, 16}), w = input({16, 24}), b = input({24});
  const Value y = matmul(a, w) + b;
  {
    const Program program = same_bits_fused({transpose(y, {0, 2, 1})});
    EXPECT_EQ(count_with(program.compiled_tape(), OpId::matmul_bias, 3), 1);
    EXPECT_EQ(count_ops(program.compiled_tape(), "matmul"), 0);
    EXPECT_EQ(count_ops(program.compiled_tape(), "add"), 0);
  }
  EXPECT_EQ(count_with(same_bits_fused({y}).compiled_tape(), OpId::matmul_bias, 3), 1);
  EXPECT_EQ(count_with(same_bits_fused({matmul(y, input({24, 8}))}).compiled_tape(), OpId::matmul_bias, 3), 1);
  for (const Value read_in_rows : {relu(y), reshape(y, {18, 24}) * 2.0})
    EXPECT_EQ(count_ops(same_bits_fused({transpose(y, {0, 2, 1}), read_in_rows}).compiled_tape(), "matmul_bias"), 0);
  const Value bare = matmul(a, w);  // needed by itself
  EXPECT_EQ(count_ops(same_bits_fused({bare, bare + b}).compiled_tape(), "matmul_bias"), 0);
}

TEST_F(PostOps, AProductTakesTheSkipAlong) {
  const Value a = input({2, 9, 16}), h = input({2, 9, 24});
  const Value y = h + (matmul(a, input({16, 24})) + input({24}));
  for (const std::vector<Value>& fetches : {std::vector<Value>{y}, {matmul(y, input({24, 8})), h * 2.0}}) {
    const Program program = same_bits_fused(fetches);
    EXPECT_EQ(count_with(program.compiled_tape(), OpId::matmul_bias, 4), 1);
  }
  EXPECT_EQ(count_ops(same_bits_fused({y * 2.0}).compiled_tape(), "matmul_bias"), 0);
  // A bias under another name is no skip, and a row of another length no bias.
  const Value broad = matmul(a, input({16, 24})) + input({9, 24});
  EXPECT_EQ(count_ops(same_bits_fused({broad}).compiled_tape(), "matmul_bias"), 0);
}

TEST_F(PostOps, AProductInPartsAddsItsBiasByItself) {
  const Value y = matmul(input({4, 5000}), input({5000, 8})) + input({8});
  EXPECT_EQ(count_ops(same_bits_fused({y}).compiled_tape(), "matmul_bias"), 0);
}

TEST_F(PostOps, OperandsThatDoNotFitAreErrors) {
  const std::vector<std::int64_t> ones{1, 1}, none{0, 0, 0, 0};
  const Attrs conv{
      {"stride", ones}, {"pad", none}, {"dilation", ones}, {"groups", std::int64_t{1}}, {"relu", std::int64_t{0}}};
  const Attrs product{{"transpose_a", std::int64_t{0}}, {"transpose_b", std::int64_t{0}}};
  const Value x = input({1, 4, 4, 3}), w = input({1, 1, 3, 5}), b = input({5}), skip = input({1, 4, 4, 3});
  SG_EXPECT_ERROR(shape, "conv2d_bias: skip is [1,4,4,3], the result is [1,4,4,5]",
                  tape_.emit1(OpId::conv2d_bias, {x, w, b, skip}, conv));
  SG_EXPECT_ERROR(dtype, "skip is f64", tape_.emit1(OpId::conv2d_bias, {x, w, b, cast(skip, DType::f64)}, conv));
  SG_EXPECT_ERROR(usage, "got 2 operands", tape_.emit1(OpId::conv2d_bias, {x, w}, conv));
  SG_EXPECT_ERROR(usage, "got 5 operands", tape_.emit1(OpId::conv2d_bias, {x, w, b, x, x}, conv));
  const Value m = input({2, 3}), n = input({3, 5}), c = input({3});
  SG_EXPECT_ERROR(shape, "matmul_bias: bias is [3], the product has 5 columns",
                  tape_.emit1(OpId::matmul_bias, {m, n, c}, product));
  SG_EXPECT_ERROR(shape, "matmul_bias: skip is [2,3], the result is [2,5]",
                  tape_.emit1(OpId::matmul_bias, {m, n, b, m}, product));
  SG_EXPECT_ERROR(shape, "matmul_bias: inner extents disagree", tape_.emit1(OpId::matmul_bias, {n, m, b}, product));
  SG_EXPECT_ERROR(usage, "got 2 operands", tape_.emit1(OpId::matmul_bias, {m, n}, product));
}

}  // namespace
}  // namespace sg
