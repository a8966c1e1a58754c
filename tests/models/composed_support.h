// Shared by the tests of composed quantizers: rows, a training context, differences.
#pragma once
#include <cmath>

#include "models/init.h"
#include "models/quantizers/quantizer.h"
#include "tests/models/support.h"

namespace sg::models_test {

inline Tensor normal_rows(Shape shape, std::uint32_t seed = 1) { return normal_init(shape, 0, 1, seed, "rows"); }

inline QuantizeContext training(Tape& tape, std::int32_t step = 0, Value mask = {}) {
  return {.random = tape.constant(Tensor::of<std::int32_t>({2}, {3, step})), .progress = {}, .mask = mask};
}

inline double largest_difference(const Tensor& a, const Tensor& b) {
  EXPECT_EQ(a.type(), b.type());
  double most = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) most = std::max(most, std::abs(a.at(i) - b.at(i)));
  return most;
}

}  // namespace sg::models_test
