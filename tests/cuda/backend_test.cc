// The cuda backend beyond conformance: bits that must equal the CPU's, results that must not depend on the schedule,
// errors that only the device sees, and what explain() says.
#include <cmath>
#include <limits>

#include "core/autodiff.h"
#include "ops/elementwise.h"
#include "ops/estimator_check.h"
#include "ops/estimator_table.h"
#include "ops/index.h"
#include "ops/norm.h"
#include "ops/random.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/cuda/support.h"

namespace sg::test {
namespace {

using CudaBackend = CudaTest;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

Tensor state_of(std::int32_t seed, std::int32_t step) { return Tensor::of<std::int32_t>({2}, {seed, step}); }

TEST_F(CudaBackend, UniformNumbersAreTheCpusToTheBit) {
  for (const DType t : {DType::f32, DType::f64}) {
    Tape tape;
    const auto [here, there] = on_both(uniform(tape.constant(state_of(7, 11)), {1001}, t));
    EXPECT_TRUE(same_bits(here, there)) << to_string(t);
  }
}

// Logarithm, sine and cosine are other libraries', each within an ulp or two of double.
TEST_F(CudaBackend, NormalNumbersAreTheCpusToTheLastDigitsOfADouble) {
  Tape tape;
  const Value state = tape.constant(state_of(7, 11));
  const auto [here, there] = on_both(normal(state, {4001}, DType::f64));
  for (std::int64_t i = 0; i < here.elements(); ++i) ASSERT_NEAR(here.at(i), there.at(i), 4e-15) << i;
  const auto [narrow, wide] = on_both(normal(state, {4001}, DType::f32));
  std::int64_t other = 0;
  for (std::int64_t i = 0; i < narrow.elements(); ++i) other += narrow.at(i) != wide.at(i);
  EXPECT_EQ(other, 0) << "numbers in f32 that differ";
}

TEST_F(CudaBackend, ScatterSumsOneCrowdedRowAndManyEmptyOnes) {
  constexpr std::int64_t kRows = 300, kUpdates = 5000, kWidth = 3;
  Tensor indices({DType::i32, {kUpdates}}), updates({DType::f32, {kUpdates, kWidth}});
  std::vector<double> wanted(kRows * kWidth);
  for (std::int64_t i = 0; i < kUpdates; ++i) {
    const std::int64_t row = i % 5 != 0 ? 123 : i * i % kRows;
    indices.set(i, static_cast<double>(row));
    for (std::int64_t j = 0; j < kWidth; ++j) {
      updates.set(i * kWidth + j, static_cast<double>((i * 7 + j) % 9 - 4));  // exact in any order
      wanted[static_cast<std::size_t>(row * kWidth + j)] += updates.at(i * kWidth + j);
    }
  }
  Tape tape;
  const Tensor sums = eval(scatter_add_rows(tape.constant(indices), tape.constant(updates), kRows), cuda_backend());
  for (std::int64_t i = 0; i < sums.elements(); ++i) ASSERT_EQ(sums.at(i), wanted[static_cast<std::size_t>(i)]) << i;
}

TEST_F(CudaBackend, SumsDoNotDependOnTheSchedule) {
  Tape tape;
  const Value x = normal(tape.constant(state_of(3, 1)), {70, 301});
  const Value index = cast(uniform(tape.constant(state_of(3, 2)), {70}) * 5.0, DType::i32);
  const std::vector<Value> results{sum(x), sum(x, {0}), sum(x, {1}), scatter_add_rows(index, x, 5),
                                   quantile(x, {0.1, 0.77})};
  std::vector<Tensor> first;
  for (int run = 0; run < 4; ++run) {
    Program program = compile(tape, results, cuda_backend());
    program.run();
    for (std::size_t i = 0; i < results.size(); ++i) {
      const Tensor now = program.fetch(results[i]);
      if (run == 0)
        first.push_back(now);
      else
        EXPECT_TRUE(same_bits(now, first[i])) << "result " << i << " of run " << run;
    }
  }
}

TEST_F(CudaBackend, ANumberWinsOverNanAndTiesGoToTheLowestIndex) {
  for (const std::int64_t extent : {std::int64_t{5}, std::int64_t{40}}) {  // a thread per row, a warp per row
    Tensor x({DType::f32, {4, extent}});
    for (std::int64_t j = 0; j < extent; ++j) {
      x.set(j, kNan);                                // nothing but NaN
      x.set(extent + j, j == 3 ? 2.0 : kNan);        // one number
      x.set(2 * extent + j, j >= 2 ? 1.0 : 0.0);     // ties
      x.set(3 * extent + j, j == 0 ? kNan : -1e30);  // NaN first
    }
    Tape tape;
    const Value v = tape.constant(x);
    expect_values(eval(argmax(v, 1), cuda_backend()), {0, 3, 2, 1});
    expect_values(eval(argmin(v, 1), cuda_backend()), {0, 3, 0, 1});
    expect_values(eval(argmax(transpose(v, {1, 0}), 0), cuda_backend()), {0, 3, 2, 1});
  }
}

TEST_F(CudaBackend, OneNanMakesEveryQuantileNan) {
  Tensor x = Tensor::full({DType::f32, {100}}, 1.0);
  Tape clean;
  expect_values(eval(quantile(clean.constant(x), {0.0, 0.3}), cuda_backend()), {1, 1});
  x.set(77, kNan);
  Tape tape;
  const Tensor q = eval(quantile(tape.constant(x), {0.0, 0.3}), cuda_backend());
  EXPECT_TRUE(std::isnan(q.at(0)) && std::isnan(q.at(1)));
}

TEST_F(CudaBackend, QuantilesOrderNegativeNumbersInfinitiesAndDoubles) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  for (const DType t : {DType::f32, DType::f64}) {
    Tape tape;
    const Tensor x = Tensor::of<double>({7}, {3, -inf, -0.0, -2.5, inf, 0.0, -1e30}).cast(t);
    const Tensor q = eval(quantile(tape.constant(x), {0.0, 1.0 / 3, 0.5, 5.0 / 6, 1.0}), cuda_backend());
    const double wanted[] = {-inf, -2.5, 0, 3, inf};
    for (std::int64_t i = 0; i < q.elements(); ++i) EXPECT_EQ(q.at(i), wanted[i]) << to_string(t) << " " << i;
  }
}

// ---- errors that only the device sees

void expect_index_error(const std::function<Value(Value)>& op, const std::vector<std::int32_t>& good,
                        const std::vector<std::int32_t>& bad, const std::string& message) {
  Tape tape;
  const Value indices = tape.input("indices", {DType::i32, {static_cast<std::int64_t>(good.size())}});
  const Value y = op(indices);
  Program program = compile(tape, {y}, backend("cuda"));
  const auto run = [&](const std::vector<std::int32_t>& values) {
    program.feed(indices, Tensor::of<std::int32_t>(indices.shape(), std::span<const std::int32_t>(values)));
    program.run();
    return program.fetch(y);
  };
  const Tensor before = run(good);
  SG_EXPECT_ERROR(attribute, message, run(bad));
  EXPECT_TRUE(same_bits(run(good), before)) << "the program works on after the error";
}

TEST_F(CudaBackend, AnIndexOutOfRangeIsAnErrorAtTheNextFetch) {
  expect_index_error(
      [](Value i) {
        return gather_rows(i.tape->constant(Tensor({DType::f32, {3, 2}})), i);
      },
      {0, 2, 1}, {0, 3, -7}, "gather_rows: index 3 at position 1 is outside [0, 3)");
  expect_index_error(
      [](Value i) {
        return scatter_add_rows(i, i.tape->constant(Tensor::full({DType::f32, {3, 2}}, 1.0)), 4);
      },
      {3, 3, 0}, {3, 4, -1}, "scatter_add_rows: index 4 at position 1 is outside [0, 4)");
  expect_index_error([](Value i) { return histogram(i, 5); }, {4, 0, 4}, {1, 2, -1},
                     "histogram: index -1 at position 2 is outside [0, 5)");
  expect_index_error(
      [](Value i) {
        return cross_entropy(i.tape->constant(Tensor({DType::f32, {3, 2}})), i);
      },
      {0, 1, 1}, {2, 0, 0}, "cross_entropy: index 2 at position 0 is outside [0, 2)");
}

TEST_F(CudaBackend, WithoutADriverItIsAnErrorThatSaysWhy) {
  cuda::Tables none;
  none.no_driver = "libcuda.so.1: cannot open shared object file";
  SG_EXPECT_ERROR(backend, "libcuda.so.1", cuda::make_cuda_backend(none));
}

TEST_F(CudaBackend, OutOfMemorySaysWhatWasAskedFor) {
  SG_EXPECT_ERROR(backend, "out of memory", cuda_backend().allocate(std::size_t{1} << 50));
}

// ---- estimators

TEST_F(CudaBackend, EveryEstimatorKeepsItsPromises) {
  for (const EstimatorDef& def : estimator_table()) {
    if (!def.rows_only) continue;
    SCOPED_TRACE(def.name);
    const BoundEstimator estimator = estimator_by_name(def.name);
    EstimatorCheckOptions options;
    options.backends.push_back(&cuda_backend());
    options.exact_forward = def.exact_forward;
    const EstimatorReport report =
        check_estimator([&](Value z, Value q) { return estimator(z, q); }, backend("reference"), options);
    for (const EstimatorCheck& c : report.checks)  // a gradient to q is declared where these rows are tested
      EXPECT_TRUE(c.ok || (def.reaches_codes && c.name == "jacobian q")) << report.to_string();
  }
}

// ---- explain

TEST_F(CudaBackend, ExplainNamesKernelsRegistersAndOccupancy) {
  Tape tape;
  const Value x = tape.input("x", {DType::f32, {64, 48}});
  const Program program = compile(tape, {transpose(x, {1, 0})}, cuda_backend());
  SG_EXPECT_CONTAINS(program.explain(), "copy_tiled_4, ");
  SG_EXPECT_CONTAINS(program.explain(), " registers, ");
  SG_EXPECT_CONTAINS(program.explain(), " blocks of 256 per multiprocessor");
}

}  // namespace
}  // namespace sg::test
