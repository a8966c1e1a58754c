// What the op table, the cases and the backends say of one op together.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "tests/conformance/conformance.h"

namespace sg::test {

struct OpCoverage {
  std::size_t cases = 0;
  std::string vjp, order2;  // "own", "decompose", "-" (no gradient by nature), "missing"; "ok", "-", "fails"
  std::map<std::string, std::string> kernels;  // by backend: "kernel", "decompose", "alias", "missing"
  std::vector<std::string> holes;
};

bool takes_cases(const OpDef& def);  // not leaves and assign, nor the regions that only the fuser makes
OpCoverage cover(const OpDef& def, bool with_order2);

}  // namespace sg::test
