// Matrix products by oneDNN. Batch axes are one axis to it; a transposed side is a pair of strides, never a copy.
#include "backends/cpu/onednn_ops.h"
#include "backends/cpu/onednn_step.h"
#include "backends/cpu/plain_loops.h"

namespace sg {
namespace {

using onednn::Dims;
using onednn::Md;

// rows x columns, or (batch, rows, columns) where there is more than one, stored transposed or not.
Md matrix(std::int64_t batch, std::int64_t rows, std::int64_t columns, bool transposed) {
  constexpr auto kF32 = dnnl::memory::data_type::f32;
  const std::int64_t row_stride = transposed ? 1 : columns, column_stride = transposed ? rows : 1;
  if (batch == 1) return {Dims{rows, columns}, kF32, Dims{row_stride, column_stride}};
  return {Dims{batch, rows, columns}, kF32, Dims{rows * columns, row_stride, column_stride}};
}

template <class T>
std::unique_ptr<Step> plain(LowerCtx& ctx, const MatmulShape& s) {
  return std::make_unique<FunctionStep>(
      [s, a = ctx.in<T>(0), b = ctx.in<T>(1), c = ctx.out<T>()] { plain_matmul(s, a, b, c); }, "plain loops");
}

}  // namespace

std::unique_ptr<Step> lower_matmul(LowerCtx& ctx) {
  const MatmulShape s = matmul_shape(ctx.attrs(), ctx.in_type(0).shape, ctx.out_type().shape);
  if (ctx.in_type(0).dtype == DType::f64) return plain<double>(ctx, s);
  if (s.empty()) return plain<float>(ctx, s);
  return onednn::guarded("matmul", [&]() -> std::unique_ptr<Step> {
    const Md a = matrix(s.batch, s.m, s.k, s.transpose_a), b = matrix(s.batch, s.k, s.n, s.transpose_b),
             c = matrix(s.batch, s.m, s.n, false);
    auto step = std::make_unique<onednn::PrimitiveStep>();
    step->call<dnnl::matmul>(onednn::matmul_pd(a, b, c, onednn::user_scratchpad(), onednn::engine()),
                             {{DNNL_ARG_SRC, onednn::memory_at(a, ctx.in<float>(0))},
                              {DNNL_ARG_WEIGHTS, onednn::memory_at(b, ctx.in<float>(1))},
                              {DNNL_ARG_DST, onednn::memory_at(c, ctx.out<float>())}});
    step->reserve(ctx);
    return step;
  });
}

}  // namespace sg
