// Rows by index: gather, scatter-add, one-hot, histogram. All are deterministic: a destination row belongs to one
// thread, which adds its updates in index order.
#include <array>
#include <cstring>

#include "backends/cpu/lowering.h"
#include "ops/op_ids.h"

namespace sg::cpu {

IndexCheck::IndexCheck(const LowerCtx& ctx, Index bound)
    : op_(op_def(ctx.instr().op).name), bound_(bound), loc_(ctx.instr().loc) {}

void IndexCheck::operator()(const std::int32_t* indices, Index n) const {
  const Index bound = bound_;
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (Index i = 0; i < n; ++i) bad |= (indices[i] < 0) | (indices[i] >= bound);
  if (bad == 0) return;
  Index i = 0;
  while (indices[i] >= 0 && indices[i] < bound) ++i;
  throw Error(ErrorKind::attribute,
              fmt::format("{}: index {} at position {} is outside [0, {})", op_, indices[i], i, bound), loc_);
}

GatherChecks::GatherChecks(const RowProgram& program, std::span<std::byte* const> base) : rows_(program.rows) {
  for (const RowProgram::Op& op : program.code)
    if (op.kind == RowProgram::Kind::gather)
      gathers_.push_back({IndexCheck(op_def(op.op).name, op.attrs.i("rows"), op.loc),
                          reinterpret_cast<const std::int32_t*>(base[static_cast<std::size_t>(op.in[1])])});
}

void GatherChecks::operator()() const {
  for (const Gather& g : gathers_) g.check(g.indices, rows_);
}

// table (K,D), indices S -> S + [D]
StepPtr lower_gather_rows(LowerCtx& ctx, int) {
  const Shape& table = ctx.in_type(0).shape;
  const std::size_t row = static_cast<std::size_t>(table[1]) * size_of(ctx.out_type().dtype);
  return make_step([row, n = ctx.in_type(1).shape.elements(), d = table[1], check = IndexCheck(ctx, table[0]),
                    src = ctx.in<std::byte>(0), indices = ctx.in<std::int32_t>(1), dst = ctx.out<std::byte>()] {
    check(indices, n);
    parallel_rows(n, d, kGrain, [&](Index begin, Index end) {
      for (Index i = begin; i < end; ++i)
        std::memcpy(dst + static_cast<std::size_t>(i) * row, src + static_cast<std::size_t>(indices[i]) * row, row);
    });
  });
}

// indices S, updates S + [D] -> (rows, D). A counting sort lists the updates of each row in index order; sums are kept
// in double, because a codebook row may receive most of a batch.
StepPtr lower_scatter_add_rows(LowerCtx& ctx, int) {
  const Shape& out = ctx.out_type().shape;
  const Index n = ctx.in_type(0).shape.elements(), rows = out[0], d = out[1];
  const std::size_t order_at = align64(static_cast<std::size_t>(rows + 1) * sizeof(std::int32_t));
  const Scratch scratch(ctx, order_at + static_cast<std::size_t>(n) * sizeof(std::int32_t));
  return with_real(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([=, accumulate = real_table<T>().accumulate, check = IndexCheck(ctx, rows),
                      indices = ctx.in<std::int32_t>(0), updates = ctx.in<T>(1), y = ctx.out<T>()] {
      check(indices, n);
      // Afterwards row r owns order[start[r-1] .. start[r]), with start[-1] = 0.
      auto* start = scratch.at<std::int32_t>();
      auto* order = scratch.at<std::int32_t>(order_at);
      std::fill_n(start, rows + 1, 0);
      for (Index i = 0; i < n; ++i) ++start[indices[i] + 1];
      for (Index r = 0; r < rows; ++r) start[r + 1] += start[r];
      for (Index i = 0; i < n; ++i) order[start[indices[i]]++] = static_cast<std::int32_t>(i);

      constexpr Index kStrip = 256;
      const Index strips = ceil_div(d, kStrip), tasks = rows * strips;
      const auto task = [&](Index t) {
        const Index r = t / strips, c = t % strips * kStrip, width = std::min(kStrip, d - c);
        const Index begin = r == 0 ? 0 : start[r - 1], end = start[r];
        T* to = y + r * d + c;
        if (end - begin <= 1) {
          if (end == begin) std::fill_n(to, width, T{0});
          if (end != begin) std::copy_n(updates + order[begin] * d + c, width, to);
          return;
        }
        double acc[kStrip];
        std::fill_n(acc, width, 0.0);
        for (Index i = begin; i < end; ++i) accumulate(updates + order[i] * d + c, acc, width);
        for (Index k = 0; k < width; ++k) to[k] = static_cast<T>(acc[k]);
      };
      // Which thread takes a row does not matter to its sum.
#pragma omp parallel for schedule(dynamic, 16) if ((n + rows) * d > kGrain)
      for (Index t = 0; t < tasks; ++t) task(t);
    });
  });
}

// indices S -> S + [depth]; an index out of range gives zeros
StepPtr lower_one_hot(LowerCtx& ctx, int) {
  return with_any(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    return make_step([n = ctx.in_type(0).shape.elements(), depth = ctx.attrs().i("depth"),
                      indices = ctx.in<std::int32_t>(0), y = ctx.out<T>()] {
      parallel_rows(n, depth, kGrain, [&](Index begin, Index end) {
        std::fill(y + begin * depth, y + end * depth, T{0});
        for (Index i = begin; i < end; ++i)
          if (indices[i] >= 0 && indices[i] < depth) y[i * depth + indices[i]] = T{1};
      });
    });
  });
}

// indices -> counts [bins]
StepPtr lower_histogram(LowerCtx& ctx, int) {
  const Index n = ctx.in_type(0).shape.elements(), bins = ctx.attrs().i("bins");
  const Index lanes = std::clamp<Index>(n / std::max(bins, kGrain), 1, 16);
  Scratch scratch;
  if (lanes > 1) scratch = Scratch(ctx, static_cast<std::size_t>(lanes * bins) * sizeof(std::int32_t));
  return make_step([=, check = IndexCheck(ctx, bins), indices = ctx.in<std::int32_t>(0), y = ctx.out<std::int32_t>()] {
    check(indices, n);
    std::int32_t* counts = lanes > 1 ? scratch.at<std::int32_t>() : y;
    parallel_chunks(lanes, 1, 1, [&](Index begin, Index end) {
      for (Index l = begin; l < end; ++l) {
        std::int32_t* own = counts + l * bins;
        std::fill_n(own, bins, 0);
        for (Index i = n * l / lanes; i < n * (l + 1) / lanes; ++i) ++own[indices[i]];
      }
    });
    if (lanes == 1) return;
    std::copy_n(counts, bins, y);
    for (Index l = 1; l < lanes; ++l)
      for (Index b = 0; b < bins; ++b) y[b] += counts[l * bins + b];
  });
}

}  // namespace sg::cpu
