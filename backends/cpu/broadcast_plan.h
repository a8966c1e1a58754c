// How an elementwise op with NumPy broadcasting walks its operands. Axes along which all operands behave alike are
// merged, so that what is left in nearly all cases is one or two axes: all alike, a number, a row for every row, or a
// number for each row. The last two axes go to the inner loop at once; an operand's stride along the last is 1 or 0.
#pragma once
#include <array>

#include "backends/cpu/lowering.h"

namespace sg::cpu {

template <std::size_t N>
struct BroadcastPlan {
  Index cols = 1, rows = 1, outer = 1;
  std::array<bool, N> inner{};  // operand has extent along the last axis
  std::array<Index, N> row_stride{};
  std::size_t outer_rank = 0;
  std::array<Index, Shape::kMaxRank> outer_dims{};
  std::array<std::array<Index, Shape::kMaxRank>, N> outer_strides{};
};

template <std::size_t N>
BroadcastPlan<N> plan_broadcast(const Shape& out, const std::array<Shape, N>& in) {
  struct Axis {
    Index extent;
    std::array<bool, N> has;
  };
  std::array<Axis, Shape::kMaxRank> axes{};
  std::size_t rank = 0;
  for (int d = 0; d < out.rank(); ++d) {
    if (out[d] == 1) continue;
    Axis axis{out[d], {}};
    for (std::size_t i = 0; i < N; ++i) {
      const int own = d - (out.rank() - in[i].rank());
      axis.has[i] = own >= 0 && in[i][own] != 1;
    }
    if (rank > 0 && axes[rank - 1].has == axis.has) {
      axes[rank - 1].extent *= axis.extent;
    } else {
      axes[rank++] = axis;
    }
  }
  BroadcastPlan<N> plan;
  if (rank == 0) plan.inner.fill(true);
  std::array<Index, N> stride{};
  stride.fill(1);
  for (std::size_t k = 0; k < rank; ++k) {  // from the last axis outwards
    const Axis& axis = axes[rank - 1 - k];
    if (k == 0) plan.cols = axis.extent;
    if (k == 1) plan.rows = axis.extent;
    if (k >= 2) {
      plan.outer *= axis.extent;
      plan.outer_dims[plan.outer_rank] = axis.extent;
    }
    for (std::size_t i = 0; i < N; ++i) {
      const Index own = axis.has[i] ? stride[i] : 0;
      if (k == 0) plan.inner[i] = axis.has[i];
      if (k == 1) plan.row_stride[i] = own;
      if (k >= 2) plan.outer_strides[i][plan.outer_rank] = own;
      if (axis.has[i]) stride[i] *= axis.extent;
    }
    if (k >= 2) ++plan.outer_rank;
  }
  return plan;
}

// f(offsets of the operands, offset of the output, rows, cols) for pieces that cover the output.
template <std::size_t N, class F>
void run_plan(const BroadcastPlan<N>& plan, Index grain, F&& f) {
  const Index rows = plan.outer * plan.rows;
  if (rows == 1) {
    parallel_chunks(plan.cols, grain, 64, [&](Index begin, Index end) {
      std::array<Index, N> own{};
      for (std::size_t i = 0; i < N; ++i) own[i] = plan.inner[i] ? begin : 0;
      f(own, begin, Index{1}, end - begin);
    });
    return;
  }
  if (plan.cols == 0) return;
  parallel_rows(rows, plan.cols, grain, [&](Index begin, Index end) {
    while (begin < end) {
      const Index r = begin % plan.rows, n = std::min(end - begin, plan.rows - r);
      Index o = begin / plan.rows;
      std::array<Index, N> at{};
      for (std::size_t i = 0; i < N; ++i) at[i] = r * plan.row_stride[i];
      for (std::size_t d = 0; d < plan.outer_rank; ++d) {
        const Index k = o % plan.outer_dims[d];
        o /= plan.outer_dims[d];
        for (std::size_t i = 0; i < N; ++i) at[i] += k * plan.outer_strides[i][d];
      }
      f(at, begin * plan.cols, n, plan.cols);
      begin += n;
    }
  });
}

}  // namespace sg::cpu
