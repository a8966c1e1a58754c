// What the own kernels share: the row of their table, choice of element types, deterministic parallel loops, scratch.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backends/cpu/simd_table.h"
#include "core/backend.h"
#include "core/row_program.h"

namespace sg::cpu {

using Index = std::int64_t;
using StepPtr = std::unique_ptr<Step>;

// `code` is the table row's: which of several ops the shared lowering is for (a simd::Unary, ...).
using LowerFn = StepPtr (*)(LowerCtx& ctx, int code);

StepPtr lower_unary(LowerCtx& ctx, int code);     // code: simd::Unary
StepPtr lower_binary(LowerCtx& ctx, int code);    // simd::Binary
StepPtr lower_compare(LowerCtx& ctx, int code);   // simd::Compare
StepPtr lower_where(LowerCtx& ctx, int);
StepPtr lower_cast(LowerCtx& ctx, int);

bool is_dear(simd::Unary u);  // with exponentials or the like
std::pair<double, double> unary_parameters(simd::Unary u, const Attrs& attrs);

enum class Reduction : int { sum, max, min };
StepPtr lower_reduction(LowerCtx& ctx, int code); // Reduction
StepPtr lower_argmax(LowerCtx& ctx, int);
StepPtr lower_argmin(LowerCtx& ctx, int);
StepPtr lower_quantile(LowerCtx& ctx, int);

StepPtr lower_transpose(LowerCtx& ctx, int);
StepPtr lower_broadcast(LowerCtx& ctx, int);
StepPtr lower_slice(LowerCtx& ctx, int);
StepPtr lower_concat(LowerCtx& ctx, int);
StepPtr lower_pad(LowerCtx& ctx, int);
StepPtr lower_upsample(LowerCtx& ctx, int);
StepPtr lower_avg_pool(LowerCtx& ctx, int);

StepPtr lower_gather_rows(LowerCtx& ctx, int);
StepPtr lower_scatter_add_rows(LowerCtx& ctx, int);
StepPtr lower_one_hot(LowerCtx& ctx, int);
StepPtr lower_histogram(LowerCtx& ctx, int);
StepPtr lower_nearest_code(LowerCtx& ctx, int);

StepPtr lower_softmax(LowerCtx& ctx, int);
StepPtr lower_log_softmax(LowerCtx& ctx, int);
StepPtr lower_cross_entropy(LowerCtx& ctx, int);
StepPtr lower_layer_norm(LowerCtx& ctx, int);
StepPtr lower_rms_norm(LowerCtx& ctx, int);
StepPtr lower_group_norm(LowerCtx& ctx, int);

// Row programs (core/row_program.h), by a tile interpreter on the inner loops of simd_table.h.
StepPtr lower_row_program(LowerCtx& ctx, int);
bool row_program_in_place(const Tape& tape, const Instr& instr, int i, int output);
StepPtr lower_row_bundle(LowerCtx& ctx, int);
bool row_bundle_in_place(const Tape& tape, const Instr& instr, int i, int output);
struct RowKernel {
  enum Kind : std::uint8_t { none, unary, binary, compare, where, cast, expand, reduction } kind = none;
  int code = 0;   // simd::Unary, simd::Binary, simd::Compare or Reduction
};
RowKernel row_kernel(OpId op);

// kernels_bf16.cc: elementwise ops with operands or a result in bf16, computed in f32 and rounded.
bool uses_bf16(const Tape& tape, const Instr& instr);
StepPtr lower_bf16_elementwise(LowerCtx& ctx, RowKernel kernel);
StepPtr lower_bf16_cast(LowerCtx& ctx);
bool exact_in_bf16(RowKernel kernel);  // of operands in bf16 it makes only numbers that bf16 holds

StepPtr lower_uniform(LowerCtx& ctx, int);
StepPtr lower_normal(LowerCtx& ctx, int);

const simd::Table& simd_table();  // of the instruction set in use
template <class T> const simd::Common<T>& common_table();
template <> inline const simd::Common<float>& common_table<float>() { return simd_table().f32; }
template <> inline const simd::Common<double>& common_table<double>() { return simd_table().f64; }
template <> inline const simd::Common<std::int32_t>& common_table<std::int32_t>() { return simd_table().i32; }
template <class T> const simd::Real<T>& real_table();
template <> inline const simd::Real<float>& real_table<float>() { return simd_table().real32; }
template <> inline const simd::Real<double>& real_table<double>() { return simd_table().real64; }

// f(T{}) with T the type of an element.
template <class F> StepPtr with_real(DType t, F f) {
  SG_CHECK(t == DType::f32 || t == DType::f64, "no kernel for {}", to_string(t));
  return t == DType::f64 ? f(double{}) : f(float{});
}
template <class F> StepPtr with_any(DType t, F f) {
  return t == DType::i32 ? f(std::int32_t{}) : with_real(t, f);
}
// bf16 too, for kernels that only move elements or convert them.
template <class F> StepPtr with_stored(DType t, F f) {
  return t == DType::bf16 ? f(BFloat16{}) : with_any(t, f);
}

// Truncates; what i32 cannot hold goes to its nearest bound, NaN to 0.
inline std::int32_t to_i32(double v) {
  using Int = std::numeric_limits<std::int32_t>;
  constexpr double above = 2147483648.0;
  if (!(v > -above)) return v <= -above ? Int::min() : 0;
  return v < above ? static_cast<std::int32_t>(v) : Int::max();
}

template <class F> StepPtr make_step(F f, std::string detail = {}) {
  return std::make_unique<FunctionStep>(std::move(f), std::move(detail));
}

constexpr Index ceil_div(Index a, Index b) { return (a + b - 1) / b; }
constexpr Index round_up(Index a, Index to) { return ceil_div(a, to) * to; }

constexpr Index kGrain = 32768;      // elements of a cheap loop that are worth waking a thread for
constexpr Index kDearGrain = 4096;   // of one with exponentials

// f(begin, end) over [0, n) in pieces of about `grain`, cut at multiples of `align`. The pieces depend on n alone, never
// on the number of threads.
template <class F> void parallel_chunks(Index n, Index grain, Index align, F&& f) {
  if (n <= 0) return;
  const Index pieces = ceil_div(n, std::max<Index>(grain, 1));
  const Index size = round_up(ceil_div(n, pieces), align);
  const Index count = ceil_div(n, size);
  if (count == 1) {
    f(Index{0}, n);
    return;
  }
#pragma omp parallel for schedule(static)
  for (Index i = 0; i < count; ++i) f(i * size, std::min(n, (i + 1) * size));
}

// The same over rows of `cols` elements.
template <class F> void parallel_rows(Index rows, Index cols, Index grain, F&& f) {
  parallel_chunks(rows, std::max<Index>(1, grain / std::max<Index>(cols, 1)), 1, std::forward<F>(f));
}

// Scratch memory of one step. Steps hold it by value.
class Scratch {
 public:
  Scratch() = default;
  Scratch(LowerCtx& ctx, std::size_t bytes) : where_(std::make_shared<void*>(nullptr)) { ctx.scratch(bytes, where_.get()); }
  template <class T> T* at(std::size_t offset = 0) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(*where_) + offset);
  }

 private:
  std::shared_ptr<void*> where_;
};

constexpr std::size_t align64(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// The operand seen as rows of its last axis.
struct RowShape { Index rows, cols; };
inline RowShape rows_of(const Shape& s) {
  const Index cols = s.rank() == 0 ? 1 : s[-1];
  return {cols == 0 ? 0 : s.elements() / cols, cols};
}

// Error{attribute} at the instruction's line where an index is outside [0, bound). For use before a parallel region.
class IndexCheck {
 public:
  IndexCheck(const LowerCtx& ctx, Index bound);
  IndexCheck(std::string_view op, Index bound, Loc loc) : op_(op), bound_(bound), loc_(loc) {}
  void operator()(const std::int32_t* indices, Index n) const;

 private:
  std::string_view op_;
  Index bound_;
  Loc loc_;
};

// The same for all rows that a row program looks up, to be called before anything of it runs. base: by register number,
// where the program's inputs are.
class GatherChecks {
 public:
  GatherChecks(const RowProgram& program, std::span<std::byte* const> base);
  void operator()() const;

 private:
  struct Gather {
    IndexCheck check;
    const std::int32_t* indices;
  };
  std::vector<Gather> gathers_;
  Index rows_;
};

}  // namespace sg::cpu
