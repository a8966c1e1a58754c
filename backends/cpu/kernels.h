// The cpu backend's own kernels: every op that oneDNN does not do for us. One table row per op in kernels.cc;
// cpu_backend.cc asks here for whatever its own oneDNN table does not name.
//
// Invariants: kernels share oneDNN's OpenMP runtime, open no nested regions and give the same bits for any thread
// count.
#pragma once
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/backend.h"

namespace sg {

// Whether there is a kernel for the instruction with its types and attributes.
bool has_kernel(const Tape& tape, const Instr& instr);

// The step of one instruction for which has_kernel() is true.
std::unique_ptr<Step> lower_kernel(LowerCtx& ctx);

// Whether the kernel may write that output over input i while it runs.
bool kernel_in_place(const Tape& tape, const Instr& instr, int i, int output);

// Whether the instruction can be part of a row program here.
bool has_row_kernel(const Tape& tape, const Instr& instr);

// The vector instruction set that steps are lowered for: "avx512", "avx2" or "generic". The best that the processor
// has, unless set_isa() chose another.
std::string isa_name();

// Those that this processor and build have, best first.
std::vector<std::string> isa_names();

// Chooses the instruction set for what is lowered from now on. Error{usage} where the name is unknown or the processor
// lacks it, listing what it has.
void set_isa(std::string_view name);

// Convolutions by Winograd's algorithm: never, where that is expected to be faster (the choice depends on the shape
// alone), or wherever it is possible. It rounds differently from direct convolution (docs/decisions/013-winograd.md).
enum class WinogradUse : std::uint8_t { never, where_faster, always };

// For what is lowered from now on; where_faster at first.
WinogradUse winograd_use();
void set_winograd(WinogradUse use);

}  // namespace sg
