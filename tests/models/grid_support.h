// Shared by the tests of quantizers on grids: one of them by name, in a context of training, on random rows.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "models/init.h"
#include "models/quantizers/quantizer.h"
#include "tests/models/support.h"

namespace sg::models_test {

using Levels = std::vector<std::int64_t>;

inline QuantizerConfig config(std::string name, Levels grid) {
  QuantizerConfig c;
  c.quantizer = std::move(name);
  c.grid = std::move(grid);
  return c;
}

inline QuantizerConfig binary(std::string name, std::int64_t codes) {
  QuantizerConfig c;
  c.quantizer = std::move(name);
  c.codes = codes;
  return c;
}

struct Fixture {
  explicit Fixture(const QuantizerConfig& c) : quantizer(make_quantizer(root, "q", c)) {}
  Module root{7};
  std::unique_ptr<Quantizer> quantizer;
};

inline Value random_state(Tape& tape, std::int32_t step = 0) {
  return tape.constant(Tensor::of<std::int32_t>({2}, {5, step}));
}
inline QuantizeContext training(Tape& tape, std::int32_t step = 0) {
  return {.random = random_state(tape, step), .progress = {}, .mask = {}};
}

inline Tensor doubles(Shape shape, std::uint32_t seed, double deviation = 1) {
  return normal_init(shape, 0, deviation, seed, "x").cast(DType::f64);
}

}  // namespace sg::models_test
