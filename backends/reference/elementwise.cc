// Every elementwise op: one broadcasting loop around OpDef::scalar, which states the meaning of one element.
#include <algorithm>
#include <cmath>
#include <limits>

#include "backends/reference/kernels.h"

namespace sg::reference {
namespace {

constexpr std::size_t kMaxInputs = 3;

struct Source {
  const void* data = nullptr;
  bool real = true;
  double at(std::int64_t i) const {
    return real ? static_cast<const double*>(data)[i] : static_cast<double>(static_cast<const std::int32_t*>(data)[i]);
  }
};

// Truncates toward zero; what i32 cannot hold goes to its nearest bound, NaN to 0.
std::int32_t to_i32(double x) {
  if (std::isnan(x)) return 0;
  constexpr double lo = std::numeric_limits<std::int32_t>::min(), hi = std::numeric_limits<std::int32_t>::max();
  return static_cast<std::int32_t>(std::clamp(x, lo, hi));
}

}  // namespace

StepPtr elementwise(LowerCtx& ctx) {
  const OpDef& def = op_def(ctx.instr().op);
  const std::size_t inputs = ctx.instr().inputs.size();
  SG_CHECK(def.scalar != nullptr && inputs <= kMaxInputs, "reference: {} has no meaning for one element", def.name);

  const Shape shape = ctx.out_type().shape;
  std::array<Source, kMaxInputs> sources{};
  std::array<View, kMaxInputs + 1> views{};
  for (std::size_t i = 0; i < inputs; ++i) {
    const TensorType& type = ctx.in_type(static_cast<int>(i));
    sources[i] = {ctx.data(ctx.instr().inputs[i]), is_real(type.dtype)};
    views[i] = broadcast_view(type.shape, shape);
  }
  views[kMaxInputs] = dense_view(shape);

  return with_element(ctx.out_type().dtype, [&](auto element) {
    using T = decltype(element);
    T* dst = ctx.out<T>();
    return make_step([dst, shape, inputs, sources, views, scalar = def.scalar, attrs = ctx.attrs()] {
      for_each(shape, views, [&](const auto& at) {
        std::array<double, kMaxInputs> in{};
        for (std::size_t i = 0; i < inputs; ++i) in[i] = sources[i].at(at[i]);
        const double y = scalar(in.data(), attrs);
        if constexpr (std::is_same_v<T, double>) {
          dst[at[kMaxInputs]] = y;
        } else {
          dst[at[kMaxInputs]] = to_i32(y);
        }
      });
    });
  });
}

}  // namespace sg::reference
