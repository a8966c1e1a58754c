// The table of plain kernels: op -> lowering, and in which element types there is one.
#include "backends/cuda/kernels.h"

#include <algorithm>
#include <array>

namespace sg::cuda {
namespace {

enum class Takes : std::uint8_t { real, any, bf16_too };  // element types of real operands: f32, f64; and i32; and bf16

struct Row {
  OpId op;
  LowerFn lower;
  Takes takes;
};

// Sums, norms, tables and searches are done in f32, as on the CPU: what they lose in bf16 is what training needs.
constexpr std::array kRows{
    Row{OpId::transpose, lower_transpose, Takes::bf16_too},
    Row{OpId::broadcast, lower_broadcast, Takes::bf16_too},
    Row{OpId::slice, lower_slice, Takes::bf16_too},
    Row{OpId::concat, lower_concat, Takes::bf16_too},
    Row{OpId::pad, lower_pad, Takes::bf16_too},
    Row{OpId::upsample, lower_upsample, Takes::bf16_too},
    Row{OpId::avg_pool, lower_avg_pool, Takes::bf16_too},
    Row{OpId::sum, lower_reduction, Takes::any},
    Row{OpId::reduce_max, lower_reduction, Takes::any},
    Row{OpId::reduce_min, lower_reduction, Takes::any},
    Row{OpId::argmax, lower_arg_reduction, Takes::any},
    Row{OpId::argmin, lower_arg_reduction, Takes::any},
    Row{OpId::quantile, lower_quantile, Takes::real},
    Row{OpId::gather_rows, lower_gather_rows, Takes::any},
    Row{OpId::scatter_add_rows, lower_scatter_add_rows, Takes::any},
    Row{OpId::one_hot, lower_one_hot, Takes::any},
    Row{OpId::histogram, lower_histogram, Takes::any},
    Row{OpId::softmax, lower_softmax, Takes::real},
    Row{OpId::log_softmax, lower_softmax, Takes::real},
    Row{OpId::cross_entropy, lower_cross_entropy, Takes::any},
    Row{OpId::layer_norm, lower_layer_norm, Takes::real},
    Row{OpId::rms_norm, lower_rms_norm, Takes::real},
    Row{OpId::group_norm, lower_group_norm, Takes::real},
    Row{OpId::uniform, lower_random, Takes::any},
    Row{OpId::normal, lower_random, Takes::any},
};

}  // namespace

LowerFn plain_lowering(const Tape& tape, const Instr& instr) {
  const auto row = std::find_if(kRows.begin(), kRows.end(), [&](const Row& r) { return r.op == instr.op; });
  if (row == kRows.end()) return nullptr;
  const auto takes = [&](std::int32_t v) {
    const DType t = tape.type(v).dtype;
    return t == DType::bf16 ? row->takes == Takes::bf16_too : is_real(t) || row->takes != Takes::real;
  };
  const bool all = std::all_of(instr.inputs.begin(), instr.inputs.end(), takes) &&
                   std::all_of(instr.outputs.begin(), instr.outputs.end(), takes);
  return all ? row->lower : nullptr;
}

}  // namespace sg::cuda
