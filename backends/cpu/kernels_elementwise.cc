// Elementwise ops with NumPy broadcasting. Axes along which all operands behave alike are merged, so that what is left
// in nearly all cases is one or two axes: all alike, a number, a row for every row, or a number for each row. The last
// two axes go to the inner loop at once; an operand's stride along the last is 1 or 0.
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/lowering.h"

namespace sg::cpu {
namespace {

constexpr std::size_t kMaxRank = Shape::kMaxRank;

template <std::size_t N>
struct BroadcastPlan {
  Index cols = 1, rows = 1, outer = 1;
  std::array<bool, N> inner{};  // operand has extent along the last axis
  std::array<Index, N> row_stride{};
  std::size_t outer_rank = 0;
  std::array<Index, kMaxRank> outer_dims{};
  std::array<std::array<Index, kMaxRank>, N> outer_strides{};
};

template <std::size_t N>
BroadcastPlan<N> plan_broadcast(const Shape& out, const std::array<Shape, N>& in) {
  struct Axis {
    Index extent;
    std::array<bool, N> has;
  };
  std::array<Axis, kMaxRank> axes{};
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

template <class T, class R>
StepPtr lower_binary_with(LowerCtx& ctx, const simd::BinaryFn<T, R> (&modes)[simd::kOperandModes], Index grain) {
  const auto plan = plan_broadcast<2>(ctx.out_type().shape, {ctx.in_type(0).shape, ctx.in_type(1).shape});
  const simd::BinaryFn<T, R> fn = modes[!plan.inner[1] ? 1 : !plan.inner[0] ? 2 : 0];
  SG_CHECK(fn != nullptr, "cpu: {} has no kernel for {}", op_def(ctx.instr().op).name, to_string(ctx.in_type(0)));
  return make_step([=, a = ctx.in<T>(0), b = ctx.in<T>(1), y = ctx.out<R>()] {
    run_plan(plan, grain, [&](const std::array<Index, 2>& at, Index to, Index rows, Index cols) {
      fn(a + at[0], plan.row_stride[0], b + at[1], plan.row_stride[1], y + to, rows, cols);
    });
  });
}

bool is_dear(simd::Unary u) {
  using simd::Unary;
  switch (u) {
    case Unary::exp:
    case Unary::log:
    case Unary::sin:
    case Unary::cos:
    case Unary::acos:
    case Unary::erf:
    case Unary::tanh:
    case Unary::sigmoid:
    case Unary::softplus:
    case Unary::silu:
    case Unary::gelu:
      return true;
    default:
      return false;
  }
}

template <class From, class To>
To convert(From x) {
  return static_cast<To>(x);
}

// Truncates; what i32 cannot hold goes to its nearest bound, NaN to 0.
template <class From>
std::int32_t to_i32(From x) {
  using Int = std::numeric_limits<std::int32_t>;
  constexpr double above = 2147483648.0;
  const double v = static_cast<double>(x);
  if (!(v > -above)) return v <= -above ? Int::min() : 0;
  return v < above ? static_cast<std::int32_t>(v) : Int::max();
}
template <>
std::int32_t convert<float, std::int32_t>(float x) {
  return to_i32(x);
}
template <>
std::int32_t convert<double, std::int32_t>(double x) {
  return to_i32(x);
}

}  // namespace

StepPtr lower_unary(LowerCtx& ctx, int code) {
  const Attrs& attrs = ctx.attrs();
  const auto op = static_cast<simd::Unary>(code);
  double p = 0, q = 0;
  if (op == simd::Unary::leaky_relu) p = attrs.d("slope");
  if (op == simd::Unary::clamp) p = attrs.d("lo"), q = attrs.d("hi");
  return with_any(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    const simd::UnaryFn<T> fn = common_table<T>().unary[code];
    SG_CHECK(fn != nullptr, "cpu: {} has no kernel for {}", op_def(ctx.instr().op).name, to_string(ctx.in_type(0)));
    const Index grain = is_dear(op) ? kDearGrain : kGrain;
    return make_step([=, n = ctx.in_type(0).shape.elements(), x = ctx.in<T>(0), y = ctx.out<T>()] {
      parallel_chunks(n, grain, 64, [&](Index begin, Index end) { fn(x + begin, y + begin, end - begin, p, q); });
    });
  });
}

StepPtr lower_binary(LowerCtx& ctx, int code) {
  const Index grain = static_cast<simd::Binary>(code) == simd::Binary::pow ? kDearGrain : kGrain;
  return with_any(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return lower_binary_with<T, T>(ctx, common_table<T>().binary[code], grain);
  });
}

StepPtr lower_compare(LowerCtx& ctx, int code) {
  return with_any(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return lower_binary_with<T, std::int32_t>(ctx, common_table<T>().compare[code], kGrain);
  });
}

StepPtr lower_where(LowerCtx& ctx, int) {
  return with_any(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    const auto plan =
        plan_broadcast<3>(ctx.out_type().shape, {ctx.in_type(0).shape, ctx.in_type(1).shape, ctx.in_type(2).shape});
    const int mode = (plan.inner[0] ? 0 : 1) + (plan.inner[1] ? 0 : 2) + (plan.inner[2] ? 0 : 4);
    return make_step([=, fn = common_table<T>().where[mode], c = ctx.in<std::int32_t>(0), a = ctx.in<T>(1),
                      b = ctx.in<T>(2), y = ctx.out<T>()] {
      run_plan(plan, kGrain, [&](const std::array<Index, 3>& at, Index to, Index rows, Index cols) {
        fn(c + at[0], plan.row_stride[0], a + at[1], plan.row_stride[1], b + at[2], plan.row_stride[2], y + to, rows,
           cols);
      });
    });
  });
}

StepPtr lower_cast(LowerCtx& ctx, int) {
  return with_any(ctx.in_type(0).dtype, [&](auto from) {
    return with_any(ctx.out_type().dtype, [&](auto to) {
      using From = decltype(from);
      using To = decltype(to);
      return make_step([n = ctx.in_type(0).shape.elements(), x = ctx.in<From>(0), y = ctx.out<To>()] {
        parallel_chunks(n, kGrain, 64, [&](Index begin, Index end) {
#pragma omp simd
          for (Index i = begin; i < end; ++i) y[i] = convert<From, To>(x[i]);
        });
      });
    });
  });
}

}  // namespace sg::cpu
