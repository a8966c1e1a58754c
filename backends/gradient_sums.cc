#include "backends/rewrites.h"
#include "ops/op_ids.h"

namespace sg {

Rewritten keep_gradient_sums(const Tape& tape, std::span<const std::int32_t> keep) {
  const auto instrs = tape.instrs();
  const std::vector<std::int32_t> uses = use_counts(tape, keep);
  const auto product_of = [&](const Instr& cast) -> const Instr* {
    if (cast.op != OpId::cast || tape.type(cast.outputs[0]).dtype != DType::f32) return nullptr;
    const std::int32_t v = cast.inputs[0];
    const Instr& product = instrs[static_cast<std::size_t>(tape.producer(v))];
    const bool sums = product.op == OpId::conv2d_weight_grad || product.op == OpId::matmul;
    const bool only_here = uses[static_cast<std::size_t>(v)] == 1 && tape.type(v).dtype == DType::bf16;
    return sums && only_here && product.forward_of >= 0 ? &product : nullptr;
  };
  Rewriter rewriter(tape);
  bool changed = false;
  for (std::size_t i = 0; i < instrs.size(); ++i) {
    const Instr* const product = product_of(instrs[i]);
    if (product == nullptr) {
      rewriter.copy(static_cast<std::int32_t>(i));
      continue;
    }
    changed = true;
    Attrs attrs = product->attrs;
    attrs.set("f32", std::int64_t{1});
    rewriter.at(static_cast<std::int32_t>(product - instrs.data()));
    rewriter.replace(instrs[i].outputs[0],
                     rewriter.out().emit(product->op, rewriter.mapped_inputs(*product), std::move(attrs))[0]);
  }
  if (!changed) return {};
  return rewriter.finish();  // the products themselves are dead now
}

}  // namespace sg
