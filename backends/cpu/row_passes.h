// The ops of a row program as the passes that the interpreter makes over a tile: one each, or several where only the
// last needs what the others make, so that it is never stored.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "backends/cpu/lowering.h"
#include "core/row_program.h"

namespace sg::cpu {

struct RowPass {
  enum Form : std::uint8_t {
    single,        // the op itself, `in` are its operands
    pair,          // (in[0] first in[1]) second in[2], code: simd::pair_code
    two_products,  // in[0] in[1] + in[2] in[3], code 0, or their difference, code 1
    row_products   // the sum of in[0] in[1] along each row
  } form = single;
  int op = 0;  // of the program: the one whose result stays
  int code = 0;
  std::array<int, 4> in{};
  int inputs = 0;
};

// In program order. An op goes into the pass of the only op that reads its result where both are sums, differences,
// products or sums along a row of the type that the program computes in; what is per row or a single number is factor
// or second operand.
std::vector<RowPass> passes_of(const RowProgram& program);

}  // namespace sg::cpu
