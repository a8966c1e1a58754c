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

// conv2d, add of a bias (O), relu -> conv2d_bias, where nobody else uses what lies between.
Rewritten fuse_conv_bias(const Tape& tape, std::span<const std::int32_t> keep);

// A product in bf16 that belongs to a gradient and that is only cast to f32 -> the product with sums in f32: a weight's
// gradient is then rounded once, to f32. Values of the forward pass stay as they are: what training computes of them
// must not depend on what else its program does with them.
Rewritten keep_gradient_sums(const Tape& tape, std::span<const std::int32_t> keep);

}  // namespace sg
