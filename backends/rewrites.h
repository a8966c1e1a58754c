// Rewrites that more than one backend makes of the compiler's own copy of a tape (Backend::fuse). A null tape means
// that nothing changed.
#pragma once
#include <functional>

#include "core/rewrite.h"

namespace sg {

// Rewrites one after the other, with the values that must survive followed through them.
class RewriteChain {
 public:
  RewriteChain(const Tape& tape, std::span<const std::int32_t> keep) : tape_(tape), keep_(keep.begin(), keep.end()) {}
  const Tape& tape() const { return result_.tape == nullptr ? tape_ : *result_.tape; }
  std::span<const std::int32_t> keep() const { return keep_; }
  void then(Rewritten next);
  Rewritten finish() { return std::move(result_); }

 private:
  const Tape& tape_;
  std::vector<std::int32_t> keep_;
  Rewritten result_{nullptr, {}};
};

// The instructions that `wanted` names as their decompositions, aliases dropped and constants folded.
Rewritten decompose_where(const Tape& tape, const std::function<bool(const Tape&, const Instr&)>& wanted,
                          std::string_view backend);

// Whether a convolution adds a skip: only where the skip's memory is needed by nobody afterwards, so that the sum can take
// its place, or everywhere.
enum class TakesSkip : std::uint8_t { never, where_it_ends, always };

// What runs as part of a row program (core/row_program.h), or other questions about an instruction.
using Asked = std::function<bool(const Tape&, const Instr&)>;

// conv2d, add of a bias (O), relu -> conv2d_bias, where nobody else uses what lies between.
Rewritten fuse_conv_bias(const Tape& tape, std::span<const std::int32_t> keep);

// conv2d_bias, add of a skip, relu -> conv2d_bias with the skip, where nobody else uses what lies between, `takes` allows
// it, and no row op (`in_rows`) would run with the add anyway: a region adds for nothing what is near.
Rewritten fuse_conv_skip(const Tape& tape, std::span<const std::int32_t> keep,
                         const std::function<TakesSkip(const Tape&, const Instr& conv)>& takes, const Asked& in_rows);

// matmul, add of a bias (N), add of a skip -> matmul_bias, with reshapes between them, where nobody else uses what lies
// between and no row op would run with the adds anyway.
Rewritten fuse_matmul_bias(const Tape& tape, std::span<const std::int32_t> keep, const Asked& takes,
                           const Asked& in_rows);

// Whether operand i lies in the memory of another operand of the instruction.
bool shares_memory(const Tape& tape, const Instr& instr, int i);

// A product in bf16 that belongs to a gradient and that is only cast to f32 -> the product with sums in f32: a weight's
// gradient is then rounded once, to f32. Values of the forward pass stay as they are: what training computes of them
// must not depend on what else its program does with them.
Rewritten keep_gradient_sums(const Tape& tape, std::span<const std::int32_t> keep);

}  // namespace sg
