// Rewriting: a pass walks a tape in order and builds another one, keeping a map from old values to new ones.
#pragma once
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "core/tape.h"

namespace sg {

struct Rewritten {
  std::unique_ptr<Tape> tape;
  std::vector<std::int32_t> map;   // old value id -> new value id; -1 where the value is gone
};

class Rewriter {
 public:
  explicit Rewriter(const Tape& in);
  const Tape& in() const { return in_; }
  Tape& out() { return *out_; }

  Value mapped(std::int32_t old_value);                       // the new value; SG_CHECKs that there is one
  std::vector<Value> mapped_inputs(const Instr& instr);
  void at(std::int32_t instr);                                // records what follows under the origin of that old instruction
  void copy(std::int32_t instr);                              // emits the instruction as it is, on mapped inputs
  void replace(std::int32_t old_value, Value new_value) { map_[static_cast<std::size_t>(old_value)] = new_value.id; }
  Rewritten finish() { return {std::move(out_), std::move(map_)}; }

 private:
  const Tape& in_;
  std::unique_ptr<Tape> out_;
  std::vector<std::int32_t> map_;
};

// The map of two passes run one after the other.
std::vector<std::int32_t> compose(std::span<const std::int32_t> first, std::span<const std::int32_t> second);

// How many instructions use each value as an input; values in `keep` count once more.
std::vector<std::int32_t> use_counts(const Tape& tape, std::span<const std::int32_t> keep = {});

// The passes, in the order in which compile() runs them. Each returns a verified tape.
Rewritten eliminate_dead_code(const Tape& tape, std::span<const std::int32_t> keep);   // roots: keep and assigns
Rewritten simplify(const Tape& tape);            // common subexpressions, constant folding, x * 1
Rewritten apply_exact_forward(const Tape& tape); // a + stop_gradient(b - a) -> b, bit for bit
Rewritten forward_aliases(const Tape& tape);     // drops stop_gradient once gradients are recorded

// Replaces every instruction that `supported` refuses by its decomposition, until none is left. Adds to *count.
// Error{unsupported} naming the op where it has none, or where `strict`.
using SupportedFn = std::function<bool(const Tape&, const Instr&)>;
Rewritten decompose_unsupported(const Tape& tape, const SupportedFn& supported, std::string_view backend, bool strict, std::size_t* count);

}  // namespace sg
