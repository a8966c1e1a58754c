// The table of the own kernels: op -> lowering.
#include "backends/cpu/kernels.h"

#include <array>

#include "backends/cpu/lowering.h"
#include "ops/op_ids.h"

namespace sg {
namespace {

using simd::Binary;
using simd::Compare;
using simd::Unary;

enum class InPlace : std::uint8_t { never, first, any };  // which input of the output's type output 0 may overwrite

struct Entry {
  OpId op;
  cpu::LowerFn lower;
  int code = 0;
  InPlace in_place = InPlace::never;
};

constexpr Entry unary(OpId op, Unary code) { return {op, cpu::lower_unary, static_cast<int>(code), InPlace::any}; }
constexpr Entry binary(OpId op, Binary code) { return {op, cpu::lower_binary, static_cast<int>(code), InPlace::any}; }
constexpr Entry compare(OpId op, Compare code) { return {op, cpu::lower_compare, static_cast<int>(code), InPlace::any}; }
constexpr Entry reduction(OpId op, cpu::Reduction code) { return {op, cpu::lower_reduction, static_cast<int>(code)}; }

constexpr std::array kEntries{
    binary(OpId::add, Binary::add),
    binary(OpId::sub, Binary::sub),
    binary(OpId::mul, Binary::mul),
    binary(OpId::div, Binary::div),
    binary(OpId::pow, Binary::pow),
    binary(OpId::minimum, Binary::minimum),
    binary(OpId::maximum, Binary::maximum),
    binary(OpId::relu_grad, Binary::relu_grad),
    unary(OpId::neg, Unary::neg),
    unary(OpId::abs, Unary::abs),
    unary(OpId::exp, Unary::exp),
    unary(OpId::log, Unary::log),
    unary(OpId::sqrt, Unary::sqrt),
    unary(OpId::rsqrt, Unary::rsqrt),
    unary(OpId::square, Unary::square),
    unary(OpId::sin, Unary::sin),
    unary(OpId::cos, Unary::cos),
    unary(OpId::acos, Unary::acos),
    unary(OpId::erf, Unary::erf),
    unary(OpId::tanh, Unary::tanh),
    unary(OpId::sigmoid, Unary::sigmoid),
    unary(OpId::softplus, Unary::softplus),
    unary(OpId::silu, Unary::silu),
    unary(OpId::relu, Unary::relu),
    unary(OpId::gelu, Unary::gelu),
    unary(OpId::leaky_relu, Unary::leaky_relu),
    unary(OpId::clamp, Unary::clamp),
    unary(OpId::round, Unary::round),
    unary(OpId::floor, Unary::floor),
    unary(OpId::sign, Unary::sign),
    Entry{OpId::cast, cpu::lower_cast, 0, InPlace::any},
    compare(OpId::equal, Compare::equal),
    compare(OpId::not_equal, Compare::not_equal),
    compare(OpId::less, Compare::less),
    compare(OpId::less_equal, Compare::less_equal),
    compare(OpId::greater, Compare::greater),
    compare(OpId::greater_equal, Compare::greater_equal),
    Entry{OpId::where, cpu::lower_where, 0, InPlace::any},
    reduction(OpId::sum, cpu::Reduction::sum),
    reduction(OpId::reduce_max, cpu::Reduction::max),
    reduction(OpId::reduce_min, cpu::Reduction::min),
    Entry{OpId::argmax, cpu::lower_argmax},
    Entry{OpId::argmin, cpu::lower_argmin},
    Entry{OpId::quantile, cpu::lower_quantile},
    Entry{OpId::transpose, cpu::lower_transpose},
    Entry{OpId::broadcast, cpu::lower_broadcast},
    Entry{OpId::slice, cpu::lower_slice},
    Entry{OpId::concat, cpu::lower_concat},
    Entry{OpId::pad, cpu::lower_pad},
    Entry{OpId::upsample, cpu::lower_upsample},
    Entry{OpId::avg_pool, cpu::lower_avg_pool},
    Entry{OpId::gather_rows, cpu::lower_gather_rows},
    Entry{OpId::scatter_add_rows, cpu::lower_scatter_add_rows},
    Entry{OpId::one_hot, cpu::lower_one_hot},
    Entry{OpId::histogram, cpu::lower_histogram},
    Entry{OpId::nearest_code, cpu::lower_nearest_code},
    Entry{OpId::softmax, cpu::lower_softmax, 0, InPlace::first},
    Entry{OpId::log_softmax, cpu::lower_log_softmax, 0, InPlace::first},
    Entry{OpId::cross_entropy, cpu::lower_cross_entropy},
    Entry{OpId::layer_norm, cpu::lower_layer_norm, 0, InPlace::first},
    Entry{OpId::rms_norm, cpu::lower_rms_norm, 0, InPlace::first},
    Entry{OpId::group_norm, cpu::lower_group_norm, 0, InPlace::first},
    Entry{OpId::row_program, cpu::lower_row_program},
    Entry{OpId::row_bundle, cpu::lower_row_bundle},
    Entry{OpId::uniform, cpu::lower_uniform},
    Entry{OpId::normal, cpu::lower_normal},
};

const Entry* find(OpId op) {
  for (const Entry& e : kEntries)
    if (e.op == op) return &e;
  return nullptr;
}

// Sums, norms, scatters and searches are done in f32: what they lose in bf16 is what training needs.
bool takes_bf16(OpId op) {
  switch (op) {
    case OpId::transpose:
    case OpId::broadcast:
    case OpId::slice:
    case OpId::concat:
    case OpId::pad:
    case OpId::upsample:
    case OpId::avg_pool:
    case OpId::gather_rows:
      return true;
    default: {
      const auto kind = cpu::row_kernel(op).kind;
      return kind != cpu::RowKernel::none && kind != cpu::RowKernel::reduction;
    }
  }
}

}  // namespace

cpu::RowKernel cpu::row_kernel(OpId op) {
  const Entry* e = find(op);
  if (e == nullptr) return {};
  const auto kind = e->lower == lower_unary ? RowKernel::unary : e->lower == lower_binary ? RowKernel::binary
                    : e->lower == lower_compare ? RowKernel::compare : e->lower == lower_where ? RowKernel::where
                    : e->lower == lower_cast ? RowKernel::cast : e->lower == lower_broadcast ? RowKernel::expand
                    : e->lower == lower_reduction ? RowKernel::reduction : RowKernel::none;
  return {kind, e->code};
}

bool has_row_kernel(const Tape& tape, const Instr& instr) {
  if (is_gather(instr)) return true;
  const cpu::RowKernel kernel = cpu::row_kernel(instr.op);
  if (kernel.kind == cpu::RowKernel::none) return false;
  // One real type to compute in per region keeps the executor a template over it (bf16 is computed in f32); i32 holds
  // masks only.
  const DType in = tape.type(instr.inputs[0]).dtype, out = tape.type(instr.outputs[0]).dtype;
  if (kernel.kind == cpu::RowKernel::where) return is_real(out);
  if (kernel.kind == cpu::RowKernel::compare) return is_real(in);
  if (kernel.kind == cpu::RowKernel::cast) {
    const auto single = [](DType t) { return t == DType::f32 || t == DType::bf16; };
    return single(out) && (single(in) || in == DType::i32);
  }
  if (kernel.kind == cpu::RowKernel::reduction && in == DType::bf16) return false;
  return is_real(in) && in == out;
}

bool has_kernel(const Tape& tape, const Instr& instr) {
  return find(instr.op) != nullptr && (takes_bf16(instr.op) || !cpu::uses_bf16(tape, instr));
}

std::unique_ptr<Step> lower_kernel(LowerCtx& ctx) {
  const Entry* entry = find(ctx.instr().op);
  SG_CHECK(entry != nullptr, "cpu: no kernel for {}", op_def(ctx.instr().op).name);
  return entry->lower(ctx, entry->code);
}

bool kernel_in_place(const Tape& tape, const Instr& instr, int i, int output) {
  if (instr.op == OpId::row_bundle) return cpu::row_bundle_in_place(tape, instr, i, output);
  if (instr.op == OpId::row_program) return cpu::row_program_in_place(tape, instr, i, output);
  const Entry* entry = find(instr.op);
  if (entry == nullptr || entry->in_place == InPlace::never) return false;
  if (entry->in_place == InPlace::first && i != 0) return false;
  return tape.type(instr.inputs[static_cast<std::size_t>(i)]) == tape.type(instr.outputs[0]);
}

}  // namespace sg
