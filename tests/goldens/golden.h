// Shared by the tests against PyTorch's numbers: reading them, comparing with them, and in which precisions.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "backends/backends.h"
#include "core/philox.h"
#include "core/tensor.h"

namespace sg::test {

using Json = nlohmann::json;

inline Json golden(const std::string& name) {
  std::ifstream file(std::string(SG_SOURCE_DIR) + "/tests/goldens/" + name);
  if (!file) throw std::runtime_error("cannot open golden " + name);
  return Json::parse(file);
}

inline Tensor tensor(const Json& array, DType dtype) {
  Tensor t({dtype, Shape(array.at("shape").get<std::vector<std::int64_t>>())});
  const Json& data = array.at("data");
  if (static_cast<std::int64_t>(data.size()) != t.elements())
    throw std::runtime_error("golden: data do not fill shape");
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, data[static_cast<std::size_t>(i)].get<double>());
  return t;
}

inline double largest(const Tensor& t) {
  double most = 0;
  for (std::int64_t i = 0; i < t.elements(); ++i) most = std::max(most, std::abs(t.at(i)));
  return most;
}

// Each element within `tolerance` of the golden, relative to the larger of its size and `scale`.
inline void expect_near(const Tensor& actual, const Json& array, double tolerance, double scale,
                        const std::string& what) {
  const Tensor expected = tensor(array, DType::f64);
  ASSERT_EQ(actual.shape(), expected.shape()) << what;
  for (std::int64_t i = 0; i < expected.elements(); ++i) {
    const double bound = tolerance * std::max(scale, std::abs(expected.at(i)));
    ASSERT_NEAR(actual.at(i), expected.at(i), bound) << what << ", element " << i;
  }
}

// The numbers that a generator takes from tools/philox.py.
inline std::vector<double> uniforms(std::uint32_t seed, std::uint32_t step, std::uint32_t stream, std::int64_t count) {
  std::vector<double> numbers;
  for (std::uint64_t block = 0; static_cast<std::int64_t>(numbers.size()) < count; ++block)
    for (const double u : uniform_block(random_block(seed, step, stream, block))) numbers.push_back(u);
  numbers.resize(static_cast<std::size_t>(count));
  return numbers;
}

// A backend in the precision that it can be asked for, and what that precision allows.
struct Setting {
  std::string backend;
  DType dtype;
  double tolerance;
};

// The oracle in f64; every backend in f32.
inline std::vector<Setting> settings() {
  std::vector<Setting> all{{"reference", DType::f64, 1e-12}};
  for (const auto name : backend_names()) all.push_back({std::string(name), DType::f32, 5e-6});
  return all;
}

}  // namespace sg::test
