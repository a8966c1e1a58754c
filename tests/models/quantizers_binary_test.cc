// Quantizers of one bit per dimension, lfq and bsq: codes, and entropies against their definition.
#include <algorithm>
#include <cmath>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "ops/reduce.h"
#include "tests/models/grid_support.h"

namespace sg {
namespace {

using namespace models_test;

TEST(Lfq, TakesTheSignOfEachNumberAsABit) {
  const Fixture f(binary("lfq", 8));
  Tape tape;
  const Quantized out = (*f.quantizer)(tape.constant(floats({4, 3}, {1, -2, 3, -1, -1, -1, 0, 0.1f, 0, 5, 5, 5})));
  const std::vector<Tensor> t = run_once(tape, {out.z_q, out.indices});
  expect_near(t[0], {1, -1, 1, -1, -1, -1, -1, 1, -1, 1, 1, 1}, 0);
  expect_near(t[1], {5, 0, 2, 7}, 0);
}

TEST(Bsq, CodesAreCornersOfTheUnitSphere) {
  const Fixture f(binary("bsq", 16));
  Tape tape;
  const Value z = tape.constant(normal_init({20, 4}, 0, 3, 2, "z"));
  const Quantized out = (*f.quantizer)(z);
  const std::vector<Tensor> t = run_once(tape, {out.z_q, norm(out.z, {-1}), norm(out.z_q, {-1}), z});
  for (std::int64_t i = 0; i < 80; ++i) EXPECT_NEAR(t[0].at(i), t[3].at(i) > 0 ? 0.5 : -0.5, 1e-7);
  expect_near(t[1], std::vector<double>(20, 1.0), 1e-6);
  expect_near(t[2], std::vector<double>(20, 1.0), 1e-6);
}

// ---- entropies

// Entropies of softmax(-|z - c|^2 / t) over all codes, by their definition.
struct Entropies {
  double of_rows = 0, of_batch = 0;
};
Entropies by_definition(const std::vector<double>& z, std::size_t dim, double size, double temperature) {
  const std::size_t codes = std::size_t{1} << dim, n = z.size() / dim;
  Entropies out;
  std::vector<double> average(codes, 0);
  for (std::size_t r = 0; r < n; ++r) {
    std::vector<double> p(codes);
    double most = -1e300, total = 0;
    for (std::size_t k = 0; k < codes; ++k) {
      for (std::size_t d = 0; d < dim; ++d)
        p[k] -= std::pow(z[r * dim + d] - ((k >> d & 1) != 0 ? size : -size), 2) / temperature;
      most = std::max(most, p[k]);
    }
    for (double& x : p) total += x = std::exp(x - most);
    for (std::size_t k = 0; k < codes; ++k) {
      p[k] /= total;
      average[k] += p[k] / static_cast<double>(n);
      if (p[k] > 0) out.of_rows -= p[k] * std::log(p[k]) / static_cast<double>(n);
    }
  }
  for (const double p : average)
    if (p > 0) out.of_batch -= p * std::log(p);
  return out;
}

TEST(Lfq, EntropiesAreThoseOfTheSoftmaxOverAllCodes) {
  for (const std::int64_t bits : {1, 2, 5, 8})
    for (const double temperature : {0.01, 0.5, 3.0}) {
      QuantizerConfig c = binary("lfq", std::int64_t{1} << bits);
      c.entropy = c.diversity = 1;
      c.entropy_temperature = temperature;
      const Fixture f(c);
      Tape tape;
      const Tensor z = doubles({13, bits}, 31, 0.4);
      const Quantized out = (*f.quantizer)(tape.constant(z));
      const std::vector<Tensor> t = run_once(tape, {out.loss("entropy"), out.loss("diversity")});
      const Entropies e = by_definition(numbers(z), static_cast<std::size_t>(bits), 1, temperature);
      EXPECT_NEAR(t[0].item(), e.of_rows - e.of_batch, 1e-9) << bits << " bits at " << temperature;
      EXPECT_NEAR(t[1].item(), -e.of_batch, 1e-9);
    }
}

TEST(Bsq, EntropyOfARowIsExactAndThatOfTheBatchIsTheSumOfItsBits) {
  QuantizerConfig c = binary("bsq", 32);
  c.entropy = c.diversity = 1;
  c.entropy_temperature = 0.3;
  const Fixture f(c);
  Tape tape;
  const Quantized out = (*f.quantizer)(tape.constant(doubles({13, 5}, 32)));
  const std::vector<Tensor> t = run_once(tape, {out.loss("entropy"), out.loss("diversity"), out.z});
  const std::vector<double> u = numbers(t[2]);
  double bits = 0;
  for (std::size_t d = 0; d < 5; ++d) {
    std::vector<double> column;
    for (std::size_t r = 0; r < 13; ++r) column.push_back(u[5 * r + d]);
    bits += by_definition(column, 1, 1 / std::sqrt(5.0), 0.3).of_batch;
  }
  const Entropies e = by_definition(u, 5, 1 / std::sqrt(5.0), 0.3);
  EXPECT_NEAR(t[1].item(), -bits, 1e-12);
  EXPECT_NEAR(t[0].item(), e.of_rows - bits, 1e-12);
  EXPECT_GT(bits, e.of_batch);
}

TEST(Lfq, EntropyIsFiniteForHugeRowsAndZeroWhereEachRowIsSure) {
  QuantizerConfig c = binary("lfq", 4);
  c.entropy = c.diversity = 1;
  const Fixture f(c);
  for (const std::string_view name : backend_names()) {
    Tape tape;
    const Value z = tape.constant(floats({4, 2}, {1e38f, -1e38f, 3, 3, -3, 3, -1e20f, -1e20f}));
    const Quantized out = (*f.quantizer)(z);
    const std::vector<Tensor> t =
        run_once(tape, {out.loss("entropy"), out.loss("diversity"), gradient(out.loss("entropy"), z)}, {}, name);
    EXPECT_NEAR(t[0].item(), -std::log(4.0), 1e-5);  // all four codes alike, no doubt in any row
    EXPECT_NEAR(t[1].item(), -std::log(4.0), 1e-5);
    for (const double g : numbers(t[2])) EXPECT_TRUE(std::isfinite(g)) << name;
  }
}

TEST(Lfq, AboveTwentyBitsTheEntropyOfTheBatchIsSummedOverGroups) {
  QuantizerConfig c = binary("lfq", std::int64_t{1} << 22);
  c.diversity = 1;
  c.entropy_temperature = 2;
  const Fixture f(c);
  Tensor z = doubles({3, 22}, 33, 0.4), first({DType::f64, {3, 20}}), last({DType::f64, {3, 2}});
  for (std::int64_t r = 0; r < 3; ++r)
    for (std::int64_t d = 0; d < 22; ++d)
      d < 20 ? first.set(20 * r + d, z.at(22 * r + d)) : last.set(2 * r + d - 20, z.at(22 * r + d));
  const auto of = [&](const Tensor& rows, std::int64_t bits) {
    QuantizerConfig part = c;
    part.codes = std::int64_t{1} << bits;
    const Fixture p(part);
    Tape tape;
    return run_once(tape, {(*p.quantizer)(tape.constant(rows)).loss("diversity")})[0].item();
  };
  EXPECT_NEAR(of(z, 22), of(first, 20) + of(last, 2), 1e-9);
}

TEST(Lfq, NoArrayOfRowsTimesCodesIsMade) {
  constexpr std::int64_t n = 4096, bits = 14;
  QuantizerConfig c = binary("lfq", std::int64_t{1} << bits);
  c.entropy = 1;
  const Fixture f(c);
  Tape tape;
  const Value z = tape.input("z", {DType::f32, {n, bits}});
  const Value loss = (*f.quantizer)(z, training(tape)).total_loss();
  const Program program = compile(tape, {loss, gradient(loss, z)}, backend("cpu"));
  const ProgramStats stats = program.stats();
  // Arrays of N x 2^(bits/2) and of K, a few of them alive at once; N x K would be 268 MB.
  EXPECT_LT(stats.arena_bytes + stats.scratch_bytes, std::size_t{10} * 4 * (n << (bits / 2)));
}

}  // namespace
}  // namespace sg
