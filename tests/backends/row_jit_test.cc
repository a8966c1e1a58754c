// Generated code of row programs: the accuracy of its functions over the whole float range, on every instruction set
// that this processor has; its minima, maxima and comparisons on NaN, infinities and zeros; tails of every length.
#include "backends/cpu/row_jit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "backends/backends.h"
#include "backends/cpu/kernels.h"
#include "core/autodiff.h"
#include "core/program.h"
#include "ops/elementwise.h"
#include "ops/estimators.h"
#include "ops/reduce.h"
#include "tests/backends/each_isa.h"
#include "tests/support/expect.h"

namespace sg::test {
namespace {

constexpr std::initializer_list<const char*> kGenerators{"avx2", "avx512"};

CompileOptions unfolded() {
  CompileOptions options;
  options.optimize = false;  // constants are not to be folded
  return options;
}

// The values on the cpu backend, asserting that they came from generated code.
std::vector<Tensor> run_generated(const Tape& tape, const std::vector<Value>& fetches) {
  Program p = compile(tape, fetches, cpu_backend(), unfolded());
  EXPECT_NE(p.explain().find("code of"), std::string::npos) << p.explain();
  p.run();
  std::vector<Tensor> out;
  for (const Value& v : fetches) out.push_back(p.fetch(v));
  return out;
}

TEST(RowJit, FunctionsAreWithinTheirUlp) {
  const std::vector<float> all = floats_of_every_size();
  for (const Function& f : functions_of_row_programs()) {
    if (f.name == std::string("sin") || f.name == std::string("cos")) continue;  // interpreted everywhere
    const std::vector<float> points = within(all, f);
    const Tensor x = Tensor::of<float>({static_cast<std::int64_t>(points.size())}, points);
    on_each_isa(kGenerators, [&](const std::string& isa) {
      Tape tape;
      const Value same =
          abs(-tape.constant(x)) * sign(tape.constant(x));  // more than one op, so that a program is made
      expect_within_ulp(run_generated(tape, {f.apply(same)})[0], points, f, isa);
    });
  }
}

// What the reference backend gives, to the bit, also where numbers are special.
TEST(RowJit, SpecialNumbersAreThoseOfTheReference) {
  const float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> specials{0.f, -0.f, 1.f, -1.f, 0.5f, 1.5f, 2.5f, -2.5f, inf, -inf, nan, 3e38f};
  std::vector<float> left, right;
  for (const float a : specials)
    for (const float b : specials) left.push_back(a), right.push_back(b);
  const auto n = static_cast<std::int64_t>(left.size());
  on_each_isa(kGenerators, [&](const std::string& isa) {
    Tape tape;
    const Value a = tape.constant(Tensor::of<float>({n}, left)), b = tape.constant(Tensor::of<float>({n}, right));
    const std::vector<Value> values{minimum(a, b),
                                    maximum(a, b),
                                    where(less(a, b), a, b),
                                    where(greater_equal(a, b), a, b),
                                    where(not_equal(a, b), a, b),
                                    where(equal(a, b), a, -b),
                                    where(less_equal(a, b), b, a),
                                    where(greater(a, b), b, a),
                                    relu(a) + b,
                                    clamp(a, -1.0, 2.0),
                                    round(a),
                                    floor(a),
                                    sign(a),
                                    leaky_relu(a, 0.125),
                                    abs(a) * b,
                                    a / b};
    const std::vector<Tensor> got = run_generated(tape, values);
    for (std::size_t k = 0; k < values.size(); ++k) {
      const Tensor want = eval(values[k], reference_backend());
      for (std::int64_t i = 0; i < n; ++i) {
        const double x = got[k].at(i), exact = want.at(i);
        const double y = std::abs(exact) < 0x1p-126 ? std::copysign(0.0, exact) : exact;  // subnormals count as zero
        EXPECT_TRUE(std::isnan(x) ? std::isnan(y) : x == y && std::signbit(x) == std::signbit(y))
            << isa << " value " << k << " of " << left[static_cast<std::size_t>(i)] << ", "
            << right[static_cast<std::size_t>(i)] << ": " << x << " instead of " << y;
      }
    }
  });
}

// Rows and columns around every multiple of the vector's lanes; row, column and scalar operands; sums in all
// directions.
TEST(RowJit, EveryTailIsRight) {
  on_each_isa(kGenerators, [&](const std::string& isa) {
    for (const std::int64_t rows : {2, 7, 8, 15, 16, 17, 33, 100})
      for (const std::int64_t columns : {1, 3, 7, 8, 9, 15, 16, 17, 64, 100, 129, 300}) {
        Tensor data({DType::f32, {rows, columns}}), per_column({DType::f32, {columns}});
        for (std::int64_t i = 0; i < data.elements(); ++i) data.set(i, std::sin(0.37 * static_cast<double>(i)) + 0.1);
        for (std::int64_t i = 0; i < columns; ++i) per_column.set(i, std::cos(static_cast<double>(i)));
        Tape tape;
        const Value x = tape.constant(data), c = tape.constant(per_column);
        const Value length = sqrt(sum(square(x), {-1}, true));
        const Value y = x / length * c + 2.0;
        const std::vector<Value> values{y,           length,         max(y, {-1}), min(y - x, {-1}),
                                        sum(y, {0}), sum(square(y)), sum(length)};
        const std::vector<Tensor> got = run_generated(tape, values);
        for (std::size_t k = 0; k < values.size(); ++k) {
          const Tensor want = eval(values[k], reference_backend());
          for (std::int64_t i = 0; i < want.elements(); ++i)
            ASSERT_NEAR(got[k].at(i), want.at(i), 1e-5 * (1 + std::abs(want.at(i))))
                << isa << " " << rows << " x " << columns << " value " << k << " at " << i;
        }
      }
  });
}

// Segments of lengths around the rows of a block, few and many; sums over them and over all rows, and values per row.
TEST(RowJit, SegmentsAreRight) {
  on_each_isa(kGenerators, [&](const std::string& isa) {
    for (const std::int64_t segments : {2, 5, 67})
      for (const std::int64_t rows : {2, 7, 8, 9, 16, 17, 40})
        for (const std::int64_t columns : {3, 8, 16, 33, 150}) {
          Tensor data({DType::f32, {segments, rows, columns}}), per({DType::f32, {segments, 1, columns}});
          for (std::int64_t i = 0; i < data.elements(); ++i) data.set(i, std::sin(0.37 * static_cast<double>(i)) + 0.1);
          for (std::int64_t i = 0; i < per.elements(); ++i) per.set(i, std::cos(0.2 * static_cast<double>(i)));
          Tape tape;
          const Value x = tape.constant(data), s = tape.constant(per);
          const Value y = x * s + 0.5, z = y / sqrt(sum(square(y), {-1}, true) + 1.0) - s;
          const std::vector<Value> values{z, sum(z, {1}), sum(y * x, {1}, true), sum(z, {0, 1}), sum(square(y))};
          const std::vector<Tensor> got = run_generated(tape, values);
          for (std::size_t k = 0; k < values.size(); ++k) {
            const Tensor want = eval(values[k], reference_backend());
            for (std::int64_t i = 0; i < want.elements(); ++i)
              ASSERT_NEAR(got[k].at(i), want.at(i), 1e-5 * (1 + std::abs(want.at(i))))
                  << isa << " " << segments << " x " << rows << " x " << columns << " value " << k << " at " << i;
          }
        }
  });
}

TEST(RowJit, IsUsedForTheRotationTrickAndCanBeSwitchedOff) {
  Tape tape;
  const Value z = tape.input("z", {DType::f32, {48, 20}}), q = tape.input("q", {DType::f32, {48, 20}});
  const Value dz = gradient(sum(square(rotation_trick(z, q))), z);
  const std::string before = isa_name();
  on_each_isa(kGenerators, [&](const std::string& isa) {
    EXPECT_NE(compile(tape, {dz}, cpu_backend()).explain().find(isa + " code of"), std::string::npos);
  });
  cpu::set_code_generation(false);
  EXPECT_EQ(compile(tape, {dz}, cpu_backend()).explain().find("code of"), std::string::npos);
  cpu::set_code_generation(true);
  set_isa("generic");
  EXPECT_EQ(compile(tape, {dz}, cpu_backend()).explain().find("code of"), std::string::npos);
  set_isa(before);
}

}  // namespace
}  // namespace sg::test
