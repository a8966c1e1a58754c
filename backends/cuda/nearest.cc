// nearest_code: first the codes' starts (|c|^2 / 2) are computed, for the cosine also the codes at length 1, then the
// search keeps each row's best cost and code in registers. Nothing of size N x K is ever stored.
//
// Cost of code c for row z: |c|^2 / 2 - z.c, which orders codes as |z - c|^2 does; for the cosine, -z.c / |c|. In f32
// (f64 for f64; bf16 is widened), whatever tf32() says.
#include <algorithm>

#include "backends/cuda/launches.h"

namespace sg::cuda {
namespace {

constexpr Index kRows = 128, kCodes = 64;  // of a tile of kernels/nearest.cu
constexpr unsigned kThreads = 256;

// How often the codes are cut so that each multiprocessor gets two tiles of rows, where there are few.
Index parts_of(const Device& device, Index row_tiles, Index code_tiles) {
  const Index wanted = ceil_div(2 * device.multiprocessors(), std::max<Index>(row_tiles, 1));
  return std::clamp<Index>(wanted, 1, code_tiles);
}

template <class T>
StepPtr lower(Device& device, LowerCtx& ctx) {
  const Shape &z = ctx.in_type(0).shape, &codes = ctx.in_type(1).shape;
  const bool cosine = ctx.attrs().i("cosine") != 0;
  const DType stored = ctx.in_type(0).dtype;
  const unsigned n = count31(ctx, z[0]), d = count31(ctx, z[1]), k = count31(ctx, codes[0]);
  const Index row_tiles = ceil_div(n, kRows);
  const Index parts = parts_of(device, row_tiles, ceil_div(k, kCodes));
  const bool prepare = cosine || stored == DType::bf16;

  const std::size_t prepared_at = align256(std::size_t{k} * sizeof(T)),
                    costs_at = prepared_at + (prepare ? align256(std::size_t{k} * d * sizeof(T)) : 0),
                    results = parts > 1 ? static_cast<std::size_t>(parts) * n : 0,
                    found_at = costs_at + align256(results * sizeof(T));
  const Scratch scratch(ctx, found_at + results * sizeof(unsigned));
  const auto start = scratch.at<T>(), prepared = scratch.at<T>(prepared_at), costs = scratch.at<T>(costs_at);
  const auto found = scratch.at<unsigned>(found_at);

  auto step = std::make_unique<Launches>(device);
  if (n == 0) return step;
  const std::string type = name_of(stored);
  const Launch by_code{{count31(ctx, ceil_div(k, kThreads / 32))}, {kThreads}};
  const auto prepare_codes = [&](auto there) {
    step->add("nearest", "prepare_codes_" + type, by_code, ctx.in<void>(1), start, there, k, d, unsigned{cosine});
  };
  const auto search = [&](auto searched) {
    const Launch how{{count31(ctx, row_tiles * parts)}, {kThreads}};
    step->add("nearest", "nearest_" + type, how, ctx.in<void>(0), searched, start, ctx.out<int>(), costs, found, n, k,
              d, static_cast<unsigned>(parts));
  };
  if (prepare) {
    prepare_codes(prepared);
    search(prepared);
  } else {
    prepare_codes(static_cast<T*>(nullptr));
    search(ctx.in<T>(1));
  }
  if (parts > 1)
    step->add("nearest", "join_nearest_" + name_of(stored == DType::f64 ? DType::f64 : DType::f32), spread(n), costs,
              found, ctx.out<int>(), n, static_cast<unsigned>(parts));
  return step;
}

}  // namespace

StepPtr lower_nearest_code(Device& device, LowerCtx& ctx) {
  return ctx.in_type(0).dtype == DType::f64 ? lower<double>(device, ctx) : lower<float>(device, ctx);
}

}  // namespace sg::cuda
