// The rows of the estimator table as a quantizer uses them: with a lookup that has codes, noise, an origin and
// progress.
#include "ops/estimator_rows.h"

#include <cmath>
#include <map>
#include <set>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/gradient.h"
#include "ops/index.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "tests/conformance/cases.h"
#include "tests/ops/matrices.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

Tensor draw(std::uint64_t seed, Shape shape, double scale = 1) {
  Rng rng(seed);
  return normal_reals(shape, scale)(rng);
}

// A lookup in training, or in evaluation: then without noise.
struct Case {
  Tape tape;
  Variable state{"random", Tensor::of<std::int32_t>({2}, {7, 3})};
  BoundEstimator estimator;
  Lookup lookup;

  Case(const std::string& name, const Tensor& z, const Tensor& codes, bool training = true)
      : estimator(estimator_by_name(name)) {
    lookup.z = tape.constant(z);
    lookup.codes = tape.constant(codes);
    lookup.arguments = estimator.arguments;
    if (training) lookup.random = tape.read(state);
    lookup.origin = tape.constant(0.25, {z.dtype(), {z.shape()[1]}});
    lookup.indices =
        estimator.def.assign ? estimator.def.assign(lookup) : nearest_code(lookup.z, lookup.codes, Metric::euclidean);
    lookup.q = gather_rows(lookup.codes, lookup.indices);
  }
  Value estimate() { return estimator.def.estimate(lookup); }
};

class EstimatorRows : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(, EstimatorRows, testing::ValuesIn(estimator_names()), [](const auto& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST_P(EstimatorRows, HaveTheBitsOfTheCodesForwardWhereTheySaySo) {
  for (const char* name : {"reference", "cpu"}) {
    Case c(GetParam(), draw(1, {40, 4}, 30), draw(2, {8, 4}, 0.01));
    const Value z_q = c.estimate();
    Program p = compile(c.tape, {z_q, c.lookup.q}, backend(name));
    p.run();
    EXPECT_EQ(same_bits(p.fetch(z_q), p.fetch(c.lookup.q)), c.estimator.def.exact_forward) << name;
  }
}

TEST_P(EstimatorRows, ReachTheCodesOnlyWhereTheySaySo) {
  Case c(GetParam(), draw(3, {6, 4}), draw(4, {5, 4}));
  const Value total = sum(c.estimate());
  EXPECT_EQ(gradient_flow(total, c.lookup.codes).state == GradientFlow::State::live, c.estimator.def.reaches_codes);
  EXPECT_EQ(gradient_flow(total, c.lookup.z).state == GradientFlow::State::live, GetParam() != "exact");
  EXPECT_EQ(count_ops(c.tape, "one_hot"), 0);
}

TEST_P(EstimatorRows, AssignWithoutNoiseInEvaluation) {
  const Tensor z = draw(5, {30, 4}), codes = draw(6, {7, 4});
  Case c(GetParam(), z, codes, false);
  const Tensor got = eval(c.lookup.indices, reference_backend());
  for (std::int64_t r = 0; r < 30; ++r) {
    std::int64_t best = 0;
    const auto score = [&](std::int64_t k) {
      const Row zr = row_of(z, r), code = row_of(codes, k);
      return GetParam() == "ibq" ? inner(zr, code) : -inner(zr - code, zr - code);
    };
    for (std::int64_t k = 1; k < 7; ++k)
      if (score(k) > score(best)) best = k;
    EXPECT_EQ(got.at(r), static_cast<double>(best)) << "row " << r;
  }
}

// Rows and codes at 0, opposite, equal, and of lengths whose squares underflow.
TEST_P(EstimatorRows, AreFiniteOnDegenerateRows) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const double tiny = dtype == DType::f32 ? 1e-30 : 1e-200;
    const Tensor z = Tensor::of<double>({5, 2}, {0, 0, 1, 2, -1, -2, tiny, tiny, 3, -4}).cast(dtype);
    for (const Tensor& codes :
         {Tensor::of<double>({3, 2}, {0, 0, 1, 2, 30, 40}), Tensor::of<double>({2, 2}, {-2, -4, -2, -4}),
          Tensor::of<double>({2, 2}, {tiny, -tiny, 3, -4})})
      for (const char* name : {"reference", "cpu"}) {
        Case c(GetParam(), z, codes.cast(dtype));
        const Value z_q = c.estimate();
        Value loss = sum(square(z_q) + z_q);
        if (c.estimator.def.losses)
          for (const auto& term : c.estimator.def.losses(c.lookup)) loss = loss + term.weight * term.value;
        if (c.estimator.def.loss_term) loss = loss + c.estimator.def.loss_term(loss, c.lookup, z_q);
        const Value wrt[] = {c.lookup.z, c.lookup.codes};
        const auto g = gradients(loss, wrt, IfUnreachable::zero);
        try {
          Program p = compile(c.tape, {z_q, loss, g[0], g[1]}, backend(name));
          p.run();
          for (const Value& v : {z_q, loss, g[0], g[1]}) {
            const Tensor got = p.fetch(v);
            for (std::int64_t i = 0; i < got.elements(); ++i)
              EXPECT_TRUE(std::isfinite(got.at(i))) << name << " " << to_string(dtype) << " " << c.tape.describe(v.id);
          }
        } catch (const Error& e) {
          if (e.kind() != ErrorKind::unsupported) throw;  // a backend need not have float64
        }
      }
  }
}

TEST(EstimatorLookup, IsRefusedWhereItLacksWhatARowNeeds) {
  Case c("nsvq", draw(7, {4, 3}), draw(8, {5, 3}), false);
  SG_EXPECT_ERROR(usage, "estimator nsvq: the lookup has no random state", c.estimate());
  Case centred("centred", draw(7, {4, 3}), draw(8, {5, 3}));
  EXPECT_TRUE(centred.estimator.def.needs_origin);
  centred.lookup.origin = {};
  SG_EXPECT_ERROR(usage, "estimator centred: the lookup has no origin", centred.estimate());
  SG_EXPECT_ERROR(usage, "a codebook of 1 has no segments", Case("sf-diveq", draw(7, {4, 3}), draw(8, {1, 3})));
}

// ---- noise

TEST(UniformOf, GivesTheNumbersOfItsKey) {
  Variable state("random", Tensor::of<std::int32_t>({2}, {1, 0}));
  Tape tape;
  const Value a = tape.constant(1, {DType::f32, {}}), b = tape.constant(2, {DType::f32, {}}), s = tape.read(state);
  const Shape shape{64};
  const Value first = uniform_of(a, s, shape), other = uniform_of(b, s, shape), plain = uniform(s, shape);
  const Value again = uniform_of(a, s, shape);
  Program p = compile(tape, {first, other, plain, again}, reference_backend());
  p.run();
  EXPECT_TRUE(same_bits(p.fetch(first), p.fetch(again)));
  EXPECT_FALSE(same_bits(p.fetch(first), p.fetch(other)));
  EXPECT_FALSE(same_bits(p.fetch(first), p.fetch(plain)));
}

// Shares of `draws` draws of each of k codes for one z, over that many equal rows.
std::vector<double> shares(const std::string& name, const Tensor& codes, std::int64_t draws) {
  Case c(name, Tensor({DType::f32, {draws, codes.shape()[1]}}), codes);
  const Tensor indices = eval(c.lookup.indices, backend("cpu"));
  std::vector<double> share(static_cast<std::size_t>(codes.shape()[0]), 0.0);
  for (std::int64_t r = 0; r < draws; ++r)
    share[static_cast<std::size_t>(indices.at(r))] += 1.0 / static_cast<double>(draws);
  return share;
}

TEST(SampledEstimators, DrawFromTheSoftmaxOfTheDistances) {
  const Tensor codes = Tensor::of<float>({4, 2}, {0, 0.5f, 1, 0, -0.7f, 0.7f, 0, -1.4f});
  const std::int64_t draws = 20000;
  for (const auto& [name, tau] :
       {std::pair<std::string, double>{"gumbel", 1}, {"reinmax", 1}, {"decoupled:0.5:1", 0.5}}) {
    Row wanted;
    double total = 0;
    for (std::int64_t k = 0; k < 4; ++k) {
      wanted.push_back(std::exp(-inner(row_of(codes, k), row_of(codes, k)) / tau));
      total += wanted.back();
    }
    const auto got = shares(name, codes, draws);
    for (std::size_t k = 0; k < 4; ++k) {
      const double p = wanted[k] / total;
      EXPECT_NEAR(got[k], p, 5 * std::sqrt(p * (1 - p) / static_cast<double>(draws))) << name << " code " << k;
    }
  }
}

// `estimate` softens the choice that `assign` made: its probabilities peak at the drawn index.
TEST(Gumbel, EstimatesWithTheNoiseThatItAssignedWith) {
  Case c("gumbel", draw(9, {200, 3}), draw(10, {6, 3}));
  c.estimate();
  Value probabilities;
  for (const Instr& instr : c.tape.instrs())
    if (op_def(instr.op).name == "softmax") probabilities = c.tape.value(instr.outputs[0]);
  ASSERT_TRUE(probabilities);
  const Value peak = argmax(probabilities), nearest = nearest_code(c.lookup.z, c.lookup.codes);
  Program p = compile(c.tape, {peak, nearest, c.lookup.indices}, reference_backend());
  p.run();
  EXPECT_TRUE(same_bits(p.fetch(peak), p.fetch(c.lookup.indices)));
  EXPECT_FALSE(same_bits(p.fetch(nearest), p.fetch(c.lookup.indices))) << "noise moved no row";
}

TEST(Gumbel, CoolsByEqualFactors) {
  const Tensor z = draw(11, {5, 3}), codes = draw(12, {4, 3});
  for (const auto& [progress, tau] : {std::pair{0.0, 2.0}, {0.5, 1.0}, {1.0, 0.5}}) {
    Case c("gumbel:2:0.5", z, codes, false);
    c.lookup.progress = c.tape.constant(progress, {DType::f32, {}});
    const Value scheduled = gradient(sum(square(c.estimate())), c.lookup.z);
    const Value fixed = gradient(sum(square(soft_one_hot(c.lookup.z, c.lookup.q, c.lookup.codes, tau))), c.lookup.z);
    EXPECT_LT(eval(max(abs(scheduled - fixed)), reference_backend()).item(), 1e-6) << progress;
    EXPECT_GT(eval(max(abs(fixed)), reference_backend()).item(), 1e-3);
  }
}

TEST(Gumbel, TermIsTheDivergenceFromUniform) {
  const Tensor z = draw(13, {5, 3}), codes = draw(14, {4, 3});
  Case c("gumbel", z, codes);
  const auto terms = c.estimator.def.losses(c.lookup);
  ASSERT_EQ(terms.size(), 1u);
  EXPECT_EQ(terms[0].name, "kl_to_uniform");
  EXPECT_EQ(terms[0].weight, 5e-4);
  double wanted = 0;
  for (std::int64_t r = 0; r < 5; ++r) {
    Row p;
    double total = 0;
    for (std::int64_t k = 0; k < 4; ++k) {
      const Row e = row_of(z, r) - row_of(codes, k);
      p.push_back(std::exp(-inner(e, e)));
      total += p.back();
    }
    for (const double x : p) wanted += x / total * std::log(4 * x / total) / 5;
  }
  EXPECT_NEAR(eval(terms[0].value, reference_backend()).item(), wanted, 1e-5);

  Case same("gumbel", z, Tensor({DType::f32, {4, 3}}));
  EXPECT_NEAR(eval(same.estimator.def.losses(same.lookup)[0].value, reference_backend()).item(), 0, 1e-6);
}

TEST(Ibq, TermsAreTheAuthorsLosses) {
  const Tensor z = draw(15, {6, 3}), codes = draw(16, {4, 3});
  Case c("ibq:1:0.5:2", z, codes);
  const auto terms = c.estimator.def.losses(c.lookup);
  ASSERT_EQ(terms.size(), 2u);
  EXPECT_EQ(terms[0].name, "soft_quantization");
  EXPECT_EQ(terms[0].weight, 1);
  const Tensor q = eval(c.lookup.q, reference_backend());
  double squared = 0, sample = 0, batch = 0;
  Row mean_p(4, 0.0);
  for (std::int64_t r = 0; r < 6; ++r) {
    squared += inner(row_of(q, r) - row_of(z, r), row_of(q, r) - row_of(z, r)) / 18;
    Row p;
    double total = 0;
    for (std::int64_t k = 0; k < 4; ++k) p.push_back(std::exp(inner(row_of(z, r), row_of(codes, k)) / 2));
    for (const double x : p) total += x;
    p = 1 / total * p;
    for (const double x : p) sample -= x * std::log(x) / 6;
    mean_p = mean_p + 1.0 / 6 * p;
  }
  for (const double x : mean_p) batch -= x * std::log(x + 1e-5);
  EXPECT_NEAR(eval(terms[0].value, reference_backend()).item(), squared, 1e-5);
  EXPECT_EQ(terms[1].name, "entropy");
  EXPECT_EQ(terms[1].weight, 0.5);
  EXPECT_NEAR(eval(terms[1].value, reference_backend()).item(), sample - batch, 1e-5);
}

// ---- forward values that are not the code

TEST(NsVq, IsAsFarFromZAsTheCodeIs) {
  const Tensor z = draw(17, {50, 4}), codes = draw(18, {6, 4});
  Case c("nsvq", z, codes);
  const Value z_q = c.estimate();
  const Value got = norm(z_q - c.lookup.z, {-1}), wanted = norm(c.lookup.q - c.lookup.z, {-1});
  EXPECT_LT(eval(max(abs(got - wanted)), reference_backend()).item(), 1e-5);
  EXPECT_GT(eval(min(norm(z_q - c.lookup.q, {-1})), reference_backend()).item(), 1e-3) << "the direction is random";
}

TEST(DiVeQ, ComesToTheCodeAsItsVarianceFalls) {
  const Tensor z = draw(19, {50, 4}), codes = draw(20, {6, 4});
  const auto error = [&](const char* name) {
    Case c(name, z, codes);
    return eval(max(norm(c.estimate() - c.lookup.q, {-1})), reference_backend()).item();
  };
  EXPECT_LT(error("diveq:0"), 1e-6);
  const double small = error("diveq:1e-6"), normal = error("diveq");
  EXPECT_GT(small, 1e-4);
  EXPECT_NEAR(normal / small, std::sqrt(1e3), 3);
}

TEST(SfDiVeQ, PutsRowsOnSegmentsOneStretchForEach) {
  const Tensor z = draw(21, {60, 3}), codes = draw(22, {5, 3});
  Case c("sf-diveq:0", z, codes);
  const Value z_q = c.estimate();
  Program p = compile(c.tape, {z_q, c.lookup.indices}, reference_backend());
  p.run();
  const Tensor points = p.fetch(z_q), indices = p.fetch(c.lookup.indices);
  std::map<std::int64_t, double> positions;
  for (std::int64_t r = 0; r < 60; ++r) {
    const auto i = static_cast<std::int64_t>(indices.at(r));
    ASSERT_LE(i, 3);
    const Row from = row_of(codes, i), along = row_of(codes, i + 1) - from, at = row_of(points, r) - from;
    const double t = inner(at, along) / inner(along, along);
    EXPECT_GE(t, -1e-5);
    EXPECT_LE(t, 1 + 1e-5);
    EXPECT_LT(length(at - t * along), 1e-5) << "row " << r << " is off its segment";
    const auto [known, added] = positions.emplace(i, t);
    EXPECT_TRUE(added || std::abs(known->second - t) < 1e-5) << "segment " << i;
    // The segment was chosen for the point at its t: of the points in use, none is nearer.
    for (const auto& [other, s] : positions) {
      const Row rival = row_of(codes, other) + s * (row_of(codes, other + 1) - row_of(codes, other));
      EXPECT_LE(length(row_of(z, r) - row_of(points, r)), length(row_of(z, r) - rival) + 1e-5);
    }
  }
  EXPECT_GT(positions.size(), 1u);
}

TEST(SfDiVeQ, TakesAnIndexOfTheLastCode) {
  const Tensor z = draw(23, {4, 3}), codes = draw(24, {5, 3});
  Case c("sf-diveq:0", z, codes);
  c.lookup.indices = c.tape.constant(Tensor::of<std::int32_t>({4}, {4, 4, 0, 4}));
  c.lookup.q = gather_rows(c.lookup.codes, c.lookup.indices);
  const Tensor points = eval(c.estimate(), reference_backend());
  const Row from = row_of(codes, 3), along = row_of(codes, 4) - from, at = row_of(points, 0) - from;
  EXPECT_LT(length(at - inner(at, along) / inner(along, along) * along), 1e-5);
}

}  // namespace
}  // namespace sg::test
