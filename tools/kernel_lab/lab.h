// What the benchmarks compare with: kernels written by hand for one purpose, and the machine's ceilings. Everything
// runs on the threads of the OpenMP runtime in use, each on the same share every time.
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace sg::lab {

// The instruction set of these kernels: the best of "avx512", "avx2", "generic" that the processor has.
std::string isa();

// The rotation trick (2410.06424) forward and backward in one pass, of rows x columns arrays:
//   out = lambda (z - 2 (z.w) w + 2 (z.u) v),  gz = lambda (g - 2 (g.w) w + 2 (g.v) u),
// u = z/|z|, v = q/|q|, w = (u+v)/|u+v|, lambda = |q|/|z|. Squared lengths count as 1e-12 at least.
void rotation(const float* z, const float* q, const float* g, float* out, float* gz, std::int64_t rows,
              std::int64_t columns);

// Memory that is read and written as a pass over arrays of these sizes would, without any arithmetic to speak of.
class Stream {
 public:
  Stream(std::size_t read_bytes, std::size_t write_bytes);
  ~Stream();
  Stream(Stream&&) noexcept;
  void run();

 private:
  struct Memory;
  std::unique_ptr<Memory> memory_;
};

// Multiplications and additions of registers, on all threads; returns how many floating-point operations were done.
double multiply_add(std::int64_t repeats);

// to = a + 1.5 b, on all threads.
void triad(const float* a, const float* b, float* to, std::size_t count);

}  // namespace sg::lab
