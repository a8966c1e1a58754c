// Where the cpu backend computes products and convolutions in bf16: on processors with avx512_bf16. Elsewhere lowering
// one is an Error{backend} that says so; casts, elementwise ops and moves in bf16 run on any processor.
#pragma once
#include <string_view>

namespace sg {
class Tape;
struct Instr;
}  // namespace sg

namespace sg::cpu {

// Whether the processor has avx512_bf16 (and oneDNN may use it).
bool has_bf16();

// Whether it has AMX tiles for bf16, and oneDNN may use them.
bool has_amx();

// Lets oneDNN emulate the missing instructions, on processors with AVX-512 at all: the same numbers, slower than f32.
// For tests and for the curious; concerns what is lowered from now on.
void allow_emulated_bf16(bool on);
bool emulated_bf16_allowed();

// Error{backend}: neither has_bf16() nor emulated_bf16_allowed(). `what` begins the message.
void require_bf16(std::string_view what);

}  // namespace sg::cpu
