// Winograd convolution on the cpu backend: every convolution case with it wherever it is possible, on each instruction
// set; which shapes take it; the same bits for any number of threads; its rounding beside direct convolution's.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "core/program.h"
#include "ops/conv.h"
#include "ops/elementwise.h"
#include "tests/conformance/conformance.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

class With {
 public:
  explicit With(WinogradUse use) : use_(winograd_use()), isa_(isa_name()), threads_(threads()) { set_winograd(use); }
  ~With() { set_winograd(use_), set_isa(isa_), set_threads(threads_); }
  With(const With&) = delete;
  With& operator=(const With&) = delete;

 private:
  WinogradUse use_;
  std::string isa_;
  int threads_;
};

std::vector<std::string> vector_sets() {
  const With restored(winograd_use());
  std::vector<std::string> sets;
  for (const char* name : {"avx2", "avx512"}) {
    try {
      set_isa(name);
      sets.push_back(name);
    } catch (const Error&) {
      std::printf("    not on this processor: %s\n", name);
    }
  }
  return sets;
}

Tensor random_tensor(const Shape& shape, unsigned seed, float scale = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  Tensor t({DType::f32, shape});
  for (float& v : t.span<float>()) v = normal(rng);
  return t;
}

// The three ops of one layer on random data.
struct Layer {
  std::int64_t n, size, c, o, kernel, stride, pad;

  ConvOptions options() const { return ConvOptions::square(stride, pad); }
  std::int64_t out() const { return (size + 2 * pad - kernel) / stride + 1; }
  Tensor x() const { return random_tensor({n, size, size, c}, 1); }
  Tensor w() const { return random_tensor({kernel, kernel, c, o}, 2, 0.05f); }
  Tensor y() const { return random_tensor({n, out(), out(), o}, 3); }
};

struct Results {
  std::vector<Tensor> values;
  std::string explained;
};

Results run(const Layer& l, Backend& backend) {
  const Tensor x = l.x(), w = l.w(), y = l.y();
  Tape tape;
  const Value xv = tape.input("x", x.type()), wv = tape.input("w", w.type()), yv = tape.input("y", y.type());
  const std::vector<Value> fetches{conv2d(xv, wv, l.options()), conv2d_transpose(yv, wv, l.options(), {l.size, l.size}),
                                   conv2d_weight_grad(xv, yv, {l.kernel, l.kernel}, l.options())};
  Program program = compile(tape, fetches, backend);
  program.feed(xv, x), program.feed(wv, w), program.feed(yv, y);
  program.run();
  Results results;
  for (const Value& v : fetches) results.values.push_back(program.fetch(v));
  results.explained = program.explain();
  return results;
}

int count(const std::string& text, const std::string& word) {
  int found = 0;
  for (auto at = text.find(word); at != std::string::npos; at = text.find(word, at + word.size())) ++found;
  return found;
}

TEST(Winograd, EveryConvolutionCaseAgreesWithTheReference) {
  const With always(WinogradUse::always);
  for (const Case* c : selected_cases()) {
    if (c->op.find("conv") == std::string::npos) continue;
    const CaseResults want = run_case(*c, reference_backend(), config_by_name("default"), 9);
    for (const std::string& isa : vector_sets()) {
      set_isa(isa);
      EXPECT_EQ(compare_results(*c, run_case(*c, cpu_backend(), config_by_name("guard"), 9), want), "")
          << c->op << " " << c->name << " on " << isa;
    }
  }
}

TEST(Winograd, IsTakenForTheLayersOfTheBaseline) {
  if (vector_sets().empty()) GTEST_SKIP() << "no vector set with Winograd kernels";
  const With chosen(WinogradUse::where_faster);
  for (const Layer& l : {Layer{128, 7, 128, 128, 3, 1, 1}, Layer{64, 8, 256, 64, 3, 1, 1}}) {
    set_isa(vector_sets().back());
    EXPECT_EQ(count(run(l, cpu_backend()).explained, "[winograd f4x3"), 3) << l.c << "->" << l.o;
  }
}

TEST(Winograd, LeavesToDirectConvolutionWhatDoesNotFit) {
  const auto none = [](const Layer& l) { EXPECT_EQ(count(run(l, cpu_backend()).explained, "[winograd"), 0); };
  {
    const With always(WinogradUse::always);
    none({1, 8, 48, 32, 3, 1, 1});  // channels that are no whole blocks
    none({1, 8, 32, 32, 5, 1, 1});  // a kernel without an algorithm
    none({1, 8, 32, 32, 3, 2, 1});  // a stride that does not divide the kernel
    set_isa("generic");
    none({1, 8, 32, 32, 3, 1, 1});
  }
  const With chosen(WinogradUse::where_faster);
  none({1, 8, 32, 32, 3, 1, 1});  // too small to win
  set_winograd(WinogradUse::never);
  none({128, 7, 128, 128, 3, 1, 1});
}

TEST(Winograd, SameBitsForAnyNumberOfThreads) {
  const With always(WinogradUse::always);
  for (const Layer& l : {Layer{5, 7, 64, 96, 3, 1, 1}, Layer{9, 14, 32, 64, 4, 2, 1}, Layer{6, 16, 64, 32, 4, 2, 1}}) {
    set_threads(1);
    const Results want = run(l, cpu_backend());
    for (const int n : {2, 3, 8}) {
      set_threads(n);
      const Results got = run(l, cpu_backend());
      for (std::size_t i = 0; i < want.values.size(); ++i)
        EXPECT_TRUE(std::equal(want.values[i].span<float>().begin(), want.values[i].span<float>().end(),
                               got.values[i].span<float>().begin()))
            << "result " << i << " with " << n << " threads";
    }
  }
}

// The largest and the mean square error over the root of the result's mean square, in units of f32 rounding.
struct Rounding {
  double largest, mean;
};
Rounding rounding(const Tensor& got, const Tensor& want) {
  double square = 0, error = 0, largest = 0;
  for (std::int64_t i = 0; i < want.elements(); ++i) {
    const double e = got.at(i) - want.at(i);
    square += want.at(i) * want.at(i), error += e * e, largest = std::max(largest, std::abs(e));
  }
  const double unit = std::sqrt(square / static_cast<double>(want.elements())) * std::numeric_limits<float>::epsilon();
  return {largest / unit, std::sqrt(error / static_cast<double>(want.elements())) / unit};
}

// The limits that docs/decisions/013-winograd.md states, on layers as wide as the baseline's.
TEST(Winograd, RoundsAsTheDecisionStates) {
  for (const Layer& l : {Layer{16, 7, 128, 128, 3, 1, 1}, Layer{8, 14, 64, 128, 4, 2, 1}}) {
    const Results exact = run(l, reference_backend());
    const With always(WinogradUse::always);
    const Results winograd = run(l, cpu_backend());
    set_winograd(WinogradUse::never);
    const Results direct = run(l, cpu_backend());
    for (std::size_t i = 0; i < exact.values.size(); ++i) {
      const Rounding w = rounding(winograd.values[i], exact.values[i]), d = rounding(direct.values[i], exact.values[i]);
      std::printf("    %dx%d stride %d, result %zu: largest %.1f, mean %.2f eps; direct %.1f, %.2f\n",
                  static_cast<int>(l.kernel), static_cast<int>(l.kernel), static_cast<int>(l.stride), i, w.largest,
                  w.mean, d.largest, d.mean);
      EXPECT_LT(w.largest, 256);
      EXPECT_LT(w.mean, 32);
    }
  }
}

// relu(conv + bias) as one step, and a NaN of the input is not hidden by the relu.
TEST(Winograd, TakesBiasAndReluAlong) {
  const With always(WinogradUse::always);
  Tensor x = random_tensor({2, 8, 8, 32}, 1);
  const Tensor w = random_tensor({3, 3, 32, 64}, 2, 0.1f), b = random_tensor({64}, 3);
  const auto evaluate = [&](Backend& backend) {
    Tape tape;
    return eval(relu(conv2d(tape.constant(x), tape.constant(w), ConvOptions::square(1, 1)) + tape.constant(b)),
                backend);
  };
  const Tensor got = evaluate(cpu_backend()), want = evaluate(reference_backend());
  for (std::int64_t i = 0; i < want.elements(); ++i) ASSERT_NEAR(got.at(i), want.at(i), 1e-4);
  x.set(0, std::nan(""));
  EXPECT_TRUE(std::isnan(evaluate(cpu_backend()).at(0)));
}

}  // namespace
}  // namespace sg::test
