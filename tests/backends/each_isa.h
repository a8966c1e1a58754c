// Shared by the tests of the instruction sets: the same on each that the processor has, and the accuracy of a function
// over the whole range of floats.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "backends/cpu/kernels.h"
#include "core/error.h"
#include "core/tensor.h"
#include "ops/elementwise.h"

namespace sg::test {

// Calls f once with each of these instruction sets that can be chosen, and puts the old one back.
inline void on_each_isa(std::initializer_list<const char*> names, const std::function<void(const std::string&)>& f) {
  const std::string before = isa_name();
  for (const char* name : names) {
    try {
      set_isa(name);
    } catch (const Error&) {
      std::printf("    not on this processor: %s\n", name);
      continue;
    }
    EXPECT_EQ(isa_name(), name);
    f(name);
  }
  set_isa(before);
}

// Floats of every exponent and sign, a prime step of bits apart, and close ones around 0.
inline std::vector<float> floats_of_every_size() {
  std::vector<float> points;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 16381)
    points.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  for (int i = -40000; i <= 40000; ++i) points.push_back(static_cast<float>(i) * 5e-4f);
  return points;
}

// A function of one float, and how far from the exact value it may be, in units in the last place and above those
// absolutely, on [from, to].
struct Function {
  const char* name;
  Value (*apply)(Operand);
  double (*exact)(double);
  double ulp;
  double from = -HUGE_VAL, to = HUGE_VAL;
  double absolute = 0;
};

inline double exact_gelu(double x) { return 0.5 * x * std::erfc(-x * 0.70710678118654752440); }

// What both executors of row programs promise (the table is in docs/decisions/021-fewer-passes.md).
inline std::vector<Function> functions_of_row_programs() {
  return {
      {"exp", exp, [](double x) { return std::exp(x); }, 1.1},
      {"log", log, [](double x) { return std::log(x); }, 1.0},
      {"acos", acos, [](double x) { return std::acos(x); }, 1.5},
      {"tanh", tanh, [](double x) { return std::tanh(x); }, 1.5},
      {"erf", erf, [](double x) { return std::erf(x); }, 2.5},
      {"sigmoid", sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }, 2.5},
      {"softplus", softplus, [](double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }, 3.0},
      {"silu", silu, [](double x) { return x / (1 + std::exp(-x)); }, 3.5, -87, 3e38},
      {"the end of silu", silu, [](double x) { return x / (1 + std::exp(-x)); }, 3.5, -3e38, -87, 1.1e-36},
      {"gelu", gelu, exact_gelu, 16, -3, 3e38},
      {"the tail of gelu", gelu, exact_gelu, 1000, -12.5, -3},
      {"the end of gelu", gelu, exact_gelu, 1000, -3e38, -12.5, 1.6e-37},
      {"sqrt", sqrt, [](double x) { return std::sqrt(x); }, 0.5},
      {"rsqrt", rsqrt, [](double x) { return 1 / std::sqrt(x); }, 1.6},
      {"sin", sin, [](double x) { return std::sin(x); }, 1.0},
      {"cos", cos, [](double x) { return std::cos(x); }, 1.0},
  };
}

inline std::vector<float> within(const std::vector<float>& points, const Function& f) {
  std::vector<float> some;
  for (const float x : points)
    if (!(x < f.from || x > f.to) && (!std::isnan(x) || !std::isfinite(f.to))) some.push_back(x);
  return some;
}

// y = f(points) to within what the function promises. Subnormal numbers may count as zero, as arguments and as results.
inline void expect_within_ulp(const Tensor& y, const std::vector<float>& points, const Function& f,
                              const std::string& isa) {
  const std::string what = f.name + (" on " + isa);
  for (std::size_t i = 0; i < points.size(); ++i) {
    const bool is_subnormal = std::abs(points[i]) < 0x1p-126f;
    const double x = static_cast<double>(points[i]), wanted = f.exact(is_subnormal ? 0.0 * x : x),
                 got = y.at(static_cast<std::int64_t>(i));
    const auto rounded = static_cast<float>(wanted);
    if (!std::isfinite(rounded)) {
      ASSERT_TRUE(std::isnan(rounded) ? std::isnan(got) : got == wanted || got == static_cast<double>(rounded))
          << what << " of " << points[i] << " is " << got;
    } else if (std::abs(wanted) >= 0x1p-126) {
      const double unit = std::ldexp(1.0, std::ilogb(wanted) - 23);
      ASSERT_LE(std::abs(got - wanted), f.ulp * unit + f.absolute) << what << " of " << points[i];
    } else {
      const bool kept = is_subnormal && got == static_cast<double>(static_cast<float>(f.exact(x)));
      ASSERT_TRUE(kept || std::abs(got) == 0x1p-126 || std::abs(got) <= f.absolute)
          << what << " of " << points[i] << " is " << got;
    }
  }
}

}  // namespace sg::test
