// nearest_code: the codes are packed once per run into panels, then a blocked product with a running minimum in
// registers (simd_nearest.inc) finds each row's code. Nothing of size N x K is ever stored.
//
// Score of code c for row z: |c|^2 / 2 - z.c, which orders codes as |z - c|^2 does; for the cosine, -z.c / |c|. A row's
// scores are the same sums in the same order wherever the row lies in a block, so no result depends on the threads.
#include <cmath>
#include <limits>

#include "backends/cpu/lowering.h"

namespace sg::cpu {
namespace {

// codes (K,D) -> panel p: (D, width), columns of -c; base: |c|^2 / 2. Columns beyond K can never win.
template <class T>
void pack_panel(const T* codes, Index count, Index depth, Index width, bool cosine, Index p, T* panel, T* base) {
  for (Index j = 0; j < width; ++j) {
    const Index k = p * width + j;
    if (k >= count) {
      for (Index d = 0; d < depth; ++d) panel[d * width + j] = T{0};
      base[j] = std::numeric_limits<T>::infinity();
      continue;
    }
    const T* c = codes + k * depth;
    double norm2 = 0;
#pragma omp simd reduction(+ : norm2)
    for (Index d = 0; d < depth; ++d) norm2 += static_cast<double>(c[d]) * static_cast<double>(c[d]);
    if (cosine) {
      const double scale = norm2 == 0 ? 0.0 : -1.0 / std::sqrt(norm2);
      for (Index d = 0; d < depth; ++d) panel[d * width + j] = static_cast<T>(scale * static_cast<double>(c[d]));
      base[j] = T{0};
    } else {
      for (Index d = 0; d < depth; ++d) panel[d * width + j] = -c[d];
      base[j] = static_cast<T>(0.5 * norm2);
    }
  }
}

}  // namespace

StepPtr lower_nearest_code(LowerCtx& ctx, int) {
  const Shape &z = ctx.in_type(0).shape, &codes = ctx.in_type(1).shape;
  const bool cosine = ctx.attrs().i("cosine") != 0;
  return with_real(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    const simd::Real<T>& table = real_table<T>();
    const Index n = z[0], depth = z[1], count = codes[0], width = table.nearest_width;
    const Index panels = ceil_div(count, width);
    const std::size_t base_at = align64(static_cast<std::size_t>(panels * width * depth) * sizeof(T));
    const Scratch scratch(ctx, base_at + static_cast<std::size_t>(panels * width) * sizeof(T));
    // A panel is used by all rows of a block while it is in the first-level cache. Blocks are smaller, for balance
    // between threads, where there are few rows and the codes lie in the second-level cache anyway.
    constexpr std::size_t kNearCache = 512 * 1024;
    const bool large = base_at > kNearCache || n >= 1024 * table.nearest_rows;
    const Index block = table.nearest_rows * (large ? 16 : 4);
    return make_step(
        [=, fn = table.nearest, rows = ctx.in<T>(0), source = ctx.in<T>(1), y = ctx.out<std::int32_t>()] {
          T* packed = scratch.at<T>();
          T* base = scratch.at<T>(base_at);
          parallel_rows(panels, width * depth, kGrain, [&](Index begin, Index end) {
            for (Index p = begin; p < end; ++p)
              pack_panel(source, count, depth, width, cosine, p, packed + p * width * depth, base + p * width);
          });
#pragma omp parallel for schedule(dynamic, 1) if (n * count * depth > 8 * kGrain)
          for (Index i = 0; i < n; i += block)
            fn(rows + i * depth, std::min(block, n - i), depth, packed, base, panels, y + i);
        },
        simd_table().name);
  });
}

}  // namespace sg::cpu
