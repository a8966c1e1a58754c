// Masks of rows and entropies: against the rows alone.
#include "ops/masks.h"

#include <cmath>
#include <limits>

#include "backends/backends.h"
#include "core/autodiff.h"
#include "ops/elementwise.h"
#include "ops/entropy.h"
#include "ops/reduce.h"
#include "tests/models/support.h"

namespace sg {
namespace {

using namespace models_test;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

TEST(Masks, PaddingCountsNeitherInMeansNorInGradientsWhateverItHolds) {
  for (const std::string_view name : backend_names()) {
    Tape tape;
    const Value x = tape.constant(floats({4, 2}, {1, 2, kNan, 7, 3, 5, kNan, kNan}));
    const Value mask = tape.constant(floats({4}, {1, 0, 1, 0}));
    const Value rows = zero_padding(x, mask), mean = mean_of_rows(square(rows), mask);
    const std::vector<Tensor> t =
        run_once(tape, {mean, mean_row(rows, mask), count_rows(x, mask), gradient(mean, x), rows}, {}, name);
    expect_near(t[0], {39.0 / 4}, 1e-6, "mean");
    expect_near(t[1], {2, 3.5}, 1e-6, "mean row");
    expect_near(t[2], {2}, 0, "rows");
    expect_near(t[3], {0.5, 1, 0, 0, 1.5, 2.5, 0, 0}, 1e-6, "gradient");
    expect_near(t[4], {1, 2, 0, 0, 3, 5, 0, 0}, 0, "rows");
  }
}

TEST(Masks, WithoutAMaskAllAreRowsAndWithoutRowsTheMeanIsZero) {
  Tape tape;
  const Value x = tape.constant(floats({2, 2}, {1, 2, 3, 6}));
  const Value none = tape.constant(floats({2}, {0, 0}));
  const std::vector<Tensor> t = run_once(tape, {mean_of_rows(x, {}), count_rows(x, {}), mean_of_rows(x, none),
                                                mean_row(x, none), mean_row(x, {}), row_numbers(none)});
  expect_near(t[0], {3}, 0);
  expect_near(t[1], {2}, 0);
  expect_near(t[2], {0}, 0);
  expect_near(t[3], {0, 0}, 0);
  expect_near(t[4], {2, 4}, 0);
  expect_near(t[5], {0, 0}, 0);
  EXPECT_EQ(zero_padding(x, {}), x);
  const Value wrong = tape.constant(floats({3}, {1, 1, 1}));
  expect_error(ErrorKind::shape, {"f32[3]", "f32[2,2]"}, [&] { mean_of_rows(x, wrong); });
}

TEST(Masks, RowNumbersAreTheRowsOverAndOver) {
  for (const std::string_view name : backend_names()) {
    Tape tape;
    const Value mask = tape.constant(floats({5}, {1, 0, 1, 1, 0}));
    const Value long_mask = tape.input("mask", {DType::f32, {1000}});
    Tensor third({DType::f32, {1000}});
    for (std::int64_t i = 0; i < 1000; i += 3) third.set(i, 1);  // 334 rows
    const std::vector<Tensor> t =
        run_once(tape, {row_numbers(mask), row_numbers(long_mask)}, {{long_mask, third}}, name);
    expect_near(t[0], {0, 2, 3, 0, 2}, 0);
    for (std::int64_t i = 0; i < 1000; ++i)
      ASSERT_EQ(t[1].at(i), static_cast<double>(3 * (i % 334))) << name << " " << i;
  }
}

TEST(Entropies, OfCertainAndOfUniformRows) {
  Tape tape;
  const Value mask = tape.constant(floats({3}, {1, 1, 0}));
  const Value certain = tape.constant(floats({3, 2}, {50, 0, 0, 50, 50, 0}));
  const Value uniform = tape.constant(floats({3, 4}, std::vector<float>(12, 3)));
  const Entropies a = entropies(certain, mask), b = entropies(uniform), c = entropies(certain);
  const double third = -(2.0 / 3 * std::log(2.0 / 3) + 1.0 / 3 * std::log(1.0 / 3));
  const std::vector<Tensor> t = run_once(tape, {a.of_each, a.of_mean, b.of_each, b.of_mean, c.of_mean});
  expect_near(t[0], {0}, 1e-7);
  expect_near(t[1], {std::log(2)}, 1e-7, "each of two codes has one of the two rows");
  expect_near(t[2], {std::log(4)}, 1e-7);
  expect_near(t[3], {std::log(4)}, 1e-7);
  expect_near(t[4], {third}, 1e-7);
}

}  // namespace
}  // namespace sg
