// The x86-64 code generator behind row_jit.h. Built on x86-64 only.
#pragma once
#include <memory>

#include "backends/cpu/row_jit.h"

namespace sg::cpu::jit {

// Null where the program has something that is not generated.
std::unique_ptr<RowJit> make_program(const RowProgram& program, const RowMemory& memory, bool avx512);

}  // namespace sg::cpu::jit
