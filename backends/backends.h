// The explicit list of backends of this build.
#pragma once
#include <string>

#include "core/backend.h"

namespace sg {

std::vector<std::string_view> known_backend_names();   // those of backend_names(), and those that are absent here
std::string describe_backends();    // one line each, and what this build lacks and why
void set_threads(int threads);      // of the one OpenMP runtime that oneDNN and our kernels share. Error{usage} below 1
int threads();

// How the cpu backend computes what is compiled from now on. Words, as flags have them.
struct CpuOptions {
  std::string isa = "auto";        // or generic, avx2, avx512. generic writes no machine code either. Ours only, not oneDNN's
  std::string winograd = "auto";   // where a formula of the shape expects it to be faster; on: wherever possible; off
  std::string tune = "off";        // on: the fastest algorithm of each convolution by a timed trial; cached: only what trials
                                   // left in tuning_file(). Other algorithms round differently (docs/decisions/017-tune.md)
};
void set_cpu_options(const CpuOptions& options);  // Error{usage} naming what there is; nothing is changed then
std::string tuning_file();                        // $XDG_CACHE_HOME/stopgrad/convolutions.json, or under ~/.cache; "" where neither is set

// How the cuda backend computes what is compiled from now on. Without a word of it f32 means f32.
struct CudaOptions {
  bool tf32 = false;               // products of f32 take their operands as tf32: 10 bits of mantissa, sums in f32
};
void set_cuda_options(const CudaOptions& options);  // Error{backend} where tf32 is wanted and this build has no such backend

Backend& reference_backend();
Backend& cpu_backend();

}  // namespace sg
