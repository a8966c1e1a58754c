// Shared by the tests of the instruction sets: the same on each that the processor has, and the accuracy of a function
// over the whole range of floats.
#pragma once
#include <gtest/gtest.h>

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

// Floats of every exponent and sign, and close ones around 0.
inline std::vector<float> floats_of_every_size() {
  std::vector<float> points;
  for (std::uint64_t bits = 0; bits < (std::uint64_t{1} << 32); bits += 65521)
    points.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(bits)));
  for (int i = -40000; i <= 40000; ++i) points.push_back(static_cast<float>(i) * 5e-4f);
  return points;
}

// y = f(points) to within `ulp` units in the last place of the exact value; subnormal numbers count as zero, as
// arguments and as results.
inline void expect_within_ulp(const Tensor& y, const std::vector<float>& points, double (*exact)(double), double ulp,
                              const std::string& what) {
  for (std::size_t i = 0; i < points.size(); ++i) {
    const double x = static_cast<double>(points[i]), wanted = exact(std::abs(points[i]) < 0x1p-126f ? 0.0 * x : x),
                 got = y.at(static_cast<std::int64_t>(i));
    const auto rounded = static_cast<float>(wanted);
    if (!std::isfinite(rounded)) {
      ASSERT_TRUE(std::isnan(rounded) ? std::isnan(got) : got == wanted || got == static_cast<double>(rounded))
          << what << " of " << points[i] << " is " << got;
    } else if (std::abs(wanted) >= 0x1p-126) {
      const double unit = std::ldexp(1.0, std::ilogb(wanted) - 23);
      ASSERT_LE(std::abs(got - wanted), ulp * unit) << what << " of " << points[i];
    } else {
      ASSERT_TRUE(got == 0 || std::abs(got) == 0x1p-126) << what << " of " << points[i] << " is " << got;
    }
  }
}

}  // namespace sg::test
