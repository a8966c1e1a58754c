// Rows by index. The algorithm of scatter_add_rows is described in kernels/index.cu.
#include <algorithm>
#include <bit>

#include "backends/cuda/kernels.h"

namespace sg::cuda {
namespace {

constexpr Index kScanTile = 2048, kSegment = 32, kLeastChunk = 1024, kMaxChunks = 64;

}  // namespace

// table (K,D), indices S -> S + [D], in the widest words that divide a row
StepPtr lower_gather_rows(Device& device, LowerCtx& ctx) {
  const Shape& table = ctx.in_type(0).shape;
  const std::size_t row = static_cast<std::size_t>(table[1]) * size_of(ctx.out_type().dtype);
  std::size_t word = 16;
  while (row % word != 0) word /= 2;
  const auto words = static_cast<Index>(row / word);
  const unsigned n = count31(ctx, ctx.in_type(1).shape.elements() * words);
  auto step = std::make_unique<Launches>(device);
  const IndexGuard guard = guard_indices(device, ctx, *step, table[0]);
  step->add("index", fmt::format("gather_rows_{}", word), spread(n), ctx.in<void>(0), ctx.in<int>(1), ctx.out<void>(),
            n, divisor(words), guard);
  return step;
}

// indices S, updates S + [D] -> (rows, D)
StepPtr lower_scatter_add_rows(Device& device, LowerCtx& ctx) {
  const Shape& out = ctx.out_type().shape;
  const Index n = ctx.in_type(0).shape.elements(), d = out[1];
  const DType t = ctx.out_type().dtype;
  auto step = std::make_unique<Launches>(device);
  if (n == 0) {
    step->zero(ctx.out<void>(), ctx.out_type().bytes());
    return step;
  }
  const Index chunk = std::max(kLeastChunk, ceil_div(n, kMaxChunks)), chunks = ceil_div(n, chunk);
  const unsigned cells = count31(ctx, out[0] * chunks), rows = count31(ctx, out[0]);
  const Index tiles = ceil_div(cells, kScanTile), segments = ceil_div(n, kSegment);
  const std::size_t sums_at = align256(std::size_t{cells} * 4),
                    order_at = sums_at + align256(static_cast<std::size_t>(tiles) * 4),
                    partial_at = order_at + align256(static_cast<std::size_t>(n) * 4);
  const Scratch scratch(ctx, partial_at + static_cast<std::size_t>(segments * 2 * d) * sizeof(double));
  const auto counts = scratch.at<unsigned>(), sums = scratch.at<unsigned>(sums_at),
             order = scratch.at<unsigned>(order_at);
  const auto partial = scratch.at<double>(partial_at);
  const auto u = [&](Index x) { return count31(ctx, x); };
  const int* indices = ctx.in<int>(0);

  step->zero(counts, std::size_t{cells} * 4);
  const IndexGuard guard = guard_indices(device, ctx, *step, out[0]);
  step->add("index", "count_indices", spread(n), indices, counts, u(n), u(chunk), u(chunks), guard);
  step->add("index", "scan_tiles", Launch{{u(tiles)}, {256}}, counts, sums, cells);
  step->add("index", "scan_sums", Launch{{1}, {256}}, sums, u(tiles));
  step->add("index", "place_indices", Launch{{u(chunks)}, {32}}, indices, counts, sums, order, u(n), u(chunk), rows);
  const Index threads = std::min<Index>(128, ceil_div(d, 32) * 32);
  const Launch by_segment{{u(segments), u(ceil_div(d, threads))}, {u(threads)}};
  step->add("index", "sum_segments_" + name_of(t), by_segment, order, indices, ctx.in<void>(1), ctx.out<void>(),
            partial, counts, sums, u(chunks), rows, u(d), u(kSegment));
  const unsigned elements = u(out.elements());
  step->add("index", "join_segments_" + name_of(t), spread(elements), ctx.out<void>(), partial, counts, sums, u(chunks),
            elements, divisor(d), u(kSegment));
  return step;
}

// indices S -> S + [depth]; an index out of range gives zeros
StepPtr lower_one_hot(Device& device, LowerCtx& ctx) {
  const unsigned n = count31(ctx, ctx.out_type().shape.elements());
  auto step = std::make_unique<Launches>(device);
  step->add("index", "one_hot_" + name_of(ctx.out_type().dtype), spread(n), ctx.in<int>(0), ctx.out<void>(), n,
            divisor(ctx.attrs().i("depth")));
  return step;
}

// indices -> counts [bins]
StepPtr lower_histogram(Device& device, LowerCtx& ctx) {
  constexpr Index kMostInShared = 8192, kElementsOfBlock = 2048;
  const Index n = ctx.in_type(0).shape.elements(), bins = ctx.attrs().i("bins");
  auto step = std::make_unique<Launches>(device);
  step->zero(ctx.out<int>(), ctx.out_type().bytes());
  const bool in_shared = bins <= kMostInShared;
  Launch how = spread(n);
  if (in_shared) {
    how.grid.x = static_cast<unsigned>(std::min<Index>(ceil_div(n, kElementsOfBlock), 1024));
    how.shared = static_cast<unsigned>(bins * 4);
  }
  const IndexGuard guard = guard_indices(device, ctx, *step, bins);
  step->add("index", "histogram", how, ctx.in<int>(0), ctx.out<int>(), count31(ctx, n), count31(ctx, bins),
            static_cast<unsigned>(in_shared), guard);
  return step;
}

}  // namespace sg::cuda
