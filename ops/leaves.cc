// Leaves of a tape (input, constant, read: their type is stated in the attributes) and assign, which has no output.
// Tape records them itself, for it keeps the names, variables and constant tensors that their attributes refer to.
#include "ops/op_ids.h"

namespace sg {
namespace {

std::vector<TensorType> infer_leaf(std::span<const TensorType>, const Attrs& attrs) {
  return {{static_cast<DType>(attrs.i("dtype")), Shape(attrs.ints("shape"))}};
}

OpDef leaf(std::string_view name, Role role) {
  return {.name = name, .arity = 0, .grad = GradKind::none, .role = role, .infer = infer_leaf};
}

}  // namespace

namespace defs {

OpDef input() { return leaf("input", Role::input); }
OpDef constant() { return leaf("constant", Role::constant); }
OpDef read() { return leaf("read", Role::read); }
OpDef assign() {
  return {.name = "assign",
          .arity = 1,
          .grad = GradKind::none,
          .role = Role::assign,
          .infer = [](std::span<const TensorType>, const Attrs&) { return std::vector<TensorType>{}; }};
}

}  // namespace defs
}  // namespace sg
