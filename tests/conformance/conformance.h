// The conformance runner: case x backend x config against the reference backend, forward and every VJP.
#pragma once
#include <string>
#include <vector>

#include "core/program.h"
#include "tests/conformance/cases.h"

namespace sg::test {

struct Config {
  std::string name;
  CompileOptions options;
  int runs = 1;  // replay: garbage is put into the arena before each run but the first
  bool one_thread = false;
  DType real = DType::f32;  // what real inputs are cast to
};

std::vector<Config> configs();
const Config& config_by_name(const std::string& name);

// A case recorded on a tape: y, a cotangent for it where y is real, and the gradients of sum(u * y).
struct CaseGraph {
  Tape tape;
  std::vector<Value> inputs;
  Value output, cotangent;
  std::vector<Value> gradients;  // of the real inputs that a gradient reaches
  std::vector<std::size_t> wrt;  // their indices
};
void record_case(CaseGraph& graph, const Case& c, std::span<const Tensor> inputs, bool with_gradients);

// Cases that --op and --case leave.
std::vector<const Case*> selected_cases();

// Results of y and the gradients, in this order.
struct CaseResults {
  std::vector<Tensor> inputs;
  std::vector<Tensor> values;
};
CaseResults run_case(const Case& c, Backend& backend, const Config& config, std::uint32_t seed);

// What disagrees, or an empty text.
std::string compare_results(const Case& c, const CaseResults& got, const CaseResults& want);

std::string repro(const Case& c, const std::string& backend, const std::string& config, std::uint32_t seed);

void register_case_tests();  // Conformance.* and Gradcheck.*: one gtest test for each case
bool print_coverage();       // ops x {case, vjp, order 2, reference, cpu}; whether there is no hole

}  // namespace sg::test
