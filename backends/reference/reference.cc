// The reference backend: the oracle that other backends are compared with. Plain loops on one thread, real numbers
// always in double, whatever the tape says; host arrays of f32 and bf16 are widened on the way in and rounded on the way
// out. A result of type bf16 is rounded to bf16 as soon as it is made: what an op loses in bf16 is part of its meaning.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/backends.h"
#include "backends/reference/kernels.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

using LowerFn = std::unique_ptr<Step> (*)(LowerCtx&);

// The lowering table. It has no default, so that the compiler warns of an op that is missing. Null: never reaches a
// backend (leaves, assigns and aliases are the program's own).
LowerFn lowering(OpId op) {
  switch (op) {
    case OpId::input:
    case OpId::constant:
    case OpId::read:
    case OpId::assign:
    case OpId::row_program:
    case OpId::row_bundle:
    case OpId::reshape:
    case OpId::after:
    case OpId::stop_gradient:
      return nullptr;
    case OpId::add:
    case OpId::sub:
    case OpId::mul:
    case OpId::div:
    case OpId::pow:
    case OpId::minimum:
    case OpId::maximum:
    case OpId::neg:
    case OpId::abs:
    case OpId::exp:
    case OpId::log:
    case OpId::sqrt:
    case OpId::rsqrt:
    case OpId::square:
    case OpId::sin:
    case OpId::cos:
    case OpId::acos:
    case OpId::erf:
    case OpId::tanh:
    case OpId::sigmoid:
    case OpId::softplus:
    case OpId::silu:
    case OpId::relu:
    case OpId::gelu:
    case OpId::leaky_relu:
    case OpId::clamp:
    case OpId::round:
    case OpId::floor:
    case OpId::sign:
    case OpId::cast:
    case OpId::equal:
    case OpId::not_equal:
    case OpId::less:
    case OpId::less_equal:
    case OpId::greater:
    case OpId::greater_equal:
    case OpId::where:
    case OpId::relu_grad:
      return reference::elementwise;
    case OpId::sum:
      return reference::sum;
    case OpId::reduce_max:
      return reference::reduce_max;
    case OpId::reduce_min:
      return reference::reduce_min;
    case OpId::argmax:
      return reference::argmax;
    case OpId::argmin:
      return reference::argmin;
    case OpId::quantile:
      return reference::quantile;
    case OpId::transpose:
      return reference::transpose;
    case OpId::broadcast:
      return reference::broadcast;
    case OpId::slice:
      return reference::slice;
    case OpId::concat:
      return reference::concat;
    case OpId::pad:
      return reference::pad;
    case OpId::matmul:
    case OpId::matmul_bias:
      return reference::matmul;
    case OpId::conv2d:
      return reference::conv2d;
    case OpId::conv2d_transpose:
      return reference::conv2d_transpose;
    case OpId::conv2d_weight_grad:
      return reference::conv2d_weight_grad;
    case OpId::conv2d_bias:
      return reference::conv2d_bias;
    case OpId::upsample:
      return reference::upsample;
    case OpId::avg_pool:
      return reference::avg_pool;
    case OpId::gather_rows:
      return reference::gather_rows;
    case OpId::scatter_add_rows:
      return reference::scatter_add_rows;
    case OpId::one_hot:
      return reference::one_hot;
    case OpId::histogram:
      return reference::histogram;
    case OpId::nearest_code:
      return reference::nearest_code;
    case OpId::softmax:
      return reference::softmax;
    case OpId::log_softmax:
      return reference::log_softmax;
    case OpId::cross_entropy:
      return reference::cross_entropy;
    case OpId::layer_norm:
      return reference::layer_norm;
    case OpId::rms_norm:
      return reference::rms_norm;
    case OpId::group_norm:
      return reference::group_norm;
    case OpId::uniform:
      return reference::uniform;
    case OpId::normal:
      return reference::normal;
  }
  return nullptr;
}

// A kernel, and then its bf16 results rounded.
std::unique_ptr<Step> with_rounding(LowerCtx& ctx, std::unique_ptr<Step> kernel) {
  std::vector<std::span<double>> rounded;
  for (const std::int32_t v : ctx.instr().outputs)
    if (const TensorType& type = ctx.type(v); type.dtype == DType::bf16)
      rounded.emplace_back(static_cast<double*>(ctx.data(v)), static_cast<std::size_t>(type.shape.elements()));
  if (rounded.empty()) return kernel;
  return reference::make_step([kernel = std::shared_ptr<Step>(std::move(kernel)), rounded] {
    kernel->run();
    for (const std::span<double> values : rounded)
      for (double& x : values) x = static_cast<double>(BFloat16(x));
  });
}

// f(T{}) with T the type of a host array of real numbers narrower than double; nothing for other types.
template <class F>
bool with_narrow_real(DType t, F f) {
  if (t == DType::f32) f(float{});
  if (t == DType::bf16) f(BFloat16{});
  return t == DType::f32 || t == DType::bf16;
}

class ReferenceBackend final : public Backend {
 public:
  std::string_view name() const override { return "reference"; }
  std::string describe() const override { return "plain loops in float64, one thread"; }
  DType storage(DType t) const override { return is_real(t) ? DType::f64 : DType::i32; }
  bool supports(const Tape&, const Instr& instr) const override { return lowering(instr.op) != nullptr; }

  std::unique_ptr<Step> lower(LowerCtx& ctx) override {
    const LowerFn fn = lowering(ctx.instr().op);
    SG_CHECK(fn != nullptr, "reference: {} is no op of a backend", op_def(ctx.instr().op).name);
    return with_rounding(ctx, fn(ctx));
  }

  bool in_place(const Tape& tape, const Instr& instr, int i, int) const override {
    return lowering(instr.op) == reference::elementwise &&
           tape.type(instr.inputs[static_cast<std::size_t>(i)]) == tape.type(instr.outputs[0]);
  }

  void* allocate(std::size_t bytes) override {
    constexpr std::size_t kAlign = 64;
    const std::size_t rounded = std::max(kAlign, (bytes + kAlign - 1) / kAlign * kAlign);
    void* p = rounded >= bytes ? std::aligned_alloc(kAlign, rounded) : nullptr;
    if (p == nullptr) fail(ErrorKind::backend, "reference: out of memory: {} bytes asked for", bytes);
    return p;
  }

  void release(void* p) override { std::free(p); }

  void upload(void* dst, const std::byte* src, TensorType type) override {
    const bool widened = with_narrow_real(type.dtype, [&](auto zero) {
      using T = decltype(zero);
      std::transform(reinterpret_cast<const T*>(src), reinterpret_cast<const T*>(src) + type.shape.elements(),
                     static_cast<double*>(dst), [](T x) { return static_cast<double>(x); });
    });
    if (!widened && type.bytes() > 0) std::memcpy(dst, src, type.bytes());
  }

  void download(std::byte* dst, const void* src, TensorType type) override {
    const bool narrowed = with_narrow_real(type.dtype, [&](auto zero) {
      using T = decltype(zero);
      std::transform(static_cast<const double*>(src), static_cast<const double*>(src) + type.shape.elements(),
                     reinterpret_cast<T*>(dst), [](double x) { return T(x); });
    });
    if (!narrowed && type.bytes() > 0) std::memcpy(dst, src, type.bytes());
  }
};

}  // namespace

Backend& reference_backend() {
  static ReferenceBackend backend;
  return backend;
}

namespace reference {

View dense_view(const Shape& shape) { return broadcast_view(shape, shape); }

View broadcast_view(const Shape& from, const Shape& to) {
  View view;
  const int added = to.rank() - from.rank();
  std::int64_t stride = 1;
  for (int axis = from.rank() - 1; axis >= 0; --axis) {
    const bool repeated = from[axis] == 1 && to[added + axis] != 1;
    view.stride[static_cast<std::size_t>(added + axis)] = repeated ? 0 : stride;
    stride *= from[axis];
  }
  return view;
}

}  // namespace reference
}  // namespace sg
