// What the tests of row programs on the cuda backend share: the two executors on the device under test, and comparison
// with the reference backend.
#pragma once
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "backends/cuda/jit.h"
#include "ops/op_ids.h"
#include "tests/cuda/support.h"
#include "tests/cuda_emulator/emulated_driver.h"

namespace sg::test {

enum class Executor { generated, interpreted };
inline const char* name_of(Executor e) { return e == Executor::generated ? "generated" : "interpreted"; }

// The tables of the device under test, as they are and without NVRTC.
inline const cuda::Tables& row_tables(Executor e) {
  static const cuda::Tables& with = cuda::device_of(backend("cuda")).tables();
  static const cuda::Tables without = [] {
    cuda::Tables t = with;
    t.no_nvrtc = "switched off for this test";
    return t;
  }();
  return e == Executor::generated ? with : without;
}
inline const std::string& missing_nvrtc() { return row_tables(Executor::generated).no_nvrtc; }

// The backend without NVRTC lives as long as the process.
inline Backend& row_backend(Executor e) {
  static Backend* const interpreting = cuda::make_cuda_backend(row_tables(Executor::interpreted)).release();
  return e == Executor::generated ? backend("cuda") : *interpreting;
}

// Tests of row programs: nothing of theirs goes to the user's disk cache.
class RowTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    cuda::set_jit_cache_folder("");
  }
  void TearDown() override { cuda::set_jit_cache_folder(std::nullopt); }
};

// The executors of this machine; generated code needs NVRTC, which the caller may miss.
inline std::vector<Executor> executors() {
  if (missing_nvrtc().empty()) return {Executor::generated, Executor::interpreted};
  return {Executor::interpreted};
}

inline Tensor random_tensor(std::mt19937& rng, TensorType type, double lo = -1.5, double hi = 1.5) {
  Tensor t(type);
  std::uniform_real_distribution<double> draw(lo, hi);
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, draw(rng));
  return t;
}

using Feeds = std::vector<std::pair<Value, Tensor>>;

inline std::vector<Tensor> run_on(Backend& backend, const Tape& tape, const std::vector<Value>& fetches,
                                  const Feeds& feeds, CompileOptions options = {}, std::size_t* regions = nullptr) {
  Program p = compile(tape, fetches, backend, options);
  for (const auto& [input, data] : feeds) p.feed(input, data);
  p.fill_arena(std::byte{0xFF});
  p.run();
  if (regions != nullptr)
    for (const Instr& i : p.compiled_tape().instrs()) *regions += i.op == OpId::row_program;
  std::vector<Tensor> out;
  for (const Value& v : fetches) out.push_back(p.fetch(v));
  EXPECT_EQ(cuda::emulated_report(), "");
  return out;
}

// Largest |a - b| / (1 + |a|); NaN where only one of them is a number or infinities differ.
inline double worst_difference(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) {
    const double x = a.at(i), y = b.at(i);
    if ((std::isnan(x) && std::isnan(y)) || x == y) continue;
    const double d = std::abs(x - y) / (1 + std::abs(x));
    worst = d <= worst ? worst : d;
  }
  return worst;
}

// All fetches on both executors within the tolerance of the reference backend.
inline void expect_as_reference(const Tape& tape, const std::vector<Value>& fetches, const Feeds& feeds,
                                double tolerance, const std::string& what, CompileOptions options = {}) {
  const auto want = run_on(reference_backend(), tape, fetches, feeds);
  for (const Executor e : executors()) {
    const auto got = run_on(row_backend(e), tape, fetches, feeds, options);
    for (std::size_t k = 0; k < fetches.size(); ++k)
      EXPECT_LE(worst_difference(want[k], got[k]), tolerance) << what << ", " << name_of(e) << ", fetch " << k;
  }
}

}  // namespace sg::test
