// The coverage table: ops x {case, vjp, order 2, reference, cpu}, each cell checked and not declared.
#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <map>

#include "backends/backends.h"
#include "core/gradcheck.h"
#include "tests/conformance/completeness.h"

namespace sg::test {

bool print_coverage() {
  std::vector<std::string> holes;
  std::cout << fmt::format("{:<20} {:>5}  {:<10} {:<8} {:<10}", "op", "cases", "vjp", "order 2", "reference");
  for (const auto name : backend_names())
    if (name != "reference") std::cout << fmt::format(" {:<10}", name);
  std::cout << "\n";
  for (const OpDef& def : op_table()) {
    if (!takes_cases(def)) continue;
    const OpCoverage row = cover(def, true);
    std::cout << fmt::format("{:<20} {:>5}  {:<10} {:<8} {:<10}", def.name, row.cases, row.vjp, row.order2,
                             row.kernels.at("reference"));
    for (const auto& [name, kernel] : row.kernels)
      if (name != "reference") std::cout << fmt::format(" {:<10}", kernel);
    std::cout << "\n";
    for (const auto& hole : row.holes) holes.push_back(fmt::format("{}: {}", def.name, hole));
  }
  for (const auto& hole : holes) std::cout << "HOLE " << hole << "\n";
  std::cout << holes.size() << " holes\n";
  return holes.empty();
}

}  // namespace sg::test
