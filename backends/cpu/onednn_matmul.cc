// Matrix products by oneDNN. Batch axes are one axis to it; a transposed side is a pair of strides, never a copy.
#include <algorithm>

#include "backends/cpu/onednn_ops.h"
#include "backends/cpu/onednn_step.h"
#include "backends/cpu/plain_loops.h"

namespace sg {
namespace {

using onednn::Dims;
using onednn::Md;

constexpr auto kF32 = dnnl::memory::data_type::f32;

// Parts of the inner axis where it is so long that oneDNN would split it by the number of threads; else 1. By the shape
// alone.
std::int64_t parts_of(const MatmulShape& s) {
  constexpr std::int64_t kLong = 4096, kLongBeside = 8, kPart = 1024, kMost = 8;
  return s.batch == 1 && s.k >= kLong && s.k >= kLongBeside * std::max(s.m, s.n) ? std::min(s.k / kPart, kMost) : 1;
}

std::unique_ptr<Step> in_parts(LowerCtx& ctx, const MatmulShape& s, const Md& c) {
  auto step = std::make_unique<onednn::PrimitiveStep>();
  const std::int64_t inner = (s.k + parts_of(s) - 1) / parts_of(s), a_step = s.transpose_a ? s.m : 1,
                     b_step = s.transpose_b ? 1 : s.n;
  const auto type = onednn::data_type(ctx.in_type(0).dtype);
  const auto element = static_cast<std::int64_t>(size_of(ctx.in_type(0).dtype));
  const Md wide({s.m, s.n}, kF32, Dims{s.n, 1});  // sums are in f32
  const dnnl::memory result = onednn::memory_at(c, ctx.out<void>());
  std::vector<onednn::PrimitiveStep::Part> parts;
  std::vector<dnnl::memory> sums;
  std::string name;
  const onednn::OneThread one;
  for (std::int64_t first = 0; first < s.k; first += inner) {
    const std::int64_t k = std::min(inner, s.k - first);
    const Md a({s.m, k}, type, s.transpose_a ? Dims{1, s.m} : Dims{s.k, 1}),
        b({k, s.n}, type, s.transpose_b ? Dims{1, s.k} : Dims{s.n, 1});
    const auto pd = onednn::matmul_pd(a, b, {}, wide, onednn::user_scratchpad(), onednn::engine());
    name = pd.impl_info_str();
    sums.push_back(first == 0 && c == wide ? result : step->in_scratch(wide));
    parts.push_back({dnnl::matmul(pd),
                     pd.scratchpad_desc(),
                     {{DNNL_ARG_SRC, onednn::memory_at(a, ctx.in<std::byte>(0) + first * a_step * element)},
                      {DNNL_ARG_WEIGHTS, onednn::memory_at(b, ctx.in<std::byte>(1) + first * b_step * element)},
                      {DNNL_ARG_DST, sums.back()}}});
  }
  const dnnl::memory sum = sums[0];
  step->sum_of_parts(std::move(parts), std::move(sums), name);
  if (c != wide) step->reorder(sum, result);
  step->reserve(ctx);
  return step;
}

// rows x columns, or (batch, rows, columns) where there is more than one, stored transposed or not.
Md matrix(DType dtype, std::int64_t batch, std::int64_t rows, std::int64_t columns, bool transposed) {
  const auto type = onednn::data_type(dtype);
  const std::int64_t row_stride = transposed ? 1 : columns, column_stride = transposed ? rows : 1;
  if (batch == 1) return {Dims{rows, columns}, type, Dims{row_stride, column_stride}};
  return {Dims{batch, rows, columns}, type, Dims{rows * columns, row_stride, column_stride}};
}

template <class T>
std::unique_ptr<Step> plain(LowerCtx& ctx, const MatmulShape& s) {
  return std::make_unique<FunctionStep>(
      [s, a = ctx.in<T>(0), b = ctx.in<T>(1), c = ctx.out<T>()] { plain_matmul(s, a, b, c); }, "plain loops");
}

MatmulShape shape_of(const Tape& tape, const Instr& product) {
  return matmul_shape(product.attrs, tape.type(product.inputs[0]).shape, tape.type(product.outputs[0]).shape);
}

}  // namespace

bool matmul_takes_bias(const Tape& tape, const Instr& product) {
  const MatmulShape s = shape_of(tape, product);
  return tape.type(product.inputs[0]).dtype == DType::f32 && !s.empty() && parts_of(s) == 1;
}

std::unique_ptr<Step> lower_matmul(LowerCtx& ctx) {
  const MatmulShape s = shape_of(ctx.tape(), ctx.instr());
  if (ctx.in_type(0).dtype == DType::f64) return plain<double>(ctx, s);
  if (s.empty()) return onednn::zeros(ctx);
  return onednn::guarded("matmul", [&]() -> std::unique_ptr<Step> {
    const DType t = ctx.in_type(0).dtype;
    const Md a = matrix(t, s.batch, s.m, s.k, s.transpose_a), b = matrix(t, s.batch, s.k, s.n, s.transpose_b),
             c = matrix(ctx.out_type().dtype, s.batch, s.m, s.n, false);
    if (parts_of(s) > 1) return in_parts(ctx, s, c);
    dnnl::primitive_attr attr = onednn::user_scratchpad();
    onednn::PrimitiveStep::Args args{{DNNL_ARG_SRC, onednn::memory_at(a, ctx.in<void>(0))},
                                     {DNNL_ARG_WEIGHTS, onednn::memory_at(b, ctx.in<void>(1))},
                                     {DNNL_ARG_DST, onednn::memory_at(c, ctx.out<void>())}};
    const std::size_t operands = ctx.instr().inputs.size();
    Md bias;
    if (operands > 2) {
      const Dims ones(s.batch == 1 ? 1 : 2, 1);
      Dims dims = ones, strides(ones.size(), s.n);
      dims.push_back(s.n), strides.push_back(1);
      bias = Md(dims, onednn::data_type(t), strides);
      args.emplace_back(DNNL_ARG_BIAS, onednn::memory_at(bias, ctx.in<void>(2)));
    }
    if (operands > 3) {
      dnnl::post_ops add;
      add.append_binary(dnnl::algorithm::binary_add, c);
      attr.set_post_ops(add);
      args.emplace_back(DNNL_ARG_ATTR_MULTIPLE_POST_OP(0) | DNNL_ARG_SRC_1, onednn::memory_at(c, ctx.in<void>(3)));
    }
    auto step = std::make_unique<onednn::PrimitiveStep>();
    step->call<dnnl::matmul>(onednn::matmul_pd(a, b, bias, c, attr, onednn::engine()), std::move(args));
    if (operands > 3) step->note("skip");
    step->reserve(ctx);
    return step;
  });
}

}  // namespace sg
