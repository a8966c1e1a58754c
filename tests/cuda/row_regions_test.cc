// Regions as models have them, forward and backward, over rows of every length that is executed in another way: softmax
// and norms, the rotation trick, an optimizer, sums over all rows.
#include <limits>

#include "core/autodiff.h"
#include "core/variable.h"
#include "models/optim.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/norm.h"
#include "ops/reduce.h"
#include "ops/shape_ops.h"
#include "tests/cuda/row_support.h"

namespace sg::test {
namespace {

class CudaRowRegions : public RowTest {};

// Part of a warp, a warp, a block with its values kept, rows that fit no registers; whole vectors and not.
constexpr std::int64_t kLengths[] = {1, 2, 31, 32, 33, 64, 130, 1000, 2048, 5000, 20000};

TEST_F(CudaRowRegions, SoftmaxAndNormsForwardAndBackward) {
  std::mt19937 rng(11);
  for (const std::int64_t columns : kLengths)
    for (const std::int64_t rows : {1, 5}) {
      Tape t;
      const Value x = t.input("x", {DType::f32, {rows, columns}}), w = t.input("w", {DType::f32, {rows, columns}});
      const Value gamma = t.input("gamma", {DType::f32, {columns}}), beta = t.input("beta", {DType::f32, {columns}});
      std::vector<Value> fetches{softmax(x), log_softmax(x), layer_norm(x, gamma, beta), rms_norm(x, gamma)};
      const Value loss = sum(w * fetches[0]) + sum(w * fetches[1]) + sum(w * fetches[2]) + sum(w * fetches[3]);
      for (const Value v : gradients(loss, std::vector<Value>{x, gamma, beta})) fetches.push_back(v);
      const Feeds feeds{{x, random_tensor(rng, x.type(), -3, 3)},
                        {w, random_tensor(rng, w.type())},
                        {gamma, random_tensor(rng, gamma.type())},
                        {beta, random_tensor(rng, beta.type())}};
      expect_as_reference(t, fetches, feeds, columns <= 2 ? 2e-3 : 2e-5,
                          std::to_string(rows) + " rows of " + std::to_string(columns));
    }
}

TEST_F(CudaRowRegions, RotationTrickForwardAndBackward) {
  std::mt19937 rng(12);
  for (const std::int64_t columns : {1, 7, 32, 64, 1000}) {
    Tape t;
    const Value z = t.input("z", {DType::f32, {23, columns}}), q = t.input("q", {DType::f32, {23, columns}});
    const Value g = t.input("g", {DType::f32, {23, columns}});
    const Value zq = rotation_trick(z, q);
    const Value dz = vjp(std::span(&zq, 1), std::span(&g, 1), std::span(&z, 1))[0];
    Tensor zs = random_tensor(rng, z.type()), qs = random_tensor(rng, q.type());
    for (std::int64_t c = 0; c < columns; ++c) {  // degenerate rows: z = 0, q = 0, q = -z, q = z
      zs.set(c, 0), qs.set(columns + c, 0);
      qs.set(2 * columns + c, -zs.at(2 * columns + c)), qs.set(3 * columns + c, zs.at(3 * columns + c));
    }
    expect_as_reference(t, {zq, dz}, {{z, zs}, {q, qs}, {g, random_tensor(rng, g.type())}}, 2e-5,
                        std::to_string(columns) + " columns");
  }
}

// The forward value of a straight-through estimator is the other's, to the bit.
TEST_F(CudaRowRegions, ExactForward) {
  std::mt19937 rng(13);
  Tape t;
  const Value z = t.input("z", {DType::f32, {50, 16}}), q = t.input("q", {DType::f32, {50, 16}});
  const Value y = 2.0 * straight_through(z * 1000.0, q * 1e-3);
  const Feeds feeds{{z, random_tensor(rng, z.type())}, {q, random_tensor(rng, q.type())}};
  const Tensor want = run_on(reference_backend(), t, {2.0 * (q * 1e-3)}, feeds)[0];
  for (const Executor e : executors())
    EXPECT_LE(worst_difference(want, run_on(row_backend(e), t, {y}, feeds)[0]), 1e-9) << name_of(e);
}

TEST_F(CudaRowRegions, SumsOverAllRows) {
  std::mt19937 rng(14);
  for (const DType dtype : {DType::f32, DType::f64})
    for (const auto& [rows, columns] : {std::pair<std::int64_t, std::int64_t>{3, 4099},
                                        {2, 20000},
                                        {4097, 3},
                                        {1000, 64},
                                        {70000, 1},
                                        {1, 70001},
                                        {300, 33}}) {
      Tape t;
      const Value x = t.input("x", {dtype, {rows, columns}}), y = t.input("y", {dtype, {rows, columns}});
      const Value p = x * y + 0.25;
      const Value length = sqrt(sum(square(p), {-1}, true));
      const std::vector<Value> fetches{sum(p, {0}), sum(square(p)), sum(p / length, {0}), sum(length), p / length};
      expect_as_reference(t, fetches, {{x, random_tensor(rng, x.type())}, {y, random_tensor(rng, y.type())}},
                          dtype == DType::f32 ? 2e-6 : 1e-13, std::to_string(rows) + " x " + std::to_string(columns));
      expect_as_reference(t, {fetches[0], fetches[1]},
                          {{x, random_tensor(rng, x.type())}, {y, random_tensor(rng, y.type())}},
                          dtype == DType::f32 ? 2e-6 : 1e-13,
                          std::to_string(rows) + " x " + std::to_string(columns) + " without row sums");
    }
}

// Values of a sample and channel: operands and sums, few and many samples, rows of every way to run them; with sums
// along the rows and without.
TEST_F(CudaRowRegions, ValuesOfSegments) {
  std::mt19937 rng(16);
  for (const DType dtype : {DType::f32, DType::f64})
    for (const Shape& shape : {Shape{3, 5, 33}, Shape{2, 300, 64}, Shape{1100, 3, 8}, Shape{4, 2, 3000},
                               Shape{2, 3, 3, 20000}, Shape{5, 7, 4}}) {
      Shape of_sample = shape;
      for (int k = 1; k + 1 < shape.rank(); ++k) of_sample = of_sample.with(k, 1);
      const Axes positions = shape.rank() == 4 ? Axes{1, 2} : Axes{1};
      Tape t;
      const Value x = t.input("x", {dtype, shape}), s = t.input("s", {dtype, of_sample}),
                  g = t.input("g", {dtype, {shape[-1]}});
      const Value y = x * s + g;
      const Value z = y / sqrt(sum(square(y), {-1}, true) + 1.0) - s;
      const Feeds feeds{
          {x, random_tensor(rng, x.type())}, {s, random_tensor(rng, s.type())}, {g, random_tensor(rng, g.type())}};
      const double tolerance = dtype == DType::f32 ? 5e-6 : 1e-13;
      std::size_t regions = 0;
      run_on(row_backend(Executor::interpreted), t, {y, sum(y * x, positions)}, feeds, {}, &regions);
      EXPECT_EQ(regions, 1u) << to_string(shape);
      expect_as_reference(t, {y, sum(y * x, positions), sum(y)}, feeds, tolerance, to_string(shape));
      expect_as_reference(t, {y * 2.0}, feeds, tolerance, to_string(shape) + ", no sums");
      expect_as_reference(t, {z, sum(z, positions, true), sum(square(y), positions), sum(z)}, feeds, tolerance,
                          to_string(shape) + ", sums of rows");
    }
}

TEST_F(CudaRowRegions, GroupNormForwardAndBackward) {
  std::mt19937 rng(17);
  Tape t;
  const Value x = t.input("x", {DType::f32, {3, 5, 4, 24}}), w = t.input("w", x.type());
  const Value gamma = t.input("gamma", {DType::f32, {24}}), beta = t.input("beta", {DType::f32, {24}});
  std::vector<Value> fetches{group_norm(x, gamma, beta, 6)};
  for (const Value v : gradients(sum(w * fetches[0]), std::vector<Value>{x, gamma, beta})) fetches.push_back(v);
  Feeds feeds;
  for (const Value v : {x, w, gamma, beta}) feeds.emplace_back(v, random_tensor(rng, v.type()));
  expect_as_reference(t, fetches, feeds, 2e-5, "group_norm");
}

// Of a row with a NaN all are NaN; an infinity is larger than any number.
TEST_F(CudaRowRegions, ReductionsOfSpecialNumbers) {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  for (const DType dtype : {DType::f32, DType::f64})
    for (const std::int64_t columns : {3, 70, 3000}) {
      std::mt19937 rng(18);
      Tape t;
      const Value x = t.input("x", {dtype, {7, columns}});
      Tensor data = random_tensor(rng, x.type());
      const std::int64_t last = columns - 1, middle = columns / 2;
      data.set(0 * columns + last, nan), data.set(1 * columns, nan), data.set(2 * columns + middle, nan);
      data.set(3 * columns + last, inf), data.set(4 * columns, -inf);
      data.set(5 * columns, inf), data.set(5 * columns + middle, nan), data.set(5 * columns + last, -inf);
      const Value y = x * 2.0;
      const std::vector<Value> fetches{max(y, {-1}), min(y, {-1}), sum(y, {-1}), y - max(y, {-1}, true), sum(y, {0})};
      expect_as_reference(t, fetches, {{x, data}}, 1e-5, std::to_string(columns) + " columns");
    }
}

// Outputs may lie over inputs that a later pass over the row reads first, or reads again.
TEST_F(CudaRowRegions, OutputsOverInputs) {
  for (const std::int64_t columns : {16, 1000, 30000}) {
    std::mt19937 rng(19);
    Tape t;
    const Value x = t.input("x", {DType::f32, {columns, 6}}), y = t.input("y", {DType::f32, {columns, 6}});
    const Value a = transpose(x, {1, 0}), b = transpose(y, {1, 0});  // made in the arena, and needed by nobody else
    const Value length = sum(abs(b), {-1}, true);
    const std::vector<Value> fetches{transpose(b + 1.0, {1, 0}), transpose(a / length, {1, 0}), b * length};
    expect_as_reference(t, fetches, {{x, random_tensor(rng, x.type())}, {y, random_tensor(rng, y.type())}}, 1e-5,
                        std::to_string(columns) + " columns");
  }
}

// Shared memory, shuffles and scratch of every way to take a row, in several orders of warps and blocks.
TEST_F(CudaRowRegions, MakeNoRaceAndReadNothingUnwritten) {
  if (!row_tables(Executor::generated).emulated) GTEST_SKIP() << "the emulated driver's checks";
  for (const Executor e : executors()) row_backend(e);
  for (std::uint64_t seed = 1; seed <= 3; ++seed) {
    const cuda::EmulatorScope scope({.seed = seed, .check_races = true, .check_initialised = true});
    std::mt19937 rng(17);
    for (const std::int64_t columns : {5, 130, 1000, 5000}) {
      Tape t;
      const Value x = t.input("x", {DType::f32, {5, columns}}), w = t.input("w", {DType::f32, {5, columns}});
      const Value gamma = t.input("gamma", {DType::f32, {columns}}), beta = t.input("beta", {DType::f32, {columns}});
      const Value loss = sum(w * layer_norm(x, gamma, beta)) + sum(w * softmax(x));
      std::vector<Value> fetches = gradients(loss, std::vector<Value>{x, gamma, beta});
      fetches.push_back(max(x * w, {-1}));
      fetches.push_back(sum(x * w, {0}));
      expect_as_reference(t, fetches,
                          {{x, random_tensor(rng, x.type(), -3, 3)},
                           {w, random_tensor(rng, w.type())},
                           {gamma, random_tensor(rng, gamma.type())},
                           {beta, random_tensor(rng, beta.type())}},
                          2e-5, std::to_string(columns) + " columns, seed " + std::to_string(seed));
    }
  }
}

// Ten steps of Adam: state in variables, in-place updates, f64 scalars among f32.
TEST_F(CudaRowRegions, AdamStepsAreThoseOfTheReference) {
  for (const Executor e : executors()) {
    std::vector<Tensor> after[2];
    for (const bool reference : {true, false}) {
      std::mt19937 rng(15);
      Variable a("a", random_tensor(rng, {DType::f32, {70, 65}})), b("b", random_tensor(rng, {DType::f32, {65}}));
      Tape t;
      Adam adam({&a, &b}, {.weight_decay = 0.01});
      const Value loss = mean(square(t.read(a) * t.read(b) - 0.3)) + mean(abs(t.read(b)));
      adam.apply(t, gradients(loss, std::vector<Value>{t.read(a), t.read(b)}), t.constant(0.01, {DType::f32, {}}));
      Program p = compile(t, {loss}, reference ? reference_backend() : row_backend(e));
      for (int i = 0; i < 10; ++i) p.run();
      after[reference ? 0 : 1].push_back(p.fetch(loss));
      after[reference ? 0 : 1].push_back(a.value());
      after[reference ? 0 : 1].push_back(b.value());
    }
    for (std::size_t k = 0; k < 3; ++k) EXPECT_LE(worst_difference(after[0][k], after[1][k]), 1e-5) << name_of(e) << k;
  }
}

// bf16 among f32: converted where it is loaded and stored, rounded after every op.
TEST_F(CudaRowRegions, Bf16AmongF32) {
  std::mt19937 rng(16);
  for (const std::int64_t columns : {8, 24, 33}) {
    Tape t;
    const Value x = t.input("x", {DType::bf16, {40, columns}}), g = t.input("g", {DType::bf16, {columns}});
    const Value wide = cast(x * g, DType::f32);
    const Value length = sqrt(sum(square(wide), {-1}, true) + 1e-6);
    const Value back = cast(wide / length, DType::bf16);
    expect_as_reference(t, {x * g, back, relu(back) - g, sum(wide, {0})},
                        {{x, random_tensor(rng, x.type())}, {g, random_tensor(rng, g.type())}}, 0x1p-8,
                        std::to_string(columns) + " columns");
  }
}

TEST_F(CudaRowRegions, ExplainSaysFormulaAndBytes) {
  Tape t;
  const Value x = t.input("x", {DType::f32, {8, 4}}), b = t.input("b", {DType::f32, {4}});
  const Value y = sum(square(x * 2.0 + b), {-1});
  for (const Executor e : executors()) {
    const std::string text = compile(t, {y}, row_backend(e)).explain();
    EXPECT_NE(text.find("r3 = mul r0 r1; r4 = add r3 r2; r5 = square r4; r6 = row sum r5"), std::string::npos) << text;
    EXPECT_NE(text.find("reads 144 bytes, writes 32"), std::string::npos) << text;
    EXPECT_NE(text.find(name_of(e)), std::string::npos) << text;
  }
}

}  // namespace
}  // namespace sg::test
