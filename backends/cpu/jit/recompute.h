// What a later pass over a row needs of an earlier one can be put aside, or computed again from what is there anyway.
#pragma once
#include <vector>

#include "core/row_program.h"

namespace sg::cpu::jit {

// Repeats cheap ops in the later phases that read their results, where their operands are inputs, numbers per row, or
// ops as cheap: a store and a load less per element, and less of the first-level cache taken. `phase` is that of each
// op before and after; the result says where each op of the program was moved to.
std::vector<std::size_t> recompute_cheap(RowProgram& program, std::vector<int>& phase);

}  // namespace sg::cpu::jit
