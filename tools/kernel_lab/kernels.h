// The laboratory's loops, compiled once per instruction set (kernels.inc); lab.cc chooses a table and shares out the
// work among threads.
#pragma once
#include <cstddef>
#include <cstdint>

namespace sg::lab {

struct Kernels {
  const char* isa;
  // See lab::rotation; of consecutive rows, by one thread.
  void (*rotation)(const float* z, const float* q, const float* g, float* out, float* gz, std::int64_t rows,
                   std::int64_t columns);
  void (*copy)(const float* from, float* to, std::size_t count);
  void (*triad)(const float* a, const float* b, float* to, std::size_t count);  // to = a + 1.5 b
  float (*sum)(const float* from, std::size_t count);
  void (*fill)(float* to, std::size_t count, float value);
  double (*multiply_add)(std::int64_t repeats);  // keeps the multipliers busy; returns the floating-point operations
};

const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

}  // namespace sg::lab
