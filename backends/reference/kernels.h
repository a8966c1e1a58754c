// Lowerings of the reference backend, one per op, and the two helpers that they share: walking strided views, and the
// choice of an element type. Buffers hold double (tape types f32 and f64) or std::int32_t (i32). Every Step captures
// its addresses and shapes when it is lowered; run() allocates nothing.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <utility>

#include "core/backend.h"

namespace sg::reference {

using StepPtr = std::unique_ptr<Step>;

StepPtr elementwise(LowerCtx& ctx);

StepPtr sum(LowerCtx& ctx);
StepPtr reduce_max(LowerCtx& ctx);
StepPtr reduce_min(LowerCtx& ctx);
StepPtr argmax(LowerCtx& ctx);
StepPtr argmin(LowerCtx& ctx);
StepPtr quantile(LowerCtx& ctx);

StepPtr transpose(LowerCtx& ctx);
StepPtr broadcast(LowerCtx& ctx);
StepPtr slice(LowerCtx& ctx);
StepPtr concat(LowerCtx& ctx);
StepPtr pad(LowerCtx& ctx);

StepPtr matmul(LowerCtx& ctx);  // and matmul_bias
StepPtr conv2d(LowerCtx& ctx);
StepPtr conv2d_transpose(LowerCtx& ctx);
StepPtr conv2d_weight_grad(LowerCtx& ctx);
StepPtr conv2d_bias(LowerCtx& ctx);
StepPtr upsample(LowerCtx& ctx);
StepPtr avg_pool(LowerCtx& ctx);

StepPtr gather_rows(LowerCtx& ctx);
StepPtr scatter_add_rows(LowerCtx& ctx);
StepPtr one_hot(LowerCtx& ctx);
StepPtr histogram(LowerCtx& ctx);
StepPtr nearest_code(LowerCtx& ctx);

StepPtr softmax(LowerCtx& ctx);
StepPtr log_softmax(LowerCtx& ctx);
StepPtr cross_entropy(LowerCtx& ctx);
StepPtr layer_norm(LowerCtx& ctx);
StepPtr rms_norm(LowerCtx& ctx);
StepPtr group_norm(LowerCtx& ctx);

StepPtr uniform(LowerCtx& ctx);
StepPtr normal(LowerCtx& ctx);

template <class F>
StepPtr make_step(F f) {
  return std::make_unique<FunctionStep>(std::move(f));
}

// Calls f with a value of the type in which buffers of dtype t are stored.
template <class F>
StepPtr with_element(DType t, F f) {
  return is_real(t) ? f(double{}) : f(std::int32_t{});
}

// Where element (i0, i1, ...) of a walked shape lies in a buffer: offset + sum of i_d * stride[d].
struct View {
  std::int64_t offset = 0;
  std::array<std::int64_t, Shape::kMaxRank> stride{};
};

// The view of a dense buffer of that shape.
View dense_view(const Shape& shape);
// The view of a dense buffer of shape `from` while walking `to`, as NumPy broadcasts: stride 0 along repeated axes.
View broadcast_view(const Shape& from, const Shape& to);

// Visits every index of `shape` in row-major order and calls f(at), at[k] = the place of that index in views[k].
template <std::size_t N, class F>
void for_each(const Shape& shape, const std::array<View, N>& views, F f) {
  std::array<std::int64_t, N> at{};
  for (std::size_t k = 0; k < N; ++k) at[k] = views[k].offset;
  std::array<std::int64_t, Shape::kMaxRank> index{};
  const std::int64_t elements = shape.elements();
  for (std::int64_t e = 0; e < elements; ++e) {
    f(at);
    for (int axis = shape.rank() - 1; axis >= 0; --axis) {
      const auto d = static_cast<std::size_t>(axis);
      for (std::size_t k = 0; k < N; ++k) at[k] += views[k].stride[d];
      if (++index[d] < shape[axis]) break;
      for (std::size_t k = 0; k < N; ++k) at[k] -= views[k].stride[d] * shape[axis];
      index[d] = 0;
    }
  }
}

// Called as check(index, position): Error{attribute} where an index is not in [0, bound).
class IndexCheck {
 public:
  IndexCheck(const LowerCtx& ctx, std::int64_t bound)
      : op_(op_def(ctx.instr().op).name), bound_(bound), loc_(ctx.instr().loc) {}
  void operator()(std::int32_t index, std::int64_t position) const {
    if (index < 0 || index >= bound_) throw_error(index, position);
  }

 private:
  [[noreturn]] void throw_error(std::int32_t index, std::int64_t position) const;
  std::string_view op_;
  std::int64_t bound_;
  Loc loc_;
};

}  // namespace sg::reference
