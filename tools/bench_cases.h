// The list of `bench ops`: single ops, and compositions that become one region each.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "tools/bench_work.h"

namespace sg::tools {

struct BenchCase {
  std::string name;  // "softmax forward+backward"
  bool region;       // a composition; else one op
  // Records the case on work.tape for rows x columns arrays and sets work.fetches. Scatters and gathers have rows / 16
  // rows in their table.
  std::function<void(BenchWork& work, std::int64_t rows, std::int64_t columns)> record;
  bool positive = false;  // arguments
  bool labels = false;    // indices are below `columns`; else below the table's rows

  std::int64_t index_limit(std::int64_t rows, std::int64_t columns) const;
};
const std::vector<BenchCase>& bench_cases();

// Outputs y and the gradients of sum(y * cotangent) in `wrt`: what a step computes of y, with an input for what comes
// back.
std::vector<Value> with_gradients(Value y, std::span<const Value> wrt);

}  // namespace sg::tools
