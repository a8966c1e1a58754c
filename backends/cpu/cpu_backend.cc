// The cpu backend: products and convolutions by oneDNN, everything else by the own kernels, all on one OpenMP runtime.
// Buffers are plain host arrays in the tape's own element types.
#include <omp.h>
#include <sys/mman.h>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "backends/backends.h"
#include "backends/cpu/bf16.h"
#include "backends/cpu/kernels.h"
#include "backends/cpu/onednn_compat.h"
#include "backends/cpu/onednn_ops.h"
#include "backends/cpu/row_jit.h"
#include "backends/cpu/row_lookups.h"
#include "backends/cpu/tune.h"
#include "backends/rewrites.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

using LowerFn = std::unique_ptr<Step> (*)(LowerCtx&);
struct Row {
  OpId op;
  LowerFn lower;
};

// What oneDNN does. Ops that are not here are asked of kernels.h.
constexpr Row kOnednn[] = {
    {OpId::matmul, lower_matmul},
    {OpId::matmul_bias, lower_matmul},
    {OpId::conv2d, lower_conv2d},
    {OpId::conv2d_bias, lower_conv2d},
    {OpId::conv2d_transpose, lower_conv2d_transpose},
    {OpId::conv2d_weight_grad, lower_conv2d_weight_grad},
};

LowerFn onednn_lowering(OpId op) {
  for (const Row& row : kOnednn)
    if (row.op == op) return row.lower;
  return nullptr;
}

constexpr int kSkip = 3;  // operand of a convolution
bool has_skip(const Instr& instr) { return instr.op == OpId::conv2d_bias && instr.inputs.size() > kSkip; }

// Operations along rows that are faster as compositions where those run as generated code, and join their neighbours.
bool better_composed(const Tape& tape, const Instr& instr) {
  if (instr.op != OpId::softmax && instr.op != OpId::log_softmax && instr.op != OpId::layer_norm &&
      instr.op != OpId::rms_norm && instr.op != OpId::group_norm)
    return false;
  const TensorType& t = tape.type(instr.outputs[0]);
  return t.dtype == DType::f32 && t.shape.elements() > 0 && t.shape[-1] <= cpu::kMaxGeneratedColumns;
}

constexpr std::size_t kCacheLine = 64;
constexpr std::size_t kHugePage = std::size_t{2} << 20;

class CpuBackend final : public Backend {
 public:
  std::string_view name() const override { return "cpu"; }
  std::string describe() const override {
    constexpr std::string_view kWinograd[] = {"off", "auto", "on"}, kTune[] = {"off", "cached", "on"};
    const std::string note = cpu::tuning_note();
    return fmt::format(
        "oneDNN {} (OpenMP), own kernels for {} (of {}), winograd {}, tune {}{}, {} threads", onednn::library_version(),
        isa_name(), fmt::join(isa_names(), ", "), kWinograd[static_cast<std::size_t>(winograd_use())],
        kTune[static_cast<std::size_t>(cpu::tuning())], note.empty() ? "" : " (" + note + ")", threads());
  }

  bool supports(const Tape& tape, const Instr& instr) const override {
    if (instr.op == OpId::matmul_bias) return matmul_takes_bias(tape, instr);
    if (has_skip(instr)) return conv_takes_skip(tape, instr) != TakesSkip::never;
    return onednn_lowering(instr.op) ? is_real(tape.type(instr.outputs[0]).dtype) : has_kernel(tape, instr);
  }
  std::unique_ptr<Step> lower(LowerCtx& ctx) override {
    const LowerFn lower = onednn_lowering(ctx.instr().op);
    if (lower == nullptr) return lower_kernel(ctx);
    if (ctx.in_type(0).dtype == DType::bf16)
      cpu::require_bf16(fmt::format("backend 'cpu': {}", op_def(ctx.instr().op).name));
    return lower(ctx);
  }
  // Products and convolutions read their inputs many times while they write; a convolution's skip is read where its sum
  // is written.
  bool in_place(const Tape& tape, const Instr& instr, int i, int output) const override {
    if (has_skip(instr)) return i == kSkip && !shares_memory(tape, instr, i);
    return !onednn_lowering(instr.op) && kernel_in_place(tape, instr, i, output);
  }
  bool bundles_rows() const override { return true; }
  bool row_op(const Tape& tape, const Instr& instr) const override {
    return has_row_kernel(tape, instr) && (!is_gather(instr) || cpu::worth_looking_up(tape, instr));
  }
  Rewritten fuse(const Tape& tape, std::span<const std::int32_t> keep) const override {
    RewriteChain chain(tape, keep);
    if (cpu::has_generator()) chain.then(decompose_where(tape, better_composed, name()));
    chain.then(keep_gradient_sums(chain.tape(), chain.keep()));
    chain.then(fuse_conv_bias(chain.tape(), chain.keep()));
    chain.then(fuse_conv_skip(chain.tape(), chain.keep(), conv_takes_skip, has_row_kernel));
    chain.then(fuse_matmul_bias(chain.tape(), chain.keep(), matmul_takes_bias, has_row_kernel));
    if (cpu::has_generator()) chain.then(cpu::look_up_repeated_rows(chain.tape()));
    return chain.finish();
  }

  // Subnormal numbers count as zero while steps run, as inputs and as results. An average that decays (the sums of a
  // code that nobody chooses, a moment of an optimizer) ends among them, and each operation on one costs a hundred
  // ordinary ones: measured, a training step took five times its time once dead codes had got there.
  void enter() override {
#ifdef __SSE__
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    for_each_thread([] {
      saved_mode = _mm_getcsr();
      _mm_setcsr(saved_mode | kFlushToZero | kDenormalsAreZero);
    });
#endif
  }
  void leave() override {
#ifdef __SSE__
    for_each_thread([] { _mm_setcsr(saved_mode); });
#endif
  }

  // Big blocks lie on huge pages: a fresh 16 MiB buffer costs 9 ms to write on small pages, 0.6 ms on huge ones.
  void* allocate(std::size_t bytes) override {
    const std::size_t unit = bytes >= kHugePage ? kHugePage : kCacheLine;
    const std::size_t rounded = (bytes + unit - 1) / unit * unit;
    void* p = std::aligned_alloc(unit, rounded == 0 ? unit : rounded);
    if (!p) fail(ErrorKind::backend, "cpu: out of memory, {} bytes asked for", bytes);
    if (unit == kHugePage) madvise(p, rounded, MADV_HUGEPAGE);  // advice: where it is refused, small pages do
    return p;
  }
  void release(void* p) override { std::free(p); }
  void upload(void* dst, const std::byte* src, TensorType type) override { std::memcpy(dst, src, type.bytes()); }
  void download(std::byte* dst, const void* src, TensorType type) override { std::memcpy(dst, src, type.bytes()); }

 private:
  static inline thread_local unsigned saved_mode = 0;
  template <class F>
  static void for_each_thread(F f) {
    if (omp_get_max_threads() == 1) {
      f();
    } else {
#pragma omp parallel
      f();
    }
  }
};

}  // namespace

Backend& cpu_backend() {
  static CpuBackend backend;
  return backend;
}

}  // namespace sg
