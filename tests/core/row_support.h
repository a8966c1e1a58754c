// What the tests of row programs share: random values, comparison, the executors, and what a program was fused into.
#pragma once
#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "backends/cpu/kernels.h"
#include "backends/cpu/row_jit.h"
#include "core/program.h"
#include "core/tensor.h"

namespace sg::test {

inline Tensor random_tensor(std::mt19937& rng, TensorType type) {
  Tensor t(type);
  std::uniform_real_distribution<double> draw(-1.5, 1.5);
  for (std::int64_t i = 0; i < t.elements(); ++i) t.set(i, draw(rng));
  return t;
}

inline double worst_difference(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (std::int64_t i = 0; i < a.elements(); ++i) {
    const double d = std::abs(a.at(i) - b.at(i)) / (1 + std::abs(a.at(i)));
    worst = d <= worst ? worst : d;  // keeps NaN
  }
  return worst;
}

// Runs f with each way in which row programs are executed here: interpreted, and as code for each instruction set that
// there is.
template <class F>
void on_each_executor(F f) {
  const std::string before = isa_name();
  cpu::set_code_generation(false);
  f("interpreted");
  cpu::set_code_generation(true);
  for (const std::string& isa : isa_names()) {
    set_isa(isa);
    if (cpu::has_generator()) f(isa);
  }
  set_isa(before);
}

// How many row programs a tape has on the cpu backend, and how many steps beside them.
inline std::pair<std::size_t, std::size_t> regions_of(const Program& p) {
  std::size_t regions = 0, others = 0;
  for (const Instr& i : p.compiled_tape().instrs()) {
    const Role role = op_def(i.op).role;
    if (role == Role::region)
      ++regions;
    else if (role != Role::input && role != Role::constant && role != Role::alias)
      ++others;
  }
  return {regions, others};
}

}  // namespace sg::test
