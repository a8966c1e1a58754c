// The oracle against closed forms and small cases worked out by hand. Everything runs unfolded and unfused, so that the
// kernels themselves answer.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "backends/backends.h"
#include "core/philox.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/index.h"
#include "ops/matmul.h"
#include "ops/norm.h"
#include "ops/op_ids.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"

namespace sg {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

class Reference : public testing::Test {
 protected:
  Value real(Shape shape, std::vector<double> values) {
    return tape_.constant(Tensor::of<double>(shape, std::span<const double>(values)));
  }
  Value ints(Shape shape, std::vector<std::int32_t> values) {
    return tape_.constant(Tensor::of<std::int32_t>(shape, std::span<const std::int32_t>(values)));
  }
  // 1, 2, 3, ... times scale, bent so that no two sums of different terms agree by chance.
  Value ramp(Shape shape, double scale) {
    std::vector<double> values(static_cast<std::size_t>(shape.elements()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = std::sin(scale * static_cast<double>(i + 1));
    return real(shape, values);
  }
  Tensor run(Value v) {
    CompileOptions options;
    options.fuse = options.optimize = options.exact_forward = false;
    return eval(v, reference_backend(), options);
  }
  void expect(Value v, Shape shape, std::vector<double> values, double tolerance = 0) {
    const Tensor t = run(v);
    ASSERT_EQ(t.shape(), shape);
    ASSERT_EQ(static_cast<std::size_t>(t.elements()), values.size());
    for (std::size_t i = 0; i < values.size(); ++i) {
      const double got = t.at(static_cast<std::int64_t>(i));
      if (std::isnan(values[i])) {
        EXPECT_TRUE(std::isnan(got)) << "element " << i << " is " << got;
      } else if (std::isinf(values[i])) {
        EXPECT_EQ(got, values[i]) << "element " << i;
      } else {
        EXPECT_NEAR(got, values[i], tolerance) << "element " << i;
      }
    }
  }
  void expect_error(Value v, std::string_view what) {
    try {
      run(v);
      ADD_FAILURE() << "no error; expected: " << what;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::attribute);
      EXPECT_NE(e.message().find(what), std::string::npos) << e.message();
      EXPECT_NE(e.message().find("reference_test.cc"), std::string::npos) << e.message();
    }
  }
  double scalar(Value v) { return run(v).item(); }

  Tape tape_;
};

TEST_F(Reference, LowersEveryOpButLeavesAndAliases) {
  std::size_t without = 0;
  for (std::size_t i = 0; i < op_table().size(); ++i) {
    Instr instr;
    instr.op = static_cast<OpId>(i);
    const Role role = op_table()[i].role;
    const bool own = role == Role::input || role == Role::constant || role == Role::read || role == Role::assign ||
                     role == Role::alias || role == Role::after || role == Role::stop_gradient || role == Role::region ||
                     role == Role::bundle;
    EXPECT_EQ(reference_backend().supports(tape_, instr), !own) << op_table()[i].name;
    without += own ? 1 : 0;
  }
  EXPECT_EQ(without, 9u);
}

TEST_F(Reference, StoresDoublesAndConverts) {
  Backend& b = reference_backend();
  EXPECT_EQ(b.storage(DType::f32), DType::f64);
  EXPECT_EQ(b.storage(DType::i32), DType::i32);
  const Tensor in = Tensor::of<float>({3}, {0.1f, -2, 3});
  Tensor out(in.type());
  auto* p = static_cast<double*>(b.allocate(3 * sizeof(double)));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(p) % 64, 0u);
  b.upload(p, in.data(), in.type());
  EXPECT_EQ(p[0], static_cast<double>(0.1f));
  p[1] = 0.1;
  b.download(out.data(), p, out.type());
  EXPECT_EQ(out.span<float>()[1], 0.1f);
  b.release(p);
}

// 1 + 2^-40 is 1 in float: that the difference survives shows that f32 is computed in double.
TEST_F(Reference, FloatsAreComputedInDouble) {
  const Value one = tape_.constant(1.0, {DType::f32, {2}});
  EXPECT_EQ(run((one + 0x1p-40) - one).at(1), 0x1p-40);
}

TEST_F(Reference, ElementwiseBroadcasts) {
  const Value a = real({2, 1, 3}, {1, 2, 3, 4, 5, 6}), b = real({2, 1}, {10, 20});
  expect(a + b, {2, 2, 3}, {11, 12, 13, 21, 22, 23, 14, 15, 16, 24, 25, 26});
  expect(b - a, {2, 2, 3}, {9, 8, 7, 19, 18, 17, 6, 5, 4, 16, 15, 14});
  expect(where(less(a, 3.5), a, 0.0), {2, 1, 3}, {1, 2, 3, 0, 0, 0});
  expect(cast(real({4}, {-1.7, 1.7, 3e9, kNaN}), DType::i32), {4}, {-1, 1, 2147483647, 0});
}

TEST_F(Reference, Reductions) {
  const Value x = real({2, 3, 2}, {1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6});
  expect(sum(x), {}, {0});
  expect(sum(x, {1}), {2, 2}, {9, 12, -9, -12});
  expect(sum(x, {0, 2}, true), {1, 3, 1}, {0, 0, 0});
  expect(sum(x, {2}), {2, 3}, {3, 7, 11, -3, -7, -11});
  expect(max(x, {0}), {3, 2}, {1, 2, 3, 4, 5, 6});
  expect(min(x, {1, 2}), {2}, {1, -6});
  expect(sum(ints({3}, {1, 2, 3})), {}, {6});
  expect(max(real({2, 2}, {1, kNaN, 2, 3}), {1}), {2}, {kNaN, 3});
  expect(min(real({2, 2}, {kNaN, 1, 2, 3}), {1}), {2}, {kNaN, 2});
}

TEST_F(Reference, ArgReductionsTakeTheLowestIndexAndAvoidNaN) {
  const Value x = real({3, 3}, {2, 1, 1, kNaN, 5, 4, kNaN, kNaN, kNaN});
  expect(argmin(x), {3}, {1, 2, 0});
  expect(argmax(x), {3}, {0, 1, 0});
  expect(argmin(x, 0), {3}, {0, 0, 0});
  expect(argmax(x, 0), {3}, {0, 1, 1});
  expect(argmin(real({2}, {kInf, kInf})), {}, {0});
  expect(argmax(ints({4}, {1, 7, 7, 2})), {}, {1});
}

TEST_F(Reference, QuantilesInterpolate) {
  const Value x = real({2, 2}, {4, 1, 3, 2});
  expect(quantile(x, {0, 0.5, 1, 0.25, 0.1}), {5}, {1, 2.5, 4, 1.75, 1.3}, 1e-15);
  expect(quantile(real({3}, {1, kNaN, 2}), {0, 1}), {2}, {kNaN, kNaN});
  expect(quantile(real({1}, {7}), {0.3}), {1}, {7});
}

TEST_F(Reference, ShapeOps) {
  const Value x = real({2, 3}, {1, 2, 3, 4, 5, 6});
  expect(transpose(x, {1, 0}), {3, 2}, {1, 4, 2, 5, 3, 6});
  expect(transpose(real({2, 1, 3}, {1, 2, 3, 4, 5, 6}), {2, 0, 1}), {3, 2, 1}, {1, 4, 2, 5, 3, 6});
  expect(broadcast(real({3}, {1, 2, 3}), {2, 3}), {2, 3}, {1, 2, 3, 1, 2, 3});
  expect(broadcast(real({2, 1}, {1, 2}), {2, 3}), {2, 3}, {1, 1, 1, 2, 2, 2});
  expect(slice(x, {0, 0}, {2, 3}, {1, 2}), {2, 2}, {1, 3, 4, 6});
  expect(slice(x, {1, 1}, {2, 3}), {1, 2}, {5, 6});
  expect(concat({x, real({2, 1}, {7, 8})}, 1), {2, 4}, {1, 2, 3, 7, 4, 5, 6, 8});
  expect(concat({x, real({1, 3}, {7, 8, 9})}, 0), {3, 3}, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  expect(pad(x, {1, 0}, {0, 2}, -1), {3, 5}, {-1, -1, -1, -1, -1, 1, 2, 3, -1, -1, 4, 5, 6, -1, -1});
  const Value spread = tape_.emit1(OpId::pad, {real({3}, {1, 2, 3})},
                                   Attrs{{"before", std::vector<std::int64_t>{1}},
                                         {"after", std::vector<std::int64_t>{0}},
                                         {"interior", std::vector<std::int64_t>{2}},
                                         {"value", 0.5}});
  expect(spread, {8}, {0.5, 1, 0.5, 0.5, 2, 0.5, 0.5, 3});
}

TEST_F(Reference, MatmulInEveryOrientation) {
  const Value a = real({2, 3}, {1, 2, 3, 4, 5, 6}), b = real({3, 2}, {7, 8, 9, 10, 11, 12});
  const std::vector<double> ab{58, 64, 139, 154};
  expect(matmul(a, b), {2, 2}, ab);
  expect(matmul(transpose(a, {1, 0}), b, true, false), {2, 2}, ab);
  expect(matmul(a, transpose(b, {1, 0}), false, true), {2, 2}, ab);
  expect(matmul(transpose(a, {1, 0}), transpose(b, {1, 0}), true, true), {2, 2}, ab);
  expect(matmul(real({2, 1, 2}, {1, 2, 3, 4}), real({2, 2, 1}, {5, 6, 7, 8})), {2, 1, 1}, {17, 53});
}

TEST_F(Reference, ConvolutionByHand) {
  const Value x = real({1, 3, 3, 1}, {1, 2, 3, 4, 5, 6, 7, 8, 9}), w = real({2, 2, 1, 1}, {1, 10, 100, 1000});
  expect(conv2d(x, w), {1, 2, 2, 1}, {5421, 6532, 8754, 9865});
  ConvOptions padded = ConvOptions::square(2, 0);
  padded.pad = {1, 1, 0, 0};
  expect(conv2d(x, w, padded), {1, 2, 2, 1}, {1000, 3200, 7040, 9865});
  ConvOptions dilated;
  dilated.dilation = {2, 2};
  expect(conv2d(x, w, dilated), {1, 1, 1, 1}, {1 + 30 + 700 + 9000});
}

// Two input and four output channels in two groups equal two convolutions of their own.
TEST_F(Reference, GroupsAreSeparateConvolutions) {
  ConvOptions two;
  two.groups = 2;
  const Value x = ramp({1, 4, 4, 2}, 0.7), w = ramp({3, 3, 1, 4}, 0.3);
  const Value parts = concat(
      {conv2d(slice_axis(x, 3, 0, 1), slice_axis(w, 3, 0, 2)), conv2d(slice_axis(x, 3, 1, 2), slice_axis(w, 3, 2, 4))},
      3);
  EXPECT_LT(scalar(max(abs(conv2d(x, w, two) - parts))), 1e-15);
}

// <y, conv(x, w)> = <x, conv_transpose(y, w)> = <w, weight_grad(x, y)>, with all options at odds with each other.
TEST_F(Reference, ConvolutionsAreAdjoint) {
  ConvOptions o{{2, 3}, {1, 2, 0, 1}, {2, 1}, 2};
  const Value x = ramp({2, 7, 8, 4}, 0.9), w = ramp({3, 2, 2, 6}, 0.4);
  const Value conv = conv2d(x, w, o);
  const Value y = ramp(conv.shape(), 1.3);
  const double expected = scalar(sum(y * conv));
  EXPECT_GT(std::abs(expected), 1e-3);
  EXPECT_NEAR(scalar(sum(x * conv2d_transpose(y, w, o, {7, 8}))), expected, 1e-12);
  EXPECT_NEAR(scalar(sum(w * conv2d_weight_grad(x, y, {3, 2}, o))), expected, 1e-12);
}

TEST_F(Reference, ConvolutionWithBiasAndRelu) {
  const Value x = ramp({2, 4, 4, 2}, 0.7), w = ramp({3, 3, 2, 3}, 0.3), b = real({3}, {0.5, -0.5, 0});
  for (const std::int64_t with_relu : {0, 1}) {
    const std::vector<std::int64_t> ones{1, 1}, none{0, 0, 0, 0};
    const Value fused = tape_.emit1(
        OpId::conv2d_bias, {x, w, b},
        Attrs{{"stride", ones}, {"pad", none}, {"dilation", ones}, {"groups", std::int64_t{1}}, {"relu", with_relu}});
    const Value plain = conv2d(x, w) + b;
    EXPECT_LT(scalar(max(abs(fused - (with_relu != 0 ? relu(plain) : plain)))), 1e-14);
  }
}

TEST_F(Reference, Pooling) {
  expect(upsample(real({1, 1, 2, 2}, {1, 2, 3, 4}), 2, 3), {1, 2, 6, 2},
         {1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4, 1, 2, 1, 2, 1, 2, 3, 4, 3, 4, 3, 4});
  const Value x = real({1, 2, 3, 1}, {1, 2, 3, 4, 5, 6});
  expect(avg_pool(x, {2, 2}, {1, 1}), {1, 1, 2, 1}, {3, 4});
  expect(avg_pool(x, {2, 2}, {2, 2}, {0, 1, 0, 0}), {1, 1, 2, 1}, {1.25, 4});
}

TEST_F(Reference, RowsByIndex) {
  const Value table = real({3, 2}, {1, 2, 3, 4, 5, 6});
  expect(gather_rows(table, ints({2, 2}, {2, 0, 0, 1})), {2, 2, 2}, {5, 6, 1, 2, 1, 2, 3, 4});
  expect(scatter_add_rows(ints({3}, {1, 1, 0}), table, 4), {4, 2}, {5, 6, 4, 6, 0, 0, 0, 0});
  expect(one_hot(ints({3}, {1, -1, 2}), 3), {3, 3}, {0, 1, 0, 0, 0, 0, 0, 0, 1});
  expect(histogram(ints({4}, {0, 2, 2, 1}), 4), {4}, {1, 1, 2, 0});
}

TEST_F(Reference, IndexOutOfRangeIsTheUsersError) {
  const Value table = real({3, 2}, {1, 2, 3, 4, 5, 6});
  expect_error(gather_rows(table, ints({2}, {0, 3})), "gather_rows: index 3 at position 1 is out of range [0, 3)");
  expect_error(scatter_add_rows(ints({3}, {-1, 0, 0}), table, 2),
               "scatter_add_rows: index -1 at position 0 is out of range [0, 2)");
  expect_error(histogram(ints({1}, {9}), 4), "histogram: index 9 at position 0 is out of range [0, 4)");
  expect_error(cross_entropy(table, ints({3}, {0, 1, 2})),
               "cross_entropy: index 2 at position 2 is out of range [0, 2)");
}

TEST_F(Reference, NearestCode) {
  const Value codes = real({4, 2}, {0, 0, 3, 0, 3, 0, 0, 1});
  expect(nearest_code(real({4, 2}, {1, 0, 2, 0, 1.5, 0, 0.1, 0.6}), codes), {4}, {0, 1, 0, 3});
  // Cosine: the code of zeros counts 0, so it beats codes on the other side; length does not matter.
  expect(nearest_code(real({4, 2}, {9, 8.9, 1, 2, -1, -1, 0, 0}), codes, Metric::cosine), {4}, {1, 3, 0, 0});
  expect(nearest_code(real({1, 2}, {kNaN, 0}), codes), {1}, {0});
  expect(nearest_code(real({1, 1}, {5}), real({3, 1}, {kNaN, 9, 4})), {1}, {2});
}

TEST_F(Reference, SoftmaxFamily) {
  const Value x = real({2, 2}, {0, std::log(3), 1000, 1000 - std::log(4)});
  expect(softmax(x), {2, 2}, {0.25, 0.75, 0.8, 0.2}, 1e-13);
  expect(log_softmax(x), {2, 2}, {std::log(0.25), std::log(0.75), std::log(0.8), std::log(0.2)}, 1e-13);
  expect(cross_entropy(x, ints({2}, {1, 0})), {2}, {-std::log(0.75), -std::log(0.8)}, 1e-13);
}

TEST_F(Reference, Normalisations) {
  const Value x = real({2, 4}, {1, 2, 3, 4, -1, -1, 1, 1});
  const Value gamma = real({4}, {1, 2, 1, 1}), beta = real({4}, {0, 0, 0, 10});
  const double s = std::sqrt(1.25);
  expect(layer_norm(x, gamma, beta, 0), {2, 4}, {-1.5 / s, -1 / s, 0.5 / s, 10 + 1.5 / s, -1, -2, 1, 11}, 1e-14);
  expect(layer_norm(x, gamma, beta, 3), {2, 4},
         {-1.5 / std::sqrt(4.25), -1 / std::sqrt(4.25), 0.5 / std::sqrt(4.25), 10 + 1.5 / std::sqrt(4.25), -0.5, -1,
          0.5, 10.5},
         1e-14);
  const double r = std::sqrt(7.5);
  expect(rms_norm(x, gamma, 0), {2, 4}, {1 / r, 4 / r, 3 / r, 4 / r, -1, -2, 1, 1}, 1e-14);
  // One sample of two places and four channels in two groups: {1, 2, -1, -1} and {3, 4, 1, 1}.
  const double v = std::sqrt(1.6875);
  expect(group_norm(real({1, 2, 4}, {1, 2, 3, 4, -1, -1, 1, 1}), gamma, beta, 2, 0), {1, 2, 4},
         {0.75 / v, 3.5 / v, 0.75 / v, 10 + 1.75 / v, -1.25 / v, -2.5 / v, -1.25 / v, 10 - 1.25 / v}, 1e-14);
}

TEST_F(Reference, RandomNumbersFollowThePhiloxBlocks) {
  const Value state = ints({2}, {-5, 3});
  const Tensor u = run(uniform(state, {6})), n = run(normal(state, {6})), wide = run(normal(state, {6}, DType::f64));
  for (std::int64_t e = 0; e < 6; ++e) {
    const auto block = static_cast<std::uint64_t>(e / 4);
    const auto lane = static_cast<std::size_t>(e % 4);
    const auto seed = static_cast<std::uint32_t>(-5);
    EXPECT_EQ(u.at(e), uniform_block(random_block(seed, 3, 0, block))[lane]);
    EXPECT_EQ(n.span<float>()[static_cast<std::size_t>(e)],
              static_cast<float>(normal_block(random_block(seed, 3, 1, block))[lane]));
    EXPECT_EQ(wide.at(e), normal_block(random_block(seed, 3, 2, block))[lane]);
  }
  // Rounded where they are made: what depends on them sees floats.
  const Value x = normal(state, {64});
  const Tensor doubled = run(cast(x, DType::f64)), single = run(x);
  for (std::int64_t e = 0; e < 64; ++e) EXPECT_EQ(doubled.at(e), single.at(e));
}

}  // namespace
}  // namespace sg
