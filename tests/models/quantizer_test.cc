// The vector quantizer: lookup, EMA against its formulas, revival, cosine, k-means.
#include <cmath>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "models/init.h"
#include "models/kmeans.h"
#include "models/quantizers/vector_quantizer.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/reduce.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

const Tensor kCodes = floats({3, 2}, {0, 0, 4, 0, 0, 4});
const Tensor kRows = floats({4, 2}, {1, 0, 3, 1, 5, -1, 0, 1});  // nearest: 0 1 1 0

struct Fixture {
  explicit Fixture(VectorQuantizerConfig config) : quantizer(root, "vq", std::move(config)) {
    quantizer.set_codebook(kCodes);
  }
  Module root{7};
  VectorQuantizer quantizer;
  Tape tape;
  Value z = tape.input("z", {DType::f32, {4, 2}});
  std::vector<Feed> feeds{{z, kRows}};
};

VectorQuantizerConfig small(CodebookUpdate update) {
  VectorQuantizerConfig config;
  config.codes = 3;
  config.dim = 2;
  config.codebook = update;
  return config;
}

TEST(Quantizer, ReplacesEachRowByItsNearestCode) {
  for (const std::string_view name : backend_names()) {
    Fixture f(small(CodebookUpdate::loss));
    const Quantized out = f.quantizer(f.z);
    const std::vector<Tensor> t =
        run_once(f.tape, {out.indices, out.q, out.z_q, out.loss("codebook"), out.loss("commitment")}, f.feeds, name);
    expect_near(t[0], {0, 1, 1, 0}, 0, "indices");
    expect_near(t[1], {0, 0, 4, 0, 4, 0, 0, 0}, 0, "q");
    expect_near(t[2], {0, 0, 4, 0, 4, 0, 0, 0}, 0, "z_q");
    expect_near(t[3], {0.75}, 1e-6);  // (1 + 2 + 2 + 1) / 8
    expect_near(t[4], {0.75}, 1e-6);
  }
}

TEST(Quantizer, TrainedByLossTheCodebookIsAParameterThatOnlyTheCodebookTermReaches) {
  Fixture f(small(CodebookUpdate::loss));
  ASSERT_EQ(f.root.parameters().size(), 1u);
  EXPECT_EQ(f.root.parameters()[0]->name(), "vq.codebook");
  EXPECT_TRUE(f.root.state().empty());
  const Quantized out = f.quantizer(f.z);
  const Value codebook = f.tape.read(f.quantizer.codebook());
  // Rows 0 and 3 pull code 0, rows 1 and 2 pull code 1, nothing pulls code 2: 2 (q - z) / 8, summed.
  expect_near(run_once(f.tape, {gradient(out.loss("codebook"), codebook)}, f.feeds)[0], {-0.25, -0.25, 0, 0, 0, 0},
              1e-6);
  expect_error(ErrorKind::unreachable_gradient, {"vq.codebook"}, [&] { gradient(out.loss("commitment"), codebook); });
  expect_error(ErrorKind::unreachable_gradient, {"vq.codebook"}, [&] { gradient(sum(out.z_q), codebook); });
}

TEST(Quantizer, TheChosenEstimatorDecidesTheEncodersGradient) {
  VectorQuantizerConfig config = small(CodebookUpdate::loss);
  config.estimator = [](Value z, Value q) {
    const Value half = 0.5 * z;
    return half + stop_gradient(q - half);
  };
  Fixture f(config);
  const Quantized out = f.quantizer(f.z);
  const std::vector<Tensor> t = run_once(f.tape, {out.z_q, gradient(sum(out.z_q), f.z)}, f.feeds);
  expect_near(t[0], {0, 0, 4, 0, 4, 0, 0, 0}, 0);
  expect_near(t[1], std::vector<double>(8, 0.5), 1e-7);
}

// N <- g N + (1-g) n, m <- g m + (1-g) s, code <- m / N~ with Laplace's N~: two steps by hand.
TEST(Quantizer, EmaFollowsItsFormulas) {
  for (const std::string_view name : backend_names()) {
    VectorQuantizerConfig config = small(CodebookUpdate::ema);
    config.ema_decay = 0.8;
    config.ema_eps = 0.01;
    Fixture f(config);
    EXPECT_TRUE(f.root.parameters().empty());
    const Quantized out = f.quantizer(f.z);
    const QuantizeContext context{
        .random = f.tape.constant(Tensor::of<std::int32_t>({2}, {1, 0})), .progress = {}, .mask = {}};
    StepUpdates updates(f.tape);
    f.quantizer.update(out, context, updates);
    updates.commit();
    Program program = compile(f.tape, {out.q}, backend(name));
    program.feed(f.z, kRows);

    std::vector<double> n(3, 1), m = numbers(kCodes), code = numbers(kCodes);
    const std::vector<double> rows = numbers(kRows);
    for (int step = 0; step < 2; ++step) {
      std::vector<double> count(3, 0), total(6, 0), looked_up;
      for (std::size_t i = 0; i < 4; ++i) {
        std::size_t best = 0;
        double least = 1e9;
        for (std::size_t k = 0; k < 3; ++k) {
          const double d = std::hypot(rows[2 * i] - code[2 * k], rows[2 * i + 1] - code[2 * k + 1]);
          if (d < least) least = d, best = k;
        }
        count[best] += 1;
        for (std::size_t d = 0; d < 2; ++d)
          total[2 * best + d] += rows[2 * i + d], looked_up.push_back(code[2 * best + d]);
      }
      double sum = 0;
      for (std::size_t k = 0; k < 3; ++k) sum += n[k] = 0.8 * n[k] + 0.2 * count[k];
      for (std::size_t i = 0; i < 6; ++i) {
        m[i] = 0.8 * m[i] + 0.2 * total[i];
        code[i] = m[i] / ((n[i / 2] + 0.01) / (sum + 3 * 0.01) * sum);
      }
      program.run();
      expect_near(program.fetch(out.q), looked_up, 1e-5, "q is looked up in the codes of the start of the step");
      expect_near(f.quantizer.codebook().value(), code, 1e-5, "codebook");
      expect_near(f.root.find("vq.count").value(), n, 1e-6, "count");
      expect_near(f.root.find("vq.sum").value(), m, 1e-5, "sum");
    }
  }
}

TEST(Quantizer, RevivalReplacesDeadCodesByRowsOfTheBatchAndResetsCountAndSumTogether) {
  for (const CodebookUpdate mode : {CodebookUpdate::ema, CodebookUpdate::loss}) {
    VectorQuantizerConfig config = small(mode);
    config.ema_decay = 0.5;
    config.revival = 0.75;  // code 2 is never chosen: its count falls from 1 to 0.5
    Fixture f(config);
    const Quantized out = f.quantizer(f.z);
    const QuantizeContext context{
        .random = f.tape.constant(Tensor::of<std::int32_t>({2}, {11, 0})), .progress = {}, .mask = {}};
    StepUpdates updates(f.tape);
    f.quantizer.update(out, context, updates);
    updates.commit();
    run_once(f.tape, {}, f.feeds);

    const std::vector<double> code = numbers(f.quantizer.codebook().value()), rows = numbers(kRows);
    bool from_batch = false;
    for (std::size_t i = 0; i < 4; ++i) from_batch |= code[4] == rows[2 * i] && code[5] == rows[2 * i + 1];
    EXPECT_TRUE(from_batch) << code[4] << " " << code[5];
    expect_near(f.root.find("vq.count").value(), {1.5, 1.5, 0.75}, 1e-6);
    if (mode == CodebookUpdate::ema) {
      const Tensor& sum = f.root.find("vq.sum").value();
      EXPECT_NEAR(sum.at(4), 0.75 * code[4], 1e-6);
      EXPECT_NEAR(sum.at(5), 0.75 * code[5], 1e-6);
      EXPECT_NEAR(sum.at(0), 0.5 * 1, 1e-6);  // a living code's sum is untouched: 0.5 (0 + 1)
    } else {
      EXPECT_EQ(code[2], 4);  // living codes are the optimizer's
    }
  }
}

TEST(Quantizer, RevivalDrawsDifferentRowsForDifferentRandomStates) {
  std::vector<double> first;
  bool different = false;
  for (std::int32_t step = 0; step < 8; ++step) {
    VectorQuantizerConfig config = small(CodebookUpdate::ema);
    config.revival = 100;  // every code is replaced
    Fixture f(config);
    const QuantizeContext context{
        .random = f.tape.constant(Tensor::of<std::int32_t>({2}, {3, step})), .progress = {}, .mask = {}};
    StepUpdates updates(f.tape);
    f.quantizer.update(f.quantizer(f.z), context, updates);
    updates.commit();
    run_once(f.tape, {}, f.feeds);
    const std::vector<double> code = numbers(f.quantizer.codebook().value());
    if (first.empty()) first = code;
    different |= code != first;
  }
  EXPECT_TRUE(different);
}

TEST(Quantizer, UnderTheCosineMetricLengthsPlayNoPart) {
  VectorQuantizerConfig config = small(CodebookUpdate::loss);
  config.metric = Metric::cosine;
  Fixture f(config);
  f.quantizer.set_codebook(floats({3, 2}, {0.1f, 0, 0, 50, -3, 0}));
  const Quantized out = f.quantizer(f.z);
  f.feeds[0].value = floats({4, 2}, {100, 1, 0.5f, 2, -1e-3f, 0, 3, 2});  // along codes 0, 1, 2, 0
  const std::vector<Tensor> t = run_once(
      f.tape, {out.indices, out.q, out.z_q, f.quantizer.decode(out.indices), f.quantizer.encode(f.z), out.z}, f.feeds);
  expect_near(t[0], {0, 1, 2, 0}, 0, "indices");
  expect_near(t[1], {1, 0, 0, 1, -1, 0, 1, 0}, 1e-6, "q");
  expect_near(t[2], {1, 0, 0, 1, -1, 0, 1, 0}, 1e-6, "z_q");
  expect_near(t[3], {1, 0, 0, 1, -1, 0, 1, 0}, 1e-6, "lookup");
  expect_near(t[4], {0, 1, 2, 0}, 0, "nearest");
  for (std::int64_t i = 0; i < 8; i += 2) EXPECT_NEAR(std::hypot(t[5].at(i), t[5].at(i + 1)), 1, 1e-5);
  // A normalised output has no gradient along its row.
  const Value g = gradient(sum(out.z_q * f.tape.constant(floats({2}, {1, 2}))), f.z);
  const Tensor radial = run_once(f.tape, {g}, f.feeds)[0];
  const std::vector<double> rows = numbers(f.feeds[0].value);
  for (std::int64_t i = 0; i < 8; i += 2)
    EXPECT_NEAR(
        radial.at(i) * rows[static_cast<std::size_t>(i)] + radial.at(i + 1) * rows[static_cast<std::size_t>(i) + 1], 0,
        1e-5);
}

TEST(Quantizer, BadConfigurationsAreRefusedByField) {
  const auto refused = [](auto change, const std::string& part) {
    VectorQuantizerConfig config = small(CodebookUpdate::ema);
    change(config);
    Module root;
    expect_error(ErrorKind::usage, {part}, [&] { VectorQuantizer(root, "vq", config); });
  };
  refused([](auto& c) { c.codes = 0; }, "0 codes");
  refused([](auto& c) { c.dim = -1; }, "-1 dimensions");
  refused([](auto& c) { c.ema_decay = 1; }, "decay 1");
  refused([](auto& c) { c.revival = -2; }, "revival threshold -2");
  expect_error(ErrorKind::usage, {"median", "loss", "ema"}, [] { codebook_update_by_name("median"); });
  expect_error(ErrorKind::usage, {"zeros", "uniform", "normal", "kmeans"}, [] { codebook_init_by_name("zeros"); });
  expect_error(ErrorKind::usage, {"l1", "euclidean", "cosine"}, [] { metric_by_name("l1"); });
  Fixture f(small(CodebookUpdate::loss));
  const Value wide = f.tape.input("wide", {DType::f32, {4, 5}});
  expect_error(ErrorKind::shape, {"f32[4,5]", "rows of 2"}, [&] { f.quantizer(wide); });
}

TEST(KMeans, FindsSeparatedClusters) {
  const double centres[3][2] = {{10, 0}, {-10, 0}, {0, 20}};
  HostRandom random(1, "points");
  std::vector<float> points;
  for (int i = 0; i < 300; ++i)
    for (const double c : centres[i % 3]) points.push_back(static_cast<float>(c + 0.1 * random.normal()));
  const KMeansResult r = kmeans(floats({300, 2}, points), 3, backend("cpu"), {.iterations = 20, .seed = 5});
  for (const auto& c : centres) {
    double least = 1e9;
    for (std::int64_t k = 0; k < 3; ++k)
      least = std::min(least, std::hypot(r.centres.at(2 * k) - c[0], r.centres.at(2 * k + 1) - c[1]));
    EXPECT_LT(least, 0.05);
  }
  expect_near(r.counts, {100, 100, 100}, 0);
  EXPECT_NEAR(r.error, 0.02, 0.005);
}

TEST(KMeans, NeverRaisesTheErrorAndIsDeterministic) {
  const Tensor rows = normal_init({500, 5}, 0, 1, 3, "rows");
  double last = 1e9;
  for (const int iterations : {0, 1, 2, 5, 20}) {
    const KMeansResult r = kmeans(rows, 37, backend("cpu"), {.iterations = iterations, .seed = 8});
    EXPECT_LE(r.error, last * (1 + 1e-6)) << iterations;
    last = r.error;
    expect_same_bits(r.centres, kmeans(rows, 37, backend("cpu"), {.iterations = iterations, .seed = 8}).centres);
  }
  EXPECT_LT(last, kmeans(rows, 37, backend("cpu"), {.iterations = 0, .seed = 8}).error * 0.9);
}

TEST(KMeans, FromRowsStartsAtDistinctRowsDrawnUniformlyAndPlusPlusFarApart) {
  // Three clusters of which one has all but two rows: k-means++ finds them all, a uniform draw of three rows hardly.
  std::vector<float> points{1000, 1001, 1000, 1000};
  for (int i = 0; i < 200; ++i) points.insert(points.end(), {static_cast<float>(i % 7), static_cast<float>(i / 7)});
  points[0] = -1000;
  const Tensor rows = floats({202, 2}, points);
  int plus_plus = 0, uniform = 0;
  for (std::uint32_t seed = 0; seed < 20; ++seed) {
    const auto run = [&](KMeansStart start, int iterations) {
      return kmeans(rows, 3, backend("cpu"), {.iterations = iterations, .seed = seed, .start = start});
    };
    plus_plus += run(KMeansStart::plus_plus, 20).error < 100;
    uniform += run(KMeansStart::rows, 20).error < 100;
    const KMeansResult start = run(KMeansStart::rows, 0);
    expect_same_bits(start.centres, run(KMeansStart::rows, 0).centres);
    for (std::int64_t a = 0; a < 3; ++a) {
      bool is_row = false;
      for (std::int64_t i = 0; i < 202; ++i)
        is_row |= rows.at(2 * i) == start.centres.at(2 * a) && rows.at(2 * i + 1) == start.centres.at(2 * a + 1);
      EXPECT_TRUE(is_row);
      for (std::int64_t b = 0; b < a; ++b)
        EXPECT_TRUE(start.centres.at(2 * a) != start.centres.at(2 * b) ||
                    start.centres.at(2 * a + 1) != start.centres.at(2 * b + 1));
    }
    EXPECT_LE(run(KMeansStart::rows, 20).error, start.error);
  }
  EXPECT_EQ(plus_plus, 20);
  EXPECT_LT(uniform, 10);
}

TEST(Quantizer, KMeansRowsInitialisesToo) {
  VectorQuantizerConfig config = small(CodebookUpdate::loss);
  EXPECT_EQ(codebook_init_by_name("kmeans-rows"), CodebookInit::kmeans_rows);
  config.init = CodebookInit::kmeans_rows;
  Fixture f(config);
  EXPECT_TRUE(f.quantizer.wants_rows());
  f.quantizer.initialize(floats({3, 2}, {1, 1, -5, 0, 0, 9}), backend("cpu"));
  double total = 0;
  for (const double c : numbers(f.quantizer.codebook().value())) total += c;
  EXPECT_EQ(total, 1 + 1 - 5 + 9);
}

TEST(KMeans, WithFewerRowsThanCodesEveryRowIsACentre) {
  const KMeansResult r = kmeans(floats({2, 1}, {1, 5}), 4, backend("cpu"), {.iterations = 5});
  EXPECT_EQ(r.error, 0);
  double rows = 0;
  for (const double c : numbers(r.counts)) rows += c;
  EXPECT_EQ(rows, 2);
  for (const double c : numbers(r.centres)) EXPECT_TRUE(c == 1 || c == 5) << c;
  expect_error(ErrorKind::shape, {"f32[4]"}, [] { kmeans(floats({4}, {1, 2, 3, 4}), 2, backend("cpu")); });
  expect_error(ErrorKind::usage, {"0 codes"}, [] { kmeans(floats({4, 1}, {1, 2, 3, 4}), 0, backend("cpu")); });
}

TEST(Quantizer, InitializeTakesTheCodesFromTheRowsGiven) {
  VectorQuantizerConfig config = small(CodebookUpdate::ema);
  config.init = CodebookInit::kmeans;
  Fixture f(config);
  f.quantizer.initialize(floats({6, 2}, {1, 1, 1, 1, -5, 0, -5, 0, 0, 9, 0, 9}), backend("cpu"));
  std::vector<double> code = numbers(f.quantizer.codebook().value()), sum = numbers(f.root.find("vq.sum").value());
  EXPECT_EQ(code, sum);
  double total = 0;
  for (const double c : code) total += c;
  EXPECT_EQ(total, 1 + 1 - 5 + 9);  // the three distinct rows, in some order
}

}  // namespace
}  // namespace sg
