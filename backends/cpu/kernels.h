// The cpu backend's own kernels: every op that oneDNN does not do for us. One table row per op in kernels.cc;
// cpu_backend.cc asks here for whatever its own oneDNN table does not name.
//
// Invariants: kernels share oneDNN's OpenMP runtime, open no nested regions and give the same bits for any thread count.
#pragma once
#include <memory>
#include <string>

#include "core/backend.h"

namespace sg {

// Whether there is a kernel for the instruction with its types and attributes.
bool has_kernel(const Tape& tape, const Instr& instr);

// The step of one instruction for which has_kernel() is true.
std::unique_ptr<Step> lower_kernel(LowerCtx& ctx);

// Whether the kernel may write output 0 over input i while it runs.
bool kernel_in_place(const Tape& tape, const Instr& instr, int i);

// The vector instruction set that the kernels were chosen for at run time: "avx512", "avx2" or "baseline".
std::string isa_name();

}  // namespace sg
