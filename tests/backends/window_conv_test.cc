// Convolutions in bf16 as products over windows, oneDNN's and ours on AMX tiles: against the oracle on shapes of every
// kind, the same bits for any number of threads, what they leave to oneDNN's convolutions.
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "backends/backends.h"
#include "backends/cpu/amx_kernels.h"
#include "backends/cpu/bf16.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/tune.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

struct Sizes {
  const char* name;
  std::int64_t n, h, w, c, o, kh, kw;
  ConvOptions options = {};
};

// Rows that are no multiple of a slice's, several slices and parts, blocks of kernel rows, phases with unequal taps,
// padding on one side only, kernels wider than the image, windows that are the image itself; channels that are no
// multiple of a tile's rows, depth or columns; several bands of an image and several groups of bands; an odd and an
// even number of windows in a row.
const std::vector<Sizes> kSizes{
    {"one pixel", 1, 1, 1, 40, 8, 1, 1},
    {"1x1", 5, 7, 6, 48, 24, 1, 1},
    {"1x1 of every second pixel", 3, 7, 6, 48, 24, 1, 1, ConvOptions::square(2, 0)},
    {"3x3", 4, 7, 7, 32, 16, 3, 3, ConvOptions::square(1, 1)},
    {"3x3 in several slices", 40, 9, 8, 64, 32, 3, 3, ConvOptions::square(1, 1)},
    {"3x3 in blocks of kernel rows", 6, 5, 5, 160, 192, 3, 3, ConvOptions::square(1, 1)},
    {"4x4 stride 2", 5, 8, 10, 24, 12, 4, 4, ConvOptions::square(2, 1)},
    {"3x3 stride 2, phases of 1 and 2 taps", 3, 9, 7, 16, 20, 3, 3, ConvOptions::square(2, 1)},
    {"5x3 stride 3 and 2", 2, 11, 9, 18, 10, 5, 3, {{3, 2}, {2, 1, 0, 1}, {1, 1}, 1}},
    {"2x5, padding on one side", 3, 4, 6, 17, 9, 2, 5, {{1, 1}, {1, 0, 3, 4}, {1, 1}, 1}},
    {"padding beyond the kernel", 2, 3, 3, 12, 6, 3, 3, {{1, 1}, {4, 4, 0, 0}, {1, 1}, 1}},
    {"dilated", 3, 9, 9, 16, 8, 3, 3, {{1, 1}, {2, 2, 2, 2}, {2, 2}, 1}},
    {"33 channels", 3, 7, 5, 33, 17, 3, 3, ConvOptions::square(1, 1)},
    {"100 to 47 channels", 2, 6, 6, 100, 47, 3, 3, ConvOptions::square(1, 1)},
    {"72 channels, stride 2", 2, 9, 9, 72, 64, 4, 4, ConvOptions::square(2, 1)},
    {"more blocks than jobs", 2, 5, 4, 264, 33, 3, 3, ConvOptions::square(1, 1)},
    {"bands, groups", 14, 40, 39, 32, 8, 3, 3, ConvOptions::square(1, 1)},
    {"a wide row", 1, 2, 300, 64, 48, 3, 5, {{1, 2}, {1, 1, 2, 2}, {1, 1}, 1}},
    {"dilated, stride 2", 2, 11, 12, 64, 20, 3, 3, {{2, 2}, {2, 2, 2, 2}, {2, 2}, 1}},
    {"dilated by 3, stride 2", 2, 13, 12, 32, 20, 3, 2, {{2, 2}, {3, 3, 0, 1}, {3, 1}, 1}},
    {"few numbers", 70, 12, 12, 1, 16, 4, 4, ConvOptions::square(2, 1)},
};

struct Convolutions {
  explicit Convolutions(const Sizes& s) {
    Rng rng(7);
    const auto input = [&](const char* name, Shape shape) {
      data.push_back(normal_reals(shape)(rng).cast(DType::bf16));
      return tape.input(name, {DType::bf16, shape});
    };
    const Value x = input("x", {s.n, s.h, s.w, s.c}), w = input("w", {s.kh, s.kw, s.c, s.o}), b = input("b", {s.o});
    const Value y = conv2d(x, w, s.options), g = input("g", y.shape());
    results = {y, relu(conv2d(x * 2.0, w, s.options) + b), conv2d_transpose(g, w, s.options, {s.h, s.w}),
               conv2d_weight_grad(x, g, {s.kh, s.kw}, s.options), gradient(sum(cast(y * g, DType::f32)), w)};
  }
  std::vector<Tensor> run(Backend& on, std::string* explained = nullptr) {
    Program p = compile(tape, results, on);
    if (explained != nullptr) *explained = p.explain();
    for (std::size_t i = 0; i < data.size(); ++i) p.feed(std::array{"x", "w", "b", "g"}[i], data[i]);
    p.run();
    p.run();
    std::vector<Tensor> out;
    for (const Value& v : results) out.push_back(p.fetch(v));
    return out;
  }
  Tape tape;
  std::vector<Tensor> data;
  std::vector<Value> results;
};

std::size_t count_of(const std::string& text, std::string_view what) {
  std::size_t n = 0;
  for (std::size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++n;
  return n;
}

class WindowConv : public testing::TestWithParam<cpu::ConvAlgorithm> {
 protected:
  void SetUp() override {
    if (!cpu::has_amx()) GTEST_SKIP() << "this processor has no AMX tiles for bf16, or oneDNN may not use them";
    if (GetParam() == cpu::ConvAlgorithm::tiles && !cpu::amx::compiled())
      GTEST_SKIP() << "this build's compiler knows no AMX tiles";
    cpu::force_algorithm(GetParam());
  }
  void TearDown() override { cpu::force_algorithm(std::nullopt); }
  // How a program's text names the algorithm.
  static std::string_view name() { return GetParam() == cpu::ConvAlgorithm::tiles ? "[amx tiles" : "[windows"; }
};

INSTANTIATE_TEST_SUITE_P(, WindowConv, testing::Values(cpu::ConvAlgorithm::windows, cpu::ConvAlgorithm::tiles),
                         [](const auto& info) {
                           return std::string(info.param == cpu::ConvAlgorithm::tiles ? "tiles" : "windows");
                         });

TEST_P(WindowConv, AgreesWithTheOracle) {
  std::size_t products = 0;
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(s.name);
    Convolutions convolutions(s);
    std::string explained;
    const std::vector<Tensor> got = convolutions.run(cpu_backend(), &explained),
                              want = convolutions.run(reference_backend());
    products += count_of(explained, name());
    for (std::size_t k = 0; k < got.size(); ++k) {
      const auto terms = static_cast<double>(k < 2 ? s.kh * s.kw * s.c : k == 2 ? s.kh * s.kw * s.o : s.n * s.h * s.w);
      // Both round to bf16; sums are in f32 and in double. With a bias the oracle rounds before it is added, and so
      // what it adds to.
      const double rounded = k == 1 ? 4 * std::sqrt(terms) / 256 : 0;
      for (std::int64_t i = 0; i < got[k].elements(); ++i)
        ASSERT_NEAR(got[k].at(i), want[k].at(i),
                    std::abs(want[k].at(i)) / 128 + rounded + 1e-5 * std::sqrt(terms) + 1e-6)
            << "result " << k << ", element " << i << "\n"
            << explained;
    }
  }
  EXPECT_GT(products, 3 * kSizes.size()) << "most of them shall be by the algorithm";
}

TEST_P(WindowConv, BitsDoNotDependOnThreads) {
  const int before = threads();
  for (const Sizes& s : kSizes) {
    SCOPED_TRACE(s.name);
    Convolutions convolutions(s);
    set_threads(1);
    const std::vector<Tensor> one = convolutions.run(cpu_backend());
    for (const int n : {2, 3, 8}) {
      set_threads(n);
      const std::vector<Tensor> some = convolutions.run(cpu_backend());
      for (std::size_t k = 0; k < one.size(); ++k)
        EXPECT_TRUE(same_bits(one[k], some[k])) << k << ", " << n << " threads";
    }
  }
  set_threads(before);
}

// An image's result does not depend on how many there are: training and evaluation see the same codes.
TEST_P(WindowConv, BitsDoNotDependOnTheBatch) {
  Rng rng(3);
  const Tensor images = normal_reals({100, 8, 8, 32})(rng).cast(DType::bf16),
               w = normal_reals({3, 3, 32, 16})(rng).cast(DType::bf16);
  const auto first_rows = [&](std::int64_t n) {
    Tape tape;
    const Value x = tape.input("x", {DType::bf16, {n, 8, 8, 32}});
    const Value y = conv2d(x, tape.constant(w), ConvOptions::square(1, 1));
    Program p = compile(tape, {y}, cpu_backend());
    SG_EXPECT_CONTAINS(p.explain(), std::string(name()));
    p.feed(x, Tensor::of<BFloat16>({n, 8, 8, 32},
                                   images.span<BFloat16>().first(static_cast<std::size_t>(n * 8 * 8 * 32))));
    p.run();
    return Tensor::of<BFloat16>({8, 8, 16}, p.fetch(y).span<BFloat16>().first(8 * 8 * 16));
  };
  const Tensor all = first_rows(100);
  for (const std::int64_t n : {1, 2, 17, 64}) EXPECT_TRUE(same_bits(first_rows(n), all)) << n;
}

TEST_P(WindowConv, ReluKeepsNaN) {
  Tape tape;
  const Value x = tape.input("x", {DType::bf16, {1, 4, 4, 64}}), w = tape.input("w", {DType::bf16, {1, 1, 64, 16}}),
              b = tape.input("b", {DType::bf16, {16}});
  const Value y = relu(conv2d(x, w) + b);
  Program p = compile(tape, {y}, cpu_backend());
  SG_EXPECT_CONTAINS(p.explain(), "relu]");
  Tensor images({DType::f32, x.shape()});
  images.set(5 * 64, std::nan("")), images.set(6 * 64, -INFINITY), images.set(7 * 64, INFINITY);
  p.feed(x, images.cast(DType::bf16));
  p.feed(w, Tensor::full({DType::f32, w.shape()}, 1).cast(DType::bf16));
  p.feed(b, Tensor::full({DType::f32, b.shape()}, -2).cast(DType::bf16));
  p.run();
  const Tensor out = p.fetch(y);
  EXPECT_EQ(out.at(0), 0);
  EXPECT_TRUE(std::isnan(out.at(5 * 16)));
  EXPECT_EQ(out.at(6 * 16), 0);
  EXPECT_EQ(out.at(7 * 16), INFINITY);
}

TEST_P(WindowConv, LeavesGroupsToOneDnn) {
  Tape tape;
  const Value x = tape.input("x", {DType::bf16, {2, 8, 8, 64}}), w = tape.input("w", {DType::bf16, {3, 3, 32, 32}});
  ConvOptions options = ConvOptions::square(1, 1);
  options.groups = 2;
  const Program p = compile(tape, {conv2d(x, w, options)}, cpu_backend());
  EXPECT_EQ(count_of(p.explain(), name()), 0u) << p.explain();
}

// Without a trial: tiles, on the instruction set that they need; windows below it; oneDNN's where an image has few
// numbers.
TEST(WindowConvChoice, ByShapeAndInstructionSet) {
  if (!cpu::has_amx() || !cpu::amx::compiled()) GTEST_SKIP() << "no AMX tiles";
  const auto explained = [](std::int64_t channels, std::int64_t kernel) {
    Tape tape;
    const Value x = tape.input("x", {DType::bf16, {2, 8, 8, channels}}),
                w = tape.input("w", {DType::bf16, {kernel, kernel, channels, 32}});
    return compile(tape, {conv2d(x, w, ConvOptions::square(1, kernel / 2))}, cpu_backend()).explain();
  };
  SG_EXPECT_CONTAINS(explained(64, 3), "[amx tiles of planes");
  SG_EXPECT_CONTAINS(explained(64, 1), "[amx tiles of pixels");
  SG_EXPECT_CONTAINS(explained(4, 3), "[amx tiles of windows");
  EXPECT_EQ(count_of(explained(1, 3), "[amx tiles"), 0u);
  set_isa("avx2");
  const std::string below = explained(64, 3);
  set_isa("avx512");
  SG_EXPECT_CONTAINS(below, "[windows");
}

}  // namespace
}  // namespace sg::test
