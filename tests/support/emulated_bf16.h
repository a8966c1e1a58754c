// Lets tests of bf16 run on processors without avx512_bf16: oneDNN's emulation gives the same numbers.
#pragma once
#include "backends/cpu/bf16.h"

namespace sg::test {

class EmulatedBf16 {
 public:
  EmulatedBf16() { cpu::allow_emulated_bf16(true); }
  ~EmulatedBf16() { cpu::allow_emulated_bf16(false); }
};

}  // namespace sg::test
