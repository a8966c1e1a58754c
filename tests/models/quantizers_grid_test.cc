// Quantizers on grids: fsq, fsq-symmetric, lfq, bsq, latent. Their formulas, Jacobians, round trips, losses, masks.
#include <algorithm>
#include <cmath>
#include <set>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/gradcheck.h"
#include "models/quantizers/latent.h"
#include "models/vqvae_training.h"
#include "ops/elementwise.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/models/grid_support.h"

namespace sg {
namespace {

using namespace models_test;

// One of each, small enough that all codes can be tried. codes: of all books together.
struct Small {
  QuantizerConfig config;
  std::int64_t dim, codes;
  bool encodes_codes;  // encode(decode(i)) is i for every i
};
std::vector<Small> small_ones() {
  return {{config("fsq", {3, 5, 3}), 3, 45, true},
          {config("fsq", {8, 5, 4}), 3, 160, false},
          {config("fsq", {7}), 1, 7, false},
          {config("fsq-symmetric", {2, 5, 3}), 3, 30, true},
          {config("fsq-symmetric", {5, 4}), 2, 20, true},
          {config("fsq-symmetric", {6, 2}), 2, 12, false},
          {binary("lfq", 64), 6, 64, true},
          {binary("bsq", 32), 5, 32, true},
          {config("latent", {3, 4, 5}), 3, 60, true},
          {config("latent", {6}), 1, 6, true}};
}

// Every combination of indices, as rows of index_shape.
Tensor all_indices(const Quantizer& q, std::int64_t codes) {
  Shape shape = q.index_shape({codes, q.dim()});
  Tensor t({DType::i32, shape});
  const auto* latent = dynamic_cast<const LatentQuantizer*>(&q);
  for (std::int64_t k = 0; k < codes; ++k) {
    if (latent == nullptr) {
      t.set(k, static_cast<double>(k));
      continue;
    }
    for (std::int64_t d = 0, rest = k; d < q.dim(); ++d) {
      const std::int64_t own = latent->levels()[static_cast<std::size_t>(d)];
      t.set(k * q.dim() + d, static_cast<double>(rest % own));
      rest /= own;
    }
  }
  return t;
}

TEST(GridQuantizer, EveryIndexSurvivesTheRoundTripOnEveryBackend) {
  for (const std::string_view name : backend_names())
    for (const Small& s : small_ones()) {
      SCOPED_TRACE(std::string(name) + " " + s.config.quantizer + " " + std::to_string(s.codes));
      const Fixture f(s.config);
      ASSERT_EQ(f.quantizer->dim(), s.dim);
      Tape tape;
      const Tensor indices = all_indices(*f.quantizer, s.codes);
      const Value i = tape.constant(indices);
      const Value codes = f.quantizer->decode(i);
      ASSERT_EQ(codes.shape(), Shape({s.codes, s.dim}));
      const Quantized out = (*f.quantizer)(codes);
      const std::vector<Tensor> t = run_once(
          tape, {f.quantizer->requantize(i), out.indices, codes, out.z_q, f.quantizer->decode(out.indices)}, {}, name);
      expect_same_bits(t[0], indices, "requantize");
      EXPECT_EQ(numbers(t[1]) == numbers(indices), s.encodes_codes);
      expect_same_bits(t[3], t[4], "z_q is the code");
      std::set<std::vector<double>> distinct;
      for (std::int64_t k = 0; k < s.codes; ++k) {
        std::vector<double> code;
        for (std::int64_t d = 0; d < s.dim; ++d) code.push_back(t[2].at(k * s.dim + d));
        distinct.insert(code);
      }
      EXPECT_EQ(static_cast<std::int64_t>(distinct.size()), s.codes);
    }
}

TEST(GridQuantizer, TrainingComputesTheCodesThatEvaluationComputes) {
  for (const std::string_view name : backend_names())
    for (const Small& s : small_ones()) {
      SCOPED_TRACE(std::string(name) + " " + s.config.quantizer);
      const Fixture f(s.config);
      Tape tape;
      const Value z = tape.constant(normal_init({40, s.dim}, 0, 1.5, 3, "z"));
      const Quantized train = (*f.quantizer)(z, training(tape)), eval = (*f.quantizer)(z);
      const Value decoded = f.quantizer->decode(eval.indices);
      const std::vector<Tensor> t =
          run_once(tape, {train.z_q, eval.z_q, decoded, train.indices, eval.indices}, {}, name);
      expect_same_bits(t[0], t[1]);
      expect_same_bits(t[0], t[2]);
      expect_same_bits(t[3], t[4]);
    }
}

TEST(GridQuantizer, ExtremeRowsGetIndicesInRangeAndTheNearestLevels) {
  constexpr float huge = 1e30f, inf = std::numeric_limits<float>::infinity();
  const float rows[] = {huge, -huge, 0, std::nanf(""), inf, -inf, -0.f, 1e-30f, -1e-38f, 3e38f};
  for (const std::string_view name : backend_names())
    for (const Small& s : small_ones()) {
      SCOPED_TRACE(std::string(name) + " " + s.config.quantizer);
      const Fixture f(s.config);
      std::vector<float> values;
      for (const float v : rows) values.insert(values.end(), static_cast<std::size_t>(s.dim), v);
      Tape tape;
      const Value z = tape.constant(floats({10, s.dim}, values));
      const Quantized out = (*f.quantizer)(z, training(tape));
      // gather_rows refuses an index out of range.
      const std::vector<Tensor> t = run_once(tape, {out.indices, out.z_q, f.quantizer->decode(out.indices)}, {}, name);
      expect_same_bits(t[1], t[2]);
      for (std::int64_t i = 0; i < t[0].elements(); ++i) {
        EXPECT_GE(t[0].at(i), 0);
        EXPECT_LT(t[0].at(i), static_cast<double>(f.quantizer->codes()));
      }
      for (std::int64_t d = 0; d < s.dim; ++d) {
        EXPECT_GT(t[1].at(d), 0) << "above all levels";
        EXPECT_LT(t[1].at(s.dim + d), 0) << "below all levels";
        EXPECT_EQ(t[1].at(4 * s.dim + d), t[1].at(d));
        EXPECT_EQ(t[1].at(5 * s.dim + d), t[1].at(s.dim + d));
      }
    }
}

TEST(GridQuantizer, AnIndexOutOfRangeIsAnErrorAtRunTime) {
  for (const std::string_view name : backend_names()) {
    const auto refused = [&](const QuantizerConfig& c, std::vector<std::int32_t> indices) {
      SCOPED_TRACE(std::string(name) + " " + c.quantizer);
      const Fixture f(c);
      Tape tape;
      const Shape shape = f.quantizer->index_shape({1, f.quantizer->dim()});
      const Value codes = f.quantizer->decode(tape.constant(Tensor::of<std::int32_t>(shape, indices)));
      expect_error(ErrorKind::attribute, {}, [&] { run_once(tape, {codes}, {}, name); });
    };
    refused(config("fsq", {3, 5}), {15});
    refused(config("fsq", {3, 5}), {-1});
    refused(config("fsq", {32, 32, 32}), {32768});  // more than one table
    refused(config("fsq", {32, 32, 32}), {-1});
    refused(binary("lfq", 16), {16});
    refused(config("latent", {3, 4}), {3, 0});  // not the first value of the next dimension
    refused(config("latent", {3, 4}), {0, 4});
    refused(config("latent", {3, 4}), {0, -1});
  }
}

TEST(GridQuantizer, AllOf65536CodesCanBeReachedInSinglePrecision) {
  for (const Levels& levels : {Levels{16, 16, 16, 16}, Levels{8, 8, 8, 5, 5, 5}, Levels{256, 256}}) {
    const Fixture f(config("fsq", levels));
    const std::int64_t codes = f.quantizer->codes(), dim = f.quantizer->dim();
    Tensor z({DType::f32, {codes, dim}}), indices({DType::i32, {codes}});
    for (std::int64_t k = 0; k < codes; ++k) {
      indices.set(k, static_cast<double>(k));
      for (std::int64_t d = 0, rest = k; d < dim; ++d) {
        const std::int64_t l = levels[static_cast<std::size_t>(d)];
        const double h = static_cast<double>(l - 1) * (1 + 1e-3) / 2, o = l % 2 == 0 ? 0.5 : 0.0;
        const auto level = static_cast<double>(rest % l - l / 2);
        rest /= l;
        z.set(k * dim + d, std::atanh((level + o) / h) - std::atanh(o / h));
      }
    }
    Tape tape;
    const Value i = tape.constant(indices);
    const std::vector<Tensor> t =
        run_once(tape, {f.quantizer->encode(tape.constant(z)), f.quantizer->requantize(i)}, {}, backend_names().back());
    expect_same_bits(t[0], indices, "encode");
    expect_same_bits(t[1], indices, "requantize");
  }
}

TEST(GridQuantizer, IndicesBeyondTheIntegersOfAFloatAreExact) {
  const Fixture f(config("fsq-symmetric", {1023, 1024, 1025}));
  ASSERT_EQ(f.quantizer->codes(), 1023 * 1024 * 1025);
  std::vector<std::int32_t> indices{0, 1, 1022, 1023, (1 << 24) + 1, 536870911, 1023 * 1024 * 1025 - 1};
  for (std::int32_t i = 1; i < 200; ++i) indices.push_back(i * 5368709 + i % 7);
  for (const std::string_view name : backend_names()) {
    Tape tape;
    const Tensor t = Tensor::of<std::int32_t>({static_cast<std::int64_t>(indices.size())}, indices);
    const Value i = tape.constant(t);
    expect_same_bits(run_once(tape, {f.quantizer->requantize(i)}, {}, name)[0], t);
  }
}

// ---- formulas

TEST(Fsq, FollowsThePapersFormulaForEvenAndOddLevels) {
  const Levels levels{8, 5, 4, 3, 7};
  const Fixture f(config("fsq", levels));
  const Tensor z = normal_init({50, 5}, 0, 1, 4, "z");
  Tape tape;
  const Quantized out = (*f.quantizer)(tape.constant(z));
  const std::vector<Tensor> t = run_once(tape, {out.z_q, out.indices, out.z});
  for (std::int64_t row = 0; row < 50; ++row) {
    std::int64_t index = 0, basis = 1;
    for (std::int64_t d = 0; d < 5; ++d) {
      const std::int64_t l = levels[static_cast<std::size_t>(d)], half = l / 2;
      const double h = static_cast<double>(l - 1) * 1.001 / 2, o = l % 2 == 0 ? 0.5 : 0.0;
      const double bounded = std::tanh(z.at(5 * row + d) + std::atanh(o / h)) * h - o;
      EXPECT_NEAR(t[2].at(5 * row + d), bounded / static_cast<double>(half), 1e-6);
      EXPECT_NEAR(t[0].at(5 * row + d), std::nearbyint(bounded) / static_cast<double>(half), 1e-7);
      index += basis * (std::lrint(bounded) + half);
      basis *= l;
    }
    EXPECT_EQ(t[1].at(row), static_cast<double>(index));
  }
}

TEST(Fsq, HasTheGridsOfThePaper) {
  const std::vector<std::pair<std::int64_t, Levels>> table{{256, {8, 6, 5}},
                                                           {1024, {8, 5, 5, 5}},
                                                           {4096, {7, 5, 5, 5, 5}},
                                                           {16384, {8, 8, 8, 6, 5}},
                                                           {65536, {8, 8, 8, 5, 5, 5}}};
  for (const auto& [codes, levels] : table)
    for (const char* name : {"fsq", "fsq-symmetric"}) {
      const Fixture f(binary(name, codes));
      EXPECT_EQ(f.quantizer->dim(), static_cast<std::int64_t>(levels.size()));
      std::int64_t product = 1;
      for (const std::int64_t l : levels) product *= l;
      EXPECT_EQ(f.quantizer->codes(), product);
      EXPECT_EQ(f.quantizer->books(), 1);
      EXPECT_NEAR(f.quantizer->bits_per_row(), std::log2(static_cast<double>(product)), 1e-12);
    }
}

TEST(FsqSymmetric, HasLevelsAboutZero) {
  const Fixture f(config("fsq-symmetric", {2, 5, 6}));
  Tape tape;
  std::vector<float> values;
  const std::vector<double> at{-3, -0.9, -0.3, 0.1, 0.3, 0.7, 3};
  for (const double v : at) values.insert(values.end(), 3, static_cast<float>(v));
  const Tensor out = run_once(tape, {(*f.quantizer)(tape.constant(floats({7, 3}, values))).z_q})[0];
  for (std::size_t i = 0; i < at.size(); ++i)
    for (const auto& [d, l] : {std::pair{0, 2.0}, std::pair{1, 5.0}, std::pair{2, 6.0}}) {
      const double z = static_cast<double>(values[3 * i]);
      const double wanted = 2 / (l - 1) * std::floor((l - 1) * (std::tanh(z) + 1) / 2 + 0.5) - 1;
      EXPECT_NEAR(out.at(static_cast<std::int64_t>(3 * i) + d), wanted, 1e-6) << at[i] << " of " << l << " levels";
    }
}

TEST(FsqSymmetric, DitherReplacesRoundingForItsShareOfTheElementsInTrainingOnly) {
  QuantizerConfig c = config("fsq-symmetric", {5, 5});
  c.dither = 0.3;
  const Fixture f(c);
  const std::int64_t n = 4000;
  Tape tape;
  const Value z = tape.constant(normal_init({n, 2}, 0, 1, 9, "z"));
  const Quantized train = (*f.quantizer)(z, training(tape)), next = (*f.quantizer)(z, training(tape, 1)),
                  eval = (*f.quantizer)(z);
  const std::vector<Tensor> t = run_once(
      tape, {train.z_q, eval.z_q, train.z, train.indices, eval.indices, next.z_q, f.quantizer->decode(eval.indices)});
  expect_same_bits(t[3], t[4], "indices");
  expect_same_bits(t[1], t[6], "evaluation");
  double dithered = 0, total = 0, squares = 0;
  bool moves = false;
  for (std::int64_t i = 0; i < 2 * n; ++i) {
    moves |= t[0].at(i) != t[5].at(i);
    if (t[0].at(i) == t[1].at(i)) continue;
    const double noise = t[0].at(i) - t[2].at(i);
    ASSERT_LE(std::abs(noise), 0.25 + 1e-6);  // half a step
    dithered += 1, total += noise, squares += noise * noise;
  }
  EXPECT_TRUE(moves);
  EXPECT_NEAR(dithered / static_cast<double>(2 * n), 0.3, 0.02);
  EXPECT_NEAR(total / dithered, 0, 0.01);
  EXPECT_NEAR(squares / dithered, 0.25 * 0.25 / 3, 0.002);  // variance of the uniform distribution
  // The Jacobian has no part in it.
  const std::vector<Tensor> g = run_once(tape, {gradient(sum(train.z_q), z), gradient(sum(eval.z_q), z)});
  expect_same_bits(g[0], g[1]);
}

// ---- Jacobians, in f64

// z_q's Jacobian at rows z (3,D) against wanted(row, e, d), and 0 between rows.
template <class F>
void check_jacobian(const QuantizerConfig& c, const Tensor& z, F wanted) {
  const Fixture f(c);
  const std::int64_t dim = f.quantizer->dim(), n = z.shape()[0];
  const GraphFn graph = [&](Tape& tape, std::span<const Value> in) {
    return (*f.quantizer)(in[0], training(tape)).z_q;
  };
  const Tensor j = jacobian(graph, std::span(&z, 1), 0, backend("reference"));
  for (std::int64_t r = 0; r < n * dim; ++r)
    for (std::int64_t s = 0; s < n * dim; ++s) {
      const double entry = r / dim == s / dim ? wanted(r / dim, r % dim, s % dim) : 0.0;
      EXPECT_NEAR(j.at(r * n * dim + s), entry, 1e-10 * std::max(1.0, std::abs(entry)))
          << c.quantizer << " " << r << "," << s;
    }
}

double sech2(double x) { return 1 / (std::cosh(x) * std::cosh(x)); }

TEST(GridQuantizer, JacobiansAreThoseOfTheReference) {
  const Levels levels{8, 5, 4};
  const Tensor z = doubles({3, 3}, 11);
  check_jacobian(config("fsq", levels), z, [&](std::int64_t row, std::int64_t e, std::int64_t d) {
    const std::int64_t l = levels[static_cast<std::size_t>(d)];
    const double h = static_cast<double>(l - 1) * 1.001 / 2, o = l % 2 == 0 ? 0.5 : 0.0;
    return e == d ? h * sech2(z.at(3 * row + d) + std::atanh(o / h)) / static_cast<double>(l / 2) : 0.0;
  });
  QuantizerConfig dithered = config("fsq-symmetric", levels);
  dithered.dither = 0.5;
  check_jacobian(dithered, z, [&](std::int64_t row, std::int64_t e, std::int64_t d) {
    return e == d ? sech2(z.at(3 * row + d)) : 0.0;
  });
  const auto identity = [](std::int64_t, std::int64_t e, std::int64_t d) { return e == d ? 1.0 : 0.0; };
  check_jacobian(binary("lfq", 8), z, identity);
  check_jacobian(config("latent", levels), z, identity);
  for (const double scale : {1.0, 1e-9, 1e200}) {  // no square over- or underflows
    Tensor scaled = z;
    for (std::int64_t i = 0; i < 9; ++i) scaled.set(i, scale * z.at(i));
    check_jacobian(binary("bsq", 8), scaled, [&](std::int64_t row, std::int64_t e, std::int64_t d) {
      const auto u = [&](std::int64_t i) { return scaled.at(3 * row + i) / scale; };
      const double length = std::sqrt(u(0) * u(0) + u(1) * u(1) + u(2) * u(2));
      return ((e == d ? 1.0 : 0.0) - u(e) * u(d) / (length * length)) / length / scale;
    });
  }
  check_jacobian(binary("bsq", 8), Tensor({DType::f64, {2, 3}}), identity);  // z = 0
}

TEST(GridQuantizer, LossesPassTheGradientCheckToOrderTwo) {
  for (QuantizerConfig c : {binary("lfq", 32), binary("bsq", 32), config("latent", {3, 4, 5, 3, 2})}) {
    c.entropy = 0.7;
    c.diversity = 0.2;
    c.entropy_temperature = 1.5;
    const Fixture f(c);
    const GraphFn graph = [&](Tape& tape, std::span<const Value> in) {
      const Quantized out = (*f.quantizer)(in[0], training(tape));
      return out.total_loss() + sum(square(out.z_q));
    };
    const Tensor z = doubles({4, 5}, 21);
    const GradcheckResult r = gradcheck(graph, std::span(&z, 1), backend("reference"));
    EXPECT_TRUE(r.ok) << c.quantizer << ": " << r.message;
  }
}

// ---- masks and maps

TEST(GridQuantizer, PaddingCountsInNoLossAndPassesNoGradient) {
  for (const std::string_view name : backend_names())
    for (QuantizerConfig c : {config("fsq", {5, 4}), config("fsq-symmetric", {5, 4}), binary("lfq", 4),
                              binary("bsq", 4), config("latent", {3, 5})}) {
      SCOPED_TRACE(std::string(name) + " " + c.quantizer);
      c.entropy = 0.5;
      c.diversity = 0.25;
      c.entropy_temperature = 1;
      const Fixture f(c);
      // Two sequences of 4 and 2 rows, padded to 5; the padding holds what no loss would survive.
      const Tensor rows = normal_init({6, 2}, 0, 1, 5, "rows");
      Tensor padded = Tensor::full({DType::f32, {2, 5, 2}}, std::nan("")), mask({DType::f32, {2, 5}});
      for (std::int64_t r = 0; r < 6; ++r) {
        const std::int64_t at = r < 4 ? r : r + 1;
        mask.set(at, 1);
        for (std::int64_t d = 0; d < 2; ++d) padded.set(2 * at + d, rows.at(2 * r + d));
      }
      Tape tape;
      const Value z = tape.constant(padded), packed = tape.constant(rows);
      QuantizeContext context = training(tape);
      const Quantized all = (*f.quantizer)(packed, context);
      context.mask = tape.constant(mask);
      const Quantized out = (*f.quantizer)(z, context);
      ASSERT_EQ(out.losses.size(), all.losses.size());
      const auto objective = [&](const Quantized& q) {
        const Value codes = sum(square(q.z_q + 1.0));
        return q.total_loss() ? codes + q.total_loss() : codes;
      };
      std::vector<Value> fetches{out.z_q, all.z_q, gradient(objective(out), z), gradient(objective(all), packed)};
      for (std::size_t i = 0; i < all.losses.size(); ++i)
        fetches.insert(fetches.end(), {out.losses[i].value, all.losses[i].value});
      const std::vector<Tensor> t = run_once(tape, fetches, {}, name);
      for (std::int64_t at = 0, r = 0; at < 10; ++at) {
        for (std::int64_t d = 0; d < 2; ++d) {
          EXPECT_EQ(t[0].at(2 * at + d), mask.at(at) == 1 ? t[1].at(2 * r + d) : 0.0);
          EXPECT_NEAR(t[2].at(2 * at + d), mask.at(at) == 1 ? t[3].at(2 * r + d) : 0.0, 1e-6);
        }
        r += mask.at(at) == 1;
      }
      for (std::size_t i = 4; i < t.size(); i += 2)
        EXPECT_NEAR(t[i].item(), t[i + 1].item(), 1e-6) << all.losses[(i - 4) / 2].name;
    }
}

TEST(GridQuantizer, AMaskOfPaddingAloneGivesLossesOfZero) {
  QuantizerConfig c = binary("lfq", 4);
  c.entropy = 1;
  const Fixture f(c);
  Tape tape;
  QuantizeContext context = training(tape);
  context.mask = tape.constant(Tensor({DType::f32, {3}}));
  const Quantized out = (*f.quantizer)(tape.constant(floats({3, 2}, {1, 2, 3, 4, 5, 6})), context);
  expect_near(run_once(tape, {out.total_loss()})[0], {0}, 1e-12);
}

TEST(GridQuantizer, MapsOfAnyRankGiveTheSameRows) {
  for (const Small& s : small_ones()) {
    SCOPED_TRACE(s.config.quantizer);
    const Fixture f(s.config);
    const Tensor rows = normal_init({24, s.dim}, 0, 1, 6, "rows");
    Tape tape;
    const Quantized flat = (*f.quantizer)(tape.constant(rows));
    for (const std::vector<std::int64_t>& leading :
         {std::vector<std::int64_t>{4, 6}, std::vector<std::int64_t>{2, 3, 4}, std::vector<std::int64_t>{2, 3, 2, 2}}) {
      std::vector<std::int64_t> shape = leading;
      shape.push_back(s.dim);
      const Quantized out = (*f.quantizer)(reshape(tape.constant(rows), Shape(shape)));
      EXPECT_EQ(out.z_q.shape(), Shape(shape));
      EXPECT_EQ(out.indices.shape(), f.quantizer->index_shape(Shape(shape)));
      std::vector<std::int64_t> index_shape = leading;
      if (f.quantizer->books() > 1) index_shape.push_back(f.quantizer->books());
      EXPECT_EQ(out.indices.shape(), Shape(index_shape));
      EXPECT_EQ(out.z.shape(), Shape({24, s.dim}));
      const std::vector<Tensor> t = run_once(tape, {out.z_q, flat.z_q, f.quantizer->decode(out.indices),
                                                    f.quantizer->requantize(out.indices), out.indices});
      expect_same_bits(t[0].reshaped(t[1].shape()), t[1]);
      expect_same_bits(t[2], t[0]);
      expect_same_bits(t[3], t[4]);
    }
  }
}

// ---- latent: its values learn

TEST(Latent, ItsValuesStartEvenlySpacedWithZeroAmongThem) {
  const Fixture f(config("latent", {4, 5, 1}));
  ASSERT_EQ(f.root.parameters().size(), 1u);
  EXPECT_EQ(f.root.parameters()[0]->name(), "q.values");
  expect_near(f.root.parameters()[0]->value(), {-0.5, -0.25, 0, 0.25, -0.5, -0.25, 0, 0.25, 0.5, 0}, 1e-7);
}

TEST(Latent, ItsCodebookLossAloneTrainsItsValues) {
  const Fixture f(config("latent", {2, 3}));  // -.5 0 | -.5 0 .5
  Tape tape;
  const Value z = tape.constant(floats({2, 2}, {-0.75f, 1, 0.25f, 0.25f}));
  const Quantized out = (*f.quantizer)(z, training(tape));
  Variable& variable = *f.root.parameters()[0];
  const Value values = tape.read(variable);
  // Of the four numbers -.75 -> -.5, 1 -> .5, .25 -> 0, .25 -> 0 (a tie goes to the lower index): 2 (q - z) / 4.
  const std::vector<Tensor> t = run_once(tape, {gradient(out.loss("codebook"), values), out.loss("codebook"),
                                                out.loss("commitment"), gradient(out.loss("commitment"), z)});
  expect_near(t[0], {0.125, -0.125, 0, -0.125, -0.25}, 1e-7);
  expect_near(t[1], {(0.0625 + 0.25 + 0.0625 + 0.0625) / 4}, 1e-7);
  expect_near(t[2], {(0.0625 + 0.25 + 0.0625 + 0.0625) / 4}, 1e-7);
  expect_near(t[3], {-0.125, 0.25, 0.125, 0.125}, 1e-7);
  expect_error(ErrorKind::unreachable_gradient, {"q.values"}, [&] { gradient(sum(out.z_q), values); });
  expect_error(ErrorKind::unreachable_gradient, {"q.values"}, [&] { gradient(out.loss("commitment"), values); });
}

TEST(Latent, StepsOnItsLossMoveItsValuesToTheData) {
  const Fixture f(config("latent", {3}));
  Variable& variable = *f.root.parameters()[0];
  const std::vector<float> data{-2, -2.2f, -1.8f, 0.1f, -0.1f, 0, 4, 4.5f, 3.5f};
  Tape tape;
  const Quantized out = (*f.quantizer)(tape.constant(floats({9, 1}, data)), training(tape));
  const Value values = tape.read(variable), loss = out.loss("codebook");
  tape.assign(variable, values - gradient(loss, values));
  Program program = compile(tape, {loss}, backend("reference"));
  for (int i = 0; i < 60; ++i) program.run();
  expect_near(variable.value(), {-2, 0, 4}, 1e-4);
  program.run();
  EXPECT_NEAR(program.fetch_scalar(loss), (2 * 0.04 + 2 * 0.01 + 2 * 0.25) / 9, 1e-5);
}

TEST(Latent, WithoutAGridEachDimensionHasAsManyLevelsAsCodes) {
  QuantizerConfig c = binary("latent", 7);
  c.dim = 3;
  const Fixture f(c);
  EXPECT_EQ(f.quantizer->dim(), 3);
  EXPECT_EQ(f.quantizer->books(), 3);
  EXPECT_EQ(f.quantizer->codes(), 7);
  EXPECT_EQ(f.quantizer->index_shape({2, 5, 3}), Shape({2, 5, 3}));
  EXPECT_NEAR(Fixture(config("latent", {3, 4, 1})).quantizer->bits_per_row(), std::log2(12.0), 1e-12);
}

// ---- in the VQ-VAE

TEST(GridQuantizer, TrainsInTheVqVaeOnEveryBackend) {
  for (const std::string_view name : backend_names())
    for (QuantizerConfig q : {config("fsq", {8, 5, 5}), config("fsq-symmetric", {5, 5, 5}), binary("lfq", 64),
                              binary("bsq", 64), config("latent", {5, 5, 5, 5})}) {
      SCOPED_TRACE(std::string(name) + " " + q.quantizer);
      if (q.quantizer == "lfq" || q.quantizer == "bsq") q.entropy = 0.01, q.entropy_temperature = 1;
      VqVaeConfig c;
      c.height = c.width = 8;
      c.hidden = 16;
      c.residual = 4;
      c.residual_blocks = 1;
      c.quantizer = q;
      c.batch = 8;
      c.lr = 5e-3;
      c.window = 2;
      VqVae model(c);
      const std::int64_t dim = model.quantizer().dim();
      EXPECT_EQ(model.find("encoder.out.weight").type().shape, Shape({1, 1, 16, dim}));
      EXPECT_EQ(model.find("decoder.conv.weight").type().shape, Shape({3, 3, dim, 16}));
      VqVaeTraining training(model);
      Tape tape;
      const TrainStep step = build_train_step(tape, training);
      Program program = compile(tape, step.fetches(), backend(name));
      program.feed(step.images, uniform_init({8, 8, 8, 1}, 0, 1, 1, "images"));
      program.feed(step.learning_rate, floats({}, {static_cast<float>(c.lr)}));
      std::vector<double> losses;
      for (int i = 0; i < 5; ++i) {
        program.run();
        losses.push_back(program.fetch_scalar(step.reconstruction));
        for (const NamedValue& m : step.metrics) EXPECT_TRUE(std::isfinite(program.fetch_scalar(m.value))) << m.name;
      }
      EXPECT_LT(losses.back(), losses.front());
      // Tokens and back.
      Tape use;
      const Value tokens = model.tokens(use.constant(uniform_init({2, 8, 8, 1}, 0, 1, 2, "images")));
      EXPECT_EQ(tokens.shape(), model.token_shape(2));
      const Value again = model.quantizer().requantize(tokens);
      const std::vector<Tensor> t = run_once(use, {tokens, again, model.decode(tokens)}, {}, name);
      expect_same_bits(t[0], t[1]);
      EXPECT_EQ(t[2].shape(), Shape({2, 8, 8, 1}));
    }
}

TEST(GridQuantizer, BadConfigurationsAreRefusedByWhatIsWrong) {
  const auto refused = [](const QuantizerConfig& c, const std::vector<std::string>& parts) {
    Module root;
    expect_error(ErrorKind::usage, parts, [&] { make_quantizer(root, "q", c); });
  };
  refused(binary("fsq", 512), {"fsq", "512", "256, 1024, 4096, 16384 or 65536"});
  refused(binary("fsq-symmetric", 100), {"fsq-symmetric", "100"});
  refused(config("fsq", {5, 2}), {"2 levels", "at least 3"});
  refused(config("fsq-symmetric", {1}), {"1 levels", "at least 2"});
  refused(config("fsq", {2048, 2048, 2048}), {"2^31"});
  refused(binary("lfq", 100), {"lfq", "100 codes", "power of two"});
  refused(binary("bsq", 1), {"bsq", "1 codes"});
  refused(config("latent", {3, 0}), {"latent", "0 levels"});
  QuantizerConfig c = config("fsq-symmetric", {3});
  c.dither = 1.5;
  refused(c, {"dither is 1.5"});
  c = binary("lfq", 8);
  c.entropy_temperature = 0;
  refused(c, {"temperature 0"});

  const Fixture f(binary("lfq", 8));
  Tape tape;
  const Value wide = tape.input("wide", {DType::f32, {4, 5}}), z = tape.input("z", {DType::f32, {2, 4, 3}});
  expect_error(ErrorKind::shape, {"lfq 'q'", "f32[4,5]", "rows of 3"}, [&] { (*f.quantizer)(wide); });
  QuantizeContext context;
  context.mask = tape.input("mask", {DType::f32, {8}});
  expect_error(ErrorKind::shape, {"mask is f32[8]", "f32[2,4]"}, [&] { (*f.quantizer)(z, context); });
  expect_error(ErrorKind::dtype, {"f32[2,4,3]", "i32"}, [&] { f.quantizer->decode(z); });
  const Fixture latent(config("latent", {2, 2}));
  expect_error(ErrorKind::shape, {"f32[2,4,3]", "i32 with 2"}, [&] { latent.quantizer->decode(z); });
}

}  // namespace
}  // namespace sg
