// Elementwise ops in bf16: a piece of a row is widened to f32, computed by the loops for f32 and rounded. All results
// are rounded at once, here as in row programs, so that they do not depend on what was fused with what.
#include <algorithm>
#include <array>

#include "backends/cpu/broadcast_plan.h"

namespace sg::cpu {
namespace {

constexpr Index kPiece = 1024;  // elements that are in f32 at a time

// One operand in the form that the loops take: f32, or i32 where it is a condition.
struct Source {
  const std::byte* data;
  DType dtype;
  template <class T>
  const T* at(Index i) const {
    return reinterpret_cast<const T*>(data) + i;
  }
  const float* widened(const simd::Table& table, Index i, Index n, float* buffer) const {
    if (dtype != DType::bf16) return at<float>(i);
    table.widen(at<std::uint16_t>(i), buffer, n);
    return buffer;
  }
};

// f(operands, their places, y, n) for runs of n elements: y in f32 goes to the output rounded, y in i32 as it is.
template <std::size_t N, class R, class F>
StepPtr by_pieces(LowerCtx& ctx, Index grain, F f) {
  std::array<Shape, N> shapes;
  std::array<Source, N> sources;
  for (std::size_t i = 0; i < N; ++i) {
    shapes[i] = ctx.in_type(static_cast<int>(i)).shape;
    sources[i] = {static_cast<const std::byte*>(ctx.data(ctx.instr().inputs[i])),
                  ctx.in_type(static_cast<int>(i)).dtype};
  }
  const auto plan = plan_broadcast<N>(ctx.out_type().shape, shapes);
  return make_step([=, &table = simd_table(), y = ctx.out<void>()] {
    run_plan(plan, grain, [&](const std::array<Index, N>& at, Index to, Index rows, Index cols) {
      for (Index r = 0; r < rows; ++r)
        for (Index c = 0; c < cols; c += kPiece) {
          const Index n = std::min(kPiece, cols - c), place = to + r * cols + c;
          std::array<Index, N> own = at;
          for (std::size_t i = 0; i < N; ++i) own[i] += r * plan.row_stride[i] + (plan.inner[i] ? c : 0);
          if constexpr (std::is_same_v<R, float>) {
            float result[kPiece];
            f(table, sources, plan.inner, own, result, n);
            table.narrow(result, static_cast<std::uint16_t*>(y) + place, n);
          } else {
            f(table, sources, plan.inner, own, static_cast<R*>(y) + place, n);
          }
        }
    });
  });
}

template <class R, class Modes>
StepPtr binary(LowerCtx& ctx, Index grain, const Modes& modes) {
  return by_pieces<2, R>(
      ctx, grain,
      [modes = &modes](const simd::Table& table, const std::array<Source, 2>& in, const std::array<bool, 2>& inner,
                       const std::array<Index, 2>& at, R* y, Index n) {
        float a[kPiece], b[kPiece];
        const int mode = !inner[1] ? 1 : !inner[0] ? 2 : 0;
        (*modes)[mode](in[0].widened(table, at[0], inner[0] ? n : 1, a), 0,
                       in[1].widened(table, at[1], inner[1] ? n : 1, b), 0, y, 1, n);
      });
}

template <class T>
double number(T x) {
  return static_cast<double>(x);
}

}  // namespace

bool uses_bf16(const Tape& tape, const Instr& instr) {
  const auto is_bf16 = [&](std::int32_t v) { return tape.type(v).dtype == DType::bf16; };
  return std::any_of(instr.inputs.begin(), instr.inputs.end(), is_bf16) ||
         std::any_of(instr.outputs.begin(), instr.outputs.end(), is_bf16);
}

bool exact_in_bf16(RowKernel kernel) {
  using simd::Binary, simd::Unary;
  if (kernel.kind == RowKernel::where || kernel.kind == RowKernel::expand) return true;
  if (kernel.kind == RowKernel::unary) {
    const auto op = static_cast<Unary>(kernel.code);
    return op == Unary::neg || op == Unary::abs || op == Unary::relu || op == Unary::sign;
  }
  const auto op = static_cast<Binary>(kernel.code);
  return kernel.kind == RowKernel::binary &&
         (op == Binary::minimum || op == Binary::maximum || op == Binary::relu_grad);
}

StepPtr lower_bf16_elementwise(LowerCtx& ctx, RowKernel kernel) {
  const simd::Common<float>& loops = common_table<float>();
  switch (kernel.kind) {
    case RowKernel::unary: {
      const auto op = static_cast<simd::Unary>(kernel.code);
      const auto [p, q] = unary_parameters(op, ctx.attrs());
      return by_pieces<1, float>(ctx, is_dear(op) ? kDearGrain : kGrain,
                                 [fn = loops.unary[kernel.code], p = p, q = q](
                                     const simd::Table& table, const std::array<Source, 1>& in,
                                     const std::array<bool, 1>&, const std::array<Index, 1>& at, float* y, Index n) {
                                   float x[kPiece];
                                   fn(in[0].widened(table, at[0], n, x), y, n, p, q);
                                 });
    }
    case RowKernel::binary:
      return binary<float>(ctx, static_cast<simd::Binary>(kernel.code) == simd::Binary::pow ? kDearGrain : kGrain,
                           loops.binary[kernel.code]);
    case RowKernel::compare:
      return binary<std::int32_t>(ctx, kGrain, loops.compare[kernel.code]);
    case RowKernel::where:
      return by_pieces<3, float>(
          ctx, kGrain,
          [&modes = loops.where](const simd::Table& table, const std::array<Source, 3>& in,
                                 const std::array<bool, 3>& inner, const std::array<Index, 3>& at, float* y, Index n) {
            float a[kPiece], b[kPiece];
            const int mode = (inner[0] ? 0 : 1) + (inner[1] ? 0 : 2) + (inner[2] ? 0 : 4);
            modes[mode](in[0].at<std::int32_t>(at[0]), 0, in[1].widened(table, at[1], inner[1] ? n : 1, a), 0,
                        in[2].widened(table, at[2], inner[2] ? n : 1, b), 0, y, 1, n);
          });
    default:
      internal_error("lower_bf16_elementwise", "not an elementwise kernel", ctx.instr().loc);
  }
}

StepPtr lower_bf16_cast(LowerCtx& ctx) {
  const DType from = ctx.in_type(0).dtype, to = ctx.out_type().dtype;
  const Index n = ctx.in_type(0).shape.elements();
  const simd::Table& table = simd_table();
  if (from == DType::f32 || to == DType::f32) {
    return make_step([&table, n, narrows = from == DType::f32, x = ctx.in<std::byte>(0), y = ctx.out<std::byte>()] {
      parallel_chunks(n, kGrain, 64, [&](Index begin, Index end) {
        const std::byte* in = x + begin * (narrows ? 4 : 2);
        std::byte* out = y + begin * (narrows ? 2 : 4);
        if (narrows)
          table.narrow(reinterpret_cast<const float*>(in), reinterpret_cast<std::uint16_t*>(out), end - begin);
        else
          table.widen(reinterpret_cast<const std::uint16_t*>(in), reinterpret_cast<float*>(out), end - begin);
      });
    });
  }
  return with_stored(from, [&](auto in) {
    return with_stored(to, [&](auto out) {
      using From = decltype(in);
      using To = decltype(out);
      return make_step([n, x = ctx.in<From>(0), y = ctx.out<To>()] {
        parallel_chunks(n, kGrain, 64, [&](Index begin, Index end) {
          for (Index i = begin; i < end; ++i) {
            if constexpr (std::is_same_v<To, std::int32_t>)
              y[i] = to_i32(number(x[i]));
            else
              y[i] = To(number(x[i]));
          }
        });
      });
    });
  });
}

}  // namespace sg::cpu
