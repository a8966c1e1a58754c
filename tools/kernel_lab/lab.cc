#include "tools/kernel_lab/lab.h"

#include <omp.h>

#include <algorithm>

#include "core/tensor.h"
#include "tools/kernel_lab/kernels.h"

namespace sg::lab {
namespace {

const Kernels& kernels() {
#if defined(__x86_64__)
  static const Kernels& best = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                                   ? kernels_avx512()
                               : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? kernels_avx2()
                                                                                                 : kernels_generic();
  return best;
#else
  return kernels_generic();
#endif
}

struct Share {
  std::size_t first, count;
};

// The share of this thread in `count` things, in whole units.
Share share(std::size_t count, std::size_t unit) {
  const auto thread = static_cast<std::size_t>(omp_get_thread_num()),
             threads = static_cast<std::size_t>(omp_get_num_threads());
  const std::size_t units = (count + unit - 1) / unit;
  const std::size_t first = std::min(count, units * thread / threads * unit),
                    last = std::min(count, units * (thread + 1) / threads * unit);
  return {first, last - first};
}

}  // namespace

std::string isa() { return kernels().isa; }

void rotation(const float* z, const float* q, const float* g, float* out, float* gz, std::int64_t rows,
              std::int64_t columns) {
#pragma omp parallel
  {
    const Share mine = share(static_cast<std::size_t>(rows), 16);
    const std::size_t at = mine.first * static_cast<std::size_t>(columns);
    kernels().rotation(z + at, q + at, g + at, out + at, gz + at, static_cast<std::int64_t>(mine.count), columns);
  }
}

struct Stream::Memory {
  std::size_t reads, writes;  // floats
  AlignedBytes from, to;
};

Stream::Stream(std::size_t read_bytes, std::size_t write_bytes)
    : memory_(new Memory{read_bytes / sizeof(float), write_bytes / sizeof(float), allocate_aligned(read_bytes, true),
                         allocate_aligned(write_bytes, true)}) {}
Stream::~Stream() = default;
Stream::Stream(Stream&&) noexcept = default;

void Stream::run() {
  const Memory& m = *memory_;
  const auto* from = reinterpret_cast<const float*>(m.from.get());
  auto* to = reinterpret_cast<float*>(m.to.get());
#pragma omp parallel
  {
    // Reading and writing keep step, a piece at a time.
    constexpr std::size_t kPiece = 4096;
    const Share in = share(m.reads, 16), out = share(m.writes, 16);
    const std::size_t pieces = std::max<std::size_t>(1, (std::max(in.count, out.count) + kPiece - 1) / kPiece);
    float seen = 0;
    for (std::size_t p = 0; p < pieces; ++p) {
      const std::size_t r0 = in.count * p / pieces, r1 = in.count * (p + 1) / pieces, w0 = out.count * p / pieces,
                        w1 = out.count * (p + 1) / pieces, both = std::min(r1 - r0, w1 - w0);
      kernels().copy(from + in.first + r0, to + out.first + w0, both);
      if (r1 - r0 > both) seen += kernels().sum(from + in.first + r0 + both, r1 - r0 - both);
      if (w1 - w0 > both) kernels().fill(to + out.first + w0 + both, w1 - w0 - both, 1.0f);
    }
    volatile float kept = seen;
    static_cast<void>(kept);
  }
}

double multiply_add(std::int64_t repeats) {
  double total = 0;
#pragma omp parallel reduction(+ : total)
  total += kernels().multiply_add(repeats);
  return total;
}

void triad(const float* a, const float* b, float* to, std::size_t count) {
#pragma omp parallel
  {
    const Share mine = share(count, 16);
    kernels().triad(a + mine.first, b + mine.first, to + mine.first, mine.count);
  }
}

}  // namespace sg::lab
