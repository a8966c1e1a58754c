// Elementwise ops with NumPy broadcasting, in f32, f64 and i32; bf16 goes to kernels_bf16.cc.
#include <cmath>
#include <cstring>
#include <limits>

#include "backends/cpu/broadcast_plan.h"

namespace sg::cpu {
namespace {

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

template <class From, class To>
To convert(From x) {
  return static_cast<To>(x);
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

std::pair<double, double> unary_parameters(simd::Unary u, const Attrs& attrs) {
  if (u == simd::Unary::leaky_relu) return {attrs.d("slope"), 0};
  if (u == simd::Unary::clamp) return {attrs.d("lo"), attrs.d("hi")};
  return {0, 0};
}

StepPtr lower_unary(LowerCtx& ctx, int code) {
  if (uses_bf16(ctx.tape(), ctx.instr())) return lower_bf16_elementwise(ctx, RowKernel{RowKernel::unary, code});
  const auto op = static_cast<simd::Unary>(code);
  const auto [p, q] = unary_parameters(op, ctx.attrs());
  return with_any(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    const simd::UnaryFn<T> fn = common_table<T>().unary[code];
    SG_CHECK(fn != nullptr, "cpu: {} has no kernel for {}", op_def(ctx.instr().op).name, to_string(ctx.in_type(0)));
    const Index grain = is_dear(op) ? kDearGrain : kGrain;
    return make_step(
        [fn, grain, p = p, q = q, n = ctx.in_type(0).shape.elements(), x = ctx.in<T>(0), y = ctx.out<T>()] {
          parallel_chunks(n, grain, 64, [&](Index begin, Index end) { fn(x + begin, y + begin, end - begin, p, q); });
        });
  });
}

StepPtr lower_binary(LowerCtx& ctx, int code) {
  if (uses_bf16(ctx.tape(), ctx.instr())) return lower_bf16_elementwise(ctx, RowKernel{RowKernel::binary, code});
  const Index grain = static_cast<simd::Binary>(code) == simd::Binary::pow ? kDearGrain : kGrain;
  return with_any(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return lower_binary_with<T, T>(ctx, common_table<T>().binary[code], grain);
  });
}

StepPtr lower_compare(LowerCtx& ctx, int code) {
  if (uses_bf16(ctx.tape(), ctx.instr())) return lower_bf16_elementwise(ctx, RowKernel{RowKernel::compare, code});
  return with_any(ctx.in_type(0).dtype, [&](auto element) {
    using T = decltype(element);
    return lower_binary_with<T, std::int32_t>(ctx, common_table<T>().compare[code], kGrain);
  });
}

StepPtr lower_where(LowerCtx& ctx, int) {
  if (uses_bf16(ctx.tape(), ctx.instr())) return lower_bf16_elementwise(ctx, RowKernel{RowKernel::where});
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
  if (uses_bf16(ctx.tape(), ctx.instr())) return lower_bf16_cast(ctx);
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
