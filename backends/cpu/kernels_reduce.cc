// sum, reduce_max, reduce_min over any axes. Neighbouring axes that are all kept or all reduced are merged; then either
// the last axis is reduced (rows) or it is kept (columns). The work is cut into tasks that depend on the shape alone;
// where the results are too few to keep threads busy, each is computed in parts which are combined in order.
#include <array>
#include <cstring>
#include <limits>
#include <vector>

#include "backends/cpu/lowering.h"

namespace sg::cpu {
namespace {

constexpr Index kAccumulators = 256;  // held on the stack by one call of an inner loop
constexpr Index kMaxTasks = 64;       // parts are made only up to this many tasks

struct Axes {
  Index count = 1;
  std::size_t rank = 0;
  std::array<Index, Shape::kMaxRank> dims{}, strides{};

  void push_inner_first(Index extent, Index stride) {
    dims[rank] = extent;
    strides[rank++] = stride;
    count *= extent;
  }
  Index offset(Index i) const {
    Index at = 0;
    for (std::size_t d = 0; d < rank; ++d) {
      at += i % dims[d] * strides[d];
      i /= dims[d];
    }
    return at;
  }
};

// A matrix (rows, cols) of contiguous rows inside outer kept and outer reduced axes. by_rows: rows are kept and columns
// reduced; otherwise the reverse.
struct ReducePlan {
  bool by_rows = true;
  Index rows = 1, cols = 1;
  Axes kept, reduced;
  Index kept_inner() const { return by_rows ? rows : cols; }
  Index results() const { return kept.count * kept_inner(); }

  Index piece = 1;  // kept_inner is cut into pieces of this size
  Index pieces = 1;
  Index parts = 1;                                              // each result is computed in this many parts
  enum class Split { outer, rows, cols } split = Split::outer;  // which reduced extent the parts divide
};

ReducePlan plan_reduction(const Shape& shape, const std::vector<std::int64_t>& axes) {
  struct Group {
    Index extent;
    bool reduced;
  };
  std::vector<Group> groups;
  for (int d = 0; d < shape.rank(); ++d) {
    if (shape[d] == 1) continue;
    const bool reduced = std::find(axes.begin(), axes.end(), d) != axes.end();
    if (!groups.empty() && groups.back().reduced == reduced) {
      groups.back().extent *= shape[d];
    } else {
      groups.push_back({shape[d], reduced});
    }
  }
  ReducePlan plan;
  plan.by_rows = groups.empty() || groups.back().reduced;
  Index stride = 1;
  for (std::size_t k = 0; k < groups.size(); ++k) {
    const Group& g = groups[groups.size() - 1 - k];
    if (k == 0) {
      plan.cols = g.extent;
    } else if (k == 1) {
      plan.rows = g.extent;
    } else {
      (g.reduced ? plan.reduced : plan.kept).push_inner_first(g.extent, stride);
    }
    stride *= g.extent;
  }

  const Index reduced_inner = plan.by_rows ? plan.cols : plan.rows;
  const Index per_result = std::max<Index>(1, plan.reduced.count * reduced_inner);
  const Index fit = std::max<Index>(1, kGrain / per_result);
  plan.piece = plan.by_rows ? fit : round_up(fit, 64);
  if (!plan.by_rows) plan.piece = std::max<Index>(plan.piece, kAccumulators);
  plan.piece = std::max<Index>(1, std::min(plan.piece, plan.kept_inner()));
  plan.pieces = ceil_div(plan.kept_inner(), plan.piece);
  const Index tasks = std::max<Index>(1, plan.kept.count * plan.pieces);
  const Index wanted = std::min(kMaxTasks, shape.elements() / kGrain);
  if (tasks < wanted) {
    plan.parts = ceil_div(wanted, tasks);
    if (reduced_inner >= plan.reduced.count)
      plan.split = plan.by_rows ? ReducePlan::Split::cols : ReducePlan::Split::rows;
    plan.parts = std::min(plan.parts, std::max(reduced_inner, plan.reduced.count));
  }
  return plan;
}

struct Range {
  Index begin, end;
};
Range part_of(Index extent, Index part, Index parts, Index align) {
  const Index size = round_up(ceil_div(extent, parts), align);
  return {std::min(extent, part * size), std::min(extent, (part + 1) * size)};
}

// acc[i] (op)= the reduction of part `part` for results first .. first + n of kept_inner, n <= kAccumulators.
template <class T, class A>
using BlockFn = void (*)(const T*, Index rows, Index ld, Index cols, A* acc);
template <class T, class A>
void reduce_part(const ReducePlan& plan, BlockFn<T, A> fn, const T* x, Index first, Index n, Index part, A* acc) {
  Range outer{0, plan.reduced.count}, rows{0, plan.rows}, cols{0, plan.cols};
  (plan.by_rows ? rows : cols) = {first, first + n};
  switch (plan.split) {
    case ReducePlan::Split::outer:
      outer = part_of(plan.reduced.count, part, plan.parts, 1);
      break;
    case ReducePlan::Split::rows:
      rows = part_of(plan.rows, part, plan.parts, 1);
      break;
    case ReducePlan::Split::cols:
      cols = part_of(plan.cols, part, plan.parts, 64);
      break;
  }
  for (Index r = outer.begin; r < outer.end; ++r)
    fn(x + plan.reduced.offset(r) + rows.begin * plan.cols + cols.begin, rows.end - rows.begin, plan.cols,
       cols.end - cols.begin, acc);
}

// The combination must be the inner loops' own: sums add, extrema keep a NaN.
template <class A>
A combine(Reduction op, A a, A b) {
  if (op == Reduction::sum) return a + b;
  return (op == Reduction::max ? b > a : b < a) || b != b ? b : a;
}

template <class T, class A>
StepPtr reduce_with(LowerCtx& ctx, Reduction op, BlockFn<T, A> rows_fn, BlockFn<T, A> cols_fn, A identity) {
  const Shape& shape = ctx.in_type(0).shape;
  const ReducePlan plan = plan_reduction(shape, ctx.attrs().ints("axes"));
  const Index results = ctx.out_type().shape.elements();
  const bool empty = shape.elements() == 0;
  Scratch scratch;
  if (plan.parts > 1) scratch = Scratch(ctx, static_cast<std::size_t>(plan.parts * results) * sizeof(A));
  return make_step([=, fn = plan.by_rows ? rows_fn : cols_fn, x = ctx.in<T>(0), y = ctx.out<T>()] {
    if (empty) {
      std::fill_n(y, results, static_cast<T>(identity));
      return;
    }
    A* partial = plan.parts > 1 ? scratch.at<A>() : nullptr;
    const Index inner = plan.kept_inner(), tasks = plan.kept.count * plan.pieces * plan.parts;
    const auto task = [&](Index t) {
      const Index part = t % plan.parts, piece = t / plan.parts % plan.pieces, outer = t / plan.parts / plan.pieces;
      const T* source = x + plan.kept.offset(outer);
      const Index stop = std::min(inner, (piece + 1) * plan.piece);
      for (Index i = piece * plan.piece; i < stop; i += kAccumulators) {
        const Index n = std::min(kAccumulators, stop - i);
        A acc[kAccumulators];
        std::fill_n(acc, n, identity);
        reduce_part(plan, fn, source, i, n, part, acc);
        const Index at = outer * inner + i;
        if (partial != nullptr) {
          std::copy_n(acc, n, partial + part * results + at);
        } else {
          for (Index k = 0; k < n; ++k) y[at + k] = static_cast<T>(acc[k]);
        }
      }
    };
    parallel_chunks(tasks, std::max<Index>(1, kGrain * tasks / shape.elements()), 1, [&](Index begin, Index end) {
      for (Index t = begin; t < end; ++t) task(t);
    });
    if (partial == nullptr) return;
    for (Index i = 0; i < results; ++i) {
      A total = partial[i];
      for (Index p = 1; p < plan.parts; ++p) total = combine(op, total, partial[p * results + i]);
      y[i] = static_cast<T>(total);
    }
  });
}

template <class T>
StepPtr reduce_typed(LowerCtx& ctx, Reduction op) {
  const simd::Common<T>& table = common_table<T>();
  using Limits = std::numeric_limits<T>;
  constexpr T lowest = Limits::has_infinity ? -Limits::infinity() : Limits::lowest();
  constexpr T highest = Limits::has_infinity ? Limits::infinity() : Limits::max();
  switch (op) {
    case Reduction::max:
      return reduce_with<T, T>(ctx, op, table.max_rows, table.max_cols, lowest);
    case Reduction::min:
      return reduce_with<T, T>(ctx, op, table.min_rows, table.min_cols, highest);
    case Reduction::sum:
      break;
  }
  return reduce_with<T, simd::SumOf<T>>(ctx, op, table.sum_rows, table.sum_cols, 0);
}

}  // namespace

StepPtr lower_reduction(LowerCtx& ctx, int code) {
  return with_any(ctx.in_type(0).dtype,
                  [&](auto element) { return reduce_typed<decltype(element)>(ctx, static_cast<Reduction>(code)); });
}

}  // namespace sg::cpu
